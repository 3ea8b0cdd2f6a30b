from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from offered import offer
from small_specs import LINEAR, cases_of

from conformance.backends import BUILTIN, Process, Tier, line_of, named, offered, open_backend, process_of
from conformance.backends import qlib as bundled
from conformance.catalog import catalog
from conformance.errors import EnvironmentTrouble, UsageError
from conformance.spec import Capture, Mode, QConfigModel
from conformance.vocabulary import resolve_operator


@pytest.fixture
def offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [name for name in BUILTIN if name not in {"bad-about", "exec"}])
def test_every_backend_of_the_suite_opens_and_says_what_it_is(name: str) -> None:
    about = open_backend(name).about()
    assert about.name == name
    assert about.versions["torch"] == str(torch.__version__)
    assert about.modes <= {str(mode) for mode in Mode}
    assert about.captures <= {str(capture) for capture in Capture}
    assert line_of(name).endswith(".")


def test_naming_backends_imports_no_torch() -> None:
    script = "import sys; from conformance.backends import offered, open_backend; offered(); open_backend('qlib')"
    script += "; from conformance.backends.qlib import vocabulary; vocabulary(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.usefixtures("offers")
def test_other_distributions_offer_backends() -> None:
    assert offered()["chatty"].factory == "odd_backends_of_test:chatty"
    assert open_backend("chatty:anything").about().name == "odd"
    assert process_of("chatty:anything") is Process.OWN
    assert line_of("chatty") == "Prints to standard output, by Python and below it. Targets: loud, quiet."


@pytest.mark.usefixtures("offers")
def test_nobody_takes_the_place_of_a_bundled_backend() -> None:
    assert offered()["qlib"] == BUILTIN["qlib"]
    assert open_backend("qlib").about().name == "qlib"


@pytest.mark.usefixtures("offers")
@pytest.mark.parametrize("name", ["uninstalled", "renamed"])
def test_a_backend_that_can_not_be_imported_is_trouble_with_the_environment(name: str) -> None:
    with pytest.raises(EnvironmentTrouble, match=f"backend '{name}' can't be imported from"):
        open_backend(name)


@pytest.mark.usefixtures("offers")
def test_the_list_of_backends_shows_those_that_can_not_be_imported() -> None:
    lines = catalog("backends")
    assert set(lines) >= {*BUILTIN, "chatty", "uninstalled", "renamed"}
    assert "no_such_package_of_test" in lines["uninstalled"]
    assert "no_such_function" in lines["renamed"]


def test_a_name_that_does_not_exist_gets_a_suggestion() -> None:
    with pytest.raises(
        UsageError, match=r"no backend is named 'qlip'\. Did you mean 'qlib'\? Expected one of: .*hangs"
    ):
        open_backend("qlip")


def test_all_is_every_usual_backend_with_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {name: entry for name, entry in BUILTIN.items() if entry.tier is Tier.USUAL}
    assert {"qlib", "onnxruntime"} <= set(usual)
    assert not {"hangs", "crashes", "off-by-one"} & set(usual)
    for name, entry in usual.items():
        assert {f"{name}:{target}" for target in entry.targets or ()} or {name} <= set(named(["all"]))
    assert {"qlib:fast", "qlib:reference", "onnxruntime:none"} <= set(named(["all"]))
    slow = replace(BUILTIN["qlib"], tier=Tier.SLOW)
    monkeypatch.setattr("conformance.backends.BUILTIN", {**BUILTIN, "qlib": slow})
    assert not {"qlib", "qlib:fast"} & set(named(["all"]))
    assert line_of("qlib").endswith("Targets: fast, reference. Slow.")


def test_each_backend_is_chosen_once_in_the_order_of_first_mention() -> None:
    assert named(["hangs", "qlib:fast", "hangs"]) == ("hangs", "qlib:fast")
    assert named(["hangs", "all", "qlib:fast"]) == ("hangs", *named(["all"]))
    with pytest.raises(UsageError, match=r"no backend is named 'al'\. Did you mean 'all'\? Expected one of: all, "):
        named(["al"])


@pytest.mark.usefixtures("offers")
def test_targets_of_other_distributions_stand_at_their_factories() -> None:
    found = named(["all"])
    assert {"chatty:loud", "chatty:quiet", "modest", "uninstalled"} <= set(found)
    assert "chatty" not in found


@pytest.mark.parametrize("name", [name for name in BUILTIN if name not in {"bad-about", "exec"}])
def test_every_target_opens_and_no_other(name: str) -> None:
    targets = BUILTIN[name].targets or ()
    for target in targets:
        assert open_backend(f"{name}:{target}").about().name == name
    if targets and BUILTIN[name].tier is not Tier.MINIATURE:
        assert open_backend(name) == open_backend(f"{name}:{targets[0]}"), "the default comes first"
    with pytest.raises(UsageError):
        open_backend(f"{name}:no-such-target")


def test_targets_of_the_bundled_library() -> None:
    assert open_backend("qlib") == open_backend("qlib:fast") != open_backend("qlib:reference")
    with pytest.raises(UsageError, match="backend qlib has no target 'slow'; expected one of fast, reference"):
        open_backend("qlib:slow")


def test_both_kernels_run_the_same_operators_in_the_same_steps() -> None:
    from conformance.engine import run_case

    for case in cases_of(LINEAR):
        trials = [run_case(case, open_backend(f"qlib:{kernels}"), "qlib") for kernels in ("fast", "reference")]
        first, second = (trial.evidence for trial in trials)
        assert first is not None and second is not None
        assert first.ops == second.ops
        assert first.quanta == second.quanta


def test_the_vocabulary_is_that_of_the_operator_table() -> None:
    words = bundled.vocabulary()
    assert {"quantized::linear_relu", "quantized::quantize_per_tensor"} <= words.operators
    assert {"aten::linear", "aten::relu"} <= words.float_operators
    assert not words.operators & words.float_operators
    assert set(words.aliases.values()) <= words.operators
    assert set(catalog("ops")) == words.operators
    assert set(catalog("qconfigs")) == words.qconfigs
    assert set(catalog("observers")) == words.observers
    assert set(catalog("modes")) == bundled.MODES


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("quantized::linear_relu", "quantized::linear_relu"),
        ("quantized::add(", "quantized::add"),
        ("quantized::batch_norm2d_relu", "quantized::batch_norm_relu"),
        ("aten::quantize_per_tensor", "quantized::quantize_per_tensor"),
        ("aten::dequantize", "quantized::dequantize_per_tensor"),
        ("aten::clamp", "quantized::clamp"),
        ("aten::hardtanh_", "quantized::hardtanh"),
        ("aten::max_pool2d", "quantized::max_pool2d"),
        ("aten::sigmoid", "quantized::sigmoid"),
        ("aten::add", "aten::add"),
        ("aten::add_(", "aten::add"),
        ("aten::mul", "aten::mul"),
        ("aten::cat", "aten::cat"),
        ("aten::linear", "aten::linear"),
        ("aten::conv2d", "aten::conv2d"),
    ],
)
def test_spellings_of_other_suites(written: str, canonical: str) -> None:
    assert bundled.canonical(written) == canonical
    assert bundled.canonical(canonical) in {canonical, resolve_operator(canonical, bundled.vocabulary())}


@pytest.mark.parametrize("name", ["quantized::linaer", "quantized::linear((", "linear", ""])
def test_spellings_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError):
        bundled.canonical(name)


def test_a_qconfig_of_a_spec_becomes_the_librarys_own() -> None:
    from qlib import PRESETS, DType, QConfigMapping

    assert bundled.mapping_of(None) == QConfigMapping(PRESETS["default"])
    written = {
        "default": "int8",
        "modules": {"0.fc": None},
        "types": {
            "nn.Linear": {
                "activation": {"dtype": "uint8", "qmin": 0, "qmax": 127, "observer": "histogram"},
                "weight": {"dtype": "int8", "symmetric": True, "axis": 0},
                "output": {"dtype": "int8", "observer": "fixed", "scale": 0.5, "zero_point": 3},
            }
        },
    }
    mapping = bundled.mapping_of(QConfigModel.model_validate(written, context=bundled.vocabulary()))
    assert (mapping.default, dict(mapping.modules)) == (PRESETS["int8"], {"0.fc": None})
    rule = mapping.types["nn.Linear"]
    assert rule is not None and rule.activation is not None and rule.weight is not None and rule.output is not None
    assert (rule.activation.dtype, rule.activation.range, rule.activation.observer) == (
        DType.UINT8,
        (0, 127),
        "histogram",
    )
    assert (rule.weight.symmetric, rule.weight.axis) == (True, 0)
    assert (rule.output.scale, rule.output.zero_point) == (0.5, 3)


def test_every_preset_is_described_in_one_line() -> None:
    for text in catalog("qconfigs").values():
        assert text.startswith("activations ") and "; weights " in text and "\n" not in text
