"""LiteRT as a backend: what its models' operators are called, what its quantizer can be asked, and real runs."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
import torch
from small_specs import cases_of

from conformance.backend import Task
from conformance.backends import litert, litert_model, open_backend
from conformance.backends.litert_names import Node, Value, sequence
from conformance.backends.qlib import vocabulary
from conformance.engine import run_case
from conformance.errors import Unsupported, UsageError
from conformance.record import Verdict
from conformance.spec import QConfigModel

REAL, BYTE, WIDE = Value("r", "float32"), Value("b", "int8"), Value("i", "int32", True)
WEIGHT, NUMBER = Value("w", "int8", True, 96), Value("n", "int8", True, 1)
UNPACKED = Value("u", "float32", True, 96, "DEQUANTIZE")


def node(kind: str, inputs: list[Value], output: Value, activation: str = "") -> Node:
    return Node(kind, tuple(inputs), (output,), activation)


@pytest.mark.parametrize(
    ("given", "module", "names"),
    [
        (node("FULLY_CONNECTED", [BYTE, WEIGHT, WIDE], BYTE), ["linear"], ["quantized::linear"]),
        (node("FULLY_CONNECTED", [BYTE, WEIGHT], BYTE, "RELU"), ["linear", "relu"], ["quantized::linear_relu"]),
        (
            node("FULLY_CONNECTED", [BYTE, WEIGHT], BYTE, "RELU6"),
            ["linear", "relu6"],
            ["quantized::linear", "quantized::relu6"],
        ),
        (node("FULLY_CONNECTED", [REAL, REAL], REAL, "RELU"), ["linear", "relu"], ["aten::linear", "aten::relu"]),
        (node("FULLY_CONNECTED", [REAL, WEIGHT], REAL), ["linear"], ["quantized::linear_per_token_dynamic"]),
        (node("FULLY_CONNECTED", [REAL, UNPACKED], REAL), ["linear"], ["quantized::linear_weight_only"]),
        (node("CONV_2D", [REAL, WEIGHT], REAL), ["conv1d"], ["quantized::conv1d_dynamic"]),
        (node("ADD", [BYTE, NUMBER], BYTE, "RELU"), ["add", "relu"], ["quantized::add_scalar_relu"]),
        (node("MEAN", [BYTE, WIDE], BYTE), ["adaptive_avg_pool2d"], ["quantized::adaptive_avg_pool2d"]),
        (node("LOGISTIC", [BYTE], BYTE), ["silu"], ["quantized::sigmoid"]),
        (node("TRANSPOSE", [BYTE, WIDE], BYTE), ["conv2d"], []),
        (node("TRANSPOSE", [BYTE, WIDE], BYTE), ["permute"], ["quantized::permute"]),
        (node("QUANTIZE", [REAL], BYTE), [], ["quantized::quantize_per_tensor"]),
        (node("QUANTIZE", [BYTE], BYTE), [], ["unmapped:QUANTIZE"]),
        (node("DEQUANTIZE", [BYTE], REAL), [], ["quantized::dequantize_per_tensor"]),
        (node("DEQUANTIZE", [WEIGHT], REAL), [], []),
        (node("NOBODY_KNOWS", [BYTE], BYTE), ["linear"], ["unmapped:NOBODY_KNOWS"]),
    ],
)
def test_names(given: Node, module: list[str], names: list[str]) -> None:
    assert list(sequence([given], [f"aten::{name}" for name in module])) == names


def test_an_operator_of_the_module_is_counted_once() -> None:
    twice = [node("RESHAPE", [BYTE, WIDE], BYTE), node("RESHAPE", [BYTE, WIDE], BYTE)]
    assert sequence(twice, ["aten::linear", "aten::flatten"]) == ("quantized::flatten",)


def task(written: object, mode: str = "static") -> Task:
    qconfig = None if written is None else QConfigModel.model_validate(written, context=vocabulary())
    return Task(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), ((torch.zeros(1, 2),),), mode, "export", qconfig)


@pytest.mark.parametrize(
    ("qconfig", "mode", "asked"),
    [
        (None, "static", litert.Recipe(8, False, 8, True)),
        ("default", "dynamic", litert.Recipe(None, False, 8, True)),
        ("int8", "static", litert.Recipe(8, False, 8, True, observer="min_max")),
        ("symmetric", "static", litert.Recipe(8, True, 8, True, observer="min_max")),
        ("moving_average", "static", litert.Recipe(8, False, 8, True)),
        ("int16", "static", litert.Recipe(16, True, 8, True, observer="min_max")),
        ("per_tensor", "static", litert.Recipe(8, False, 8, False, observer="min_max")),
        ("weight_only_int8", "dynamic", litert.Recipe(None, False, 8, True, "FLOAT")),
    ],
)
def test_what_the_quantizer_is_asked(qconfig: object, mode: str, asked: litert.Recipe) -> None:
    assert litert.recipe(task(qconfig, mode)) == asked


@pytest.mark.parametrize(
    ("qconfig", "mode", "feature"),
    [
        ("histogram", "static", "the observer histogram"),
        ("reduced_range", "static", "narrow ranges"),
        ("asymmetric_weight", "static", "uint8 weights"),
        ("weight_only_int4", "static", "groups"),
        ("per_token", "static", "activations by the row"),
        ("int8", "dynamic", "chosen activations at run time"),
        ({"default": "default", "modules": {"0": None}}, "static", "QConfigs by module"),
    ],
)
def test_what_the_quantizer_has_no_word_for_is_declared(qconfig: object, mode: str, feature: str) -> None:
    with pytest.raises(Unsupported) as refused:
        litert.recipe(task(qconfig, mode))
    assert refused.value.feature == feature
    assert feature in open_backend("litert").about().lacks


def test_a_conversion_is_known_by_all_that_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = dict.fromkeys(litert_model.CONVERTERS, "1.0")
    monkeypatch.setattr(litert_model, "version", installed.__getitem__)

    def key(module: torch.nn.Module, *inputs: torch.Tensor) -> str:
        return litert_model._key(torch.export.export(module.eval(), inputs, strict=False))

    module, x = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Hardtanh(0.0, 1.0)), torch.zeros(4, 3)
    first = key(module, x)
    assert key(module, torch.ones(4, 3)) == first
    assert key(module, torch.zeros(5, 3)) != first
    module[1].max_val = 2.0
    assert (second := key(module, x)) != first
    with torch.no_grad():
        module[0].bias[1] += 1e-7
    assert (third := key(module, x)) not in (first, second)
    installed["litert-converter"] = "1.1"
    assert key(module, x) not in (first, second, third)


def test_a_conversion_is_known_by_the_graphs_of_its_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branches(torch.nn.Module):
        def __init__(self, number: float) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x * self.number, lambda x: x - 1, (x,))
            return result

    monkeypatch.setattr(litert_model, "version", lambda package: "1.0")
    x = torch.zeros(4)
    first, second = (torch.export.export(Branches(number), (x,), strict=False) for number in (2.0, 3.0))
    assert litert_model._key(first) != litert_model._key(second)


def test_files_that_are_kept_are_whole_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_model, "KEPT", 3)
    for number in range(6):
        litert_model._keep(tmp_path / f"{number}.tflite", b"content")
        os.utime(tmp_path / f"{number}.tflite", (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.tflite", "4.tflite", "5.tflite"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"content"}


def test_targets() -> None:
    assert {open_backend(f"litert:{target}").about().name for target in litert.TARGETS} == {"litert"}
    with pytest.raises(UsageError, match="no target 'gpu'"):
        open_backend("litert:gpu")


SPECS = """\
spec: 1
suite: litert
defaults: {inputs: {x: {shape: [4, 12]}}, capture: [export]}
cases:
  - id: linear
    why: the pattern that every engine has
    module: ["nn.Linear(12, 8)", nn.ReLU(), "nn.Linear(8, 5)"]
    expect:
      ops: {quantized::linear_relu: 1, quantized::linear: 1, quantized::quantize_per_tensor: 1}
      absent: [aten::linear]
      accuracy: {sqnr_db: 25}
  - id: dynamic
    why: integer weights and rows of the input with ranges of their own
    module: nn.Linear(12, 8)
    modes: [dynamic]
    expect: {ops: {quantized::linear_per_token_dynamic: 1}, absent: [aten::linear], accuracy: {sqnr_db: 25}}
  - id: in_float
    why: an operator that is not quantized runs in float, which is right and no integer operator
    module: {forward: "def forward(self, x): return x.exp()"}
    expect: {ops: {quantized::exp: 1}, accuracy: {sqnr_db: 25}}
  - id: changed
    why: a model that can't change its inputs is declared to be no such model
    module: {forward: "def forward(self, x): return x.add_(1)"}
    expect: {ops: {quantized::add_scalar: 1}, accuracy: {sqnr_db: 25}}
"""


@pytest.mark.parametrize("target", litert.TARGETS)
def test_verdicts(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litert_torch")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = open_backend(f"litert:{target}")
    trials = [run_case(case, backend, "litert") for case in cases_of(SPECS)]
    records = {trial.record.subject.spec: trial.record for trial in trials}
    found = {spec: (record.verdict, record.error) for spec, record in records.items()}
    assert found["linear"] == found["dynamic"] == (Verdict.NATIVE, None)
    assert found["in_float"][0] is Verdict.FALLBACK
    assert found["changed"][0] is Verdict.UNSUPPORTED
    kept = set(tmp_path.rglob("*.tflite"))
    assert len(kept) == 3
    for case in cases_of(SPECS):
        run_case(case, backend, "litert")
    assert set(tmp_path.rglob("*.tflite")) == kept


def test_where_it_is_not_installed_no_case_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("conformance.environment.metadata.version", missing)
    records = [run_case(case, open_backend("litert"), "litert").record for case in cases_of(SPECS)]
    assert {record.verdict for record in records} == {Verdict.UNSUPPORTED}
    assert (records[0].error or "").startswith("not installed: litert-torch")
