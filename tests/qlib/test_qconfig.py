"""QConfigs: which rule a module falls under, and what the presets mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib.observers import OBSERVERS, observer_for
from qlib.qconfig import PRESETS, QConfig, QConfigMapping, as_mapping, at_run_time, transform
from qlib.qparams import DType, QSpec, RangeFrom

A, B, C = (QConfig(QSpec(qmax=n)) for n in (100, 101, 102))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("encoder", A),
        ("encoder.fc", B),
        ("encoder.fc.inner", B),
        ("encoder.fc2", A),
        ("encoder.conv", A),
        ("encoders", None),
        ("fc", None),
        ("", None),
    ],
)
def test_the_longest_prefix_of_whole_names_wins(path: str, expected: QConfig | None) -> None:
    mapping = QConfigMapping(None, {"encoder": A, "encoder.fc": B})
    assert mapping.resolve(path, "nn.Linear") == expected


def test_a_path_beats_a_type_and_a_type_the_default() -> None:
    mapping = QConfigMapping(A, {"fc": B}, {"nn.Linear": C})
    assert mapping.resolve("fc", "nn.Linear") == B
    assert mapping.resolve("other", "nn.Linear") == C
    assert mapping.resolve("other", "nn.Conv2d") == A


def test_none_is_a_rule_like_any_other() -> None:
    mapping = QConfigMapping(A, {"fc": None, "fc.inner": B}, {"nn.ReLU": None})
    assert mapping.resolve("fc", "nn.Linear") is None
    assert mapping.resolve("fc.inner", "nn.Linear") == B
    assert mapping.resolve("act", "nn.ReLU") is None


names = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(names, st.sampled_from([A, B, None]), max_size=5), names)
def test_resolution_is_the_longest_of_all_rules_that_apply(rules: dict[str, QConfig | None], path: str) -> None:
    applying = [rule for rule in rules if f"{path}.".startswith(f"{rule}.")]
    expected = rules[max(applying, key=len)] if applying else C
    assert QConfigMapping(C, rules).resolve(path, "nn.Linear") == expected


def test_unused_rules_are_listed_in_the_order_written() -> None:
    mapping = QConfigMapping(A, {"fc3": A, "fc": A, "body": A, "body.fc": B}, {"nn.Conv2d": A, "nn.Linear": A})
    seen = [("fc", "nn.Conv2d"), ("body.fc", "nn.Linear"), ("head", "nn.Linear")]
    # "body" is shadowed by its longer rule, and no module of type Conv2d is left to the type rule.
    assert mapping.unused(seen) == ("modules: fc3", "modules: body", "types: nn.Conv2d")


def test_results_are_described_as_activations_unless_said_otherwise() -> None:
    assert QConfig(QSpec(qmax=9)).result == QSpec(qmax=9)
    assert QConfig(QSpec(qmax=9), output=QSpec(qmax=8)).result == QSpec(qmax=8)
    assert QConfig(None).result is None
    assert QConfig(QSpec(observer="runtime")).result is None


def test_at_run_time_changes_the_activations_and_leaves_results_in_float() -> None:
    before = QConfig(QSpec(DType.INT8, qmin=-100), QSpec(DType.INT4), QSpec())
    after = at_run_time(before)
    assert after.activation == QSpec(DType.INT8, qmin=-100, observer="runtime")
    assert after.activation.range_from is RangeFrom.RUNTIME
    assert after.weight == before.weight
    assert after.result is None
    assert at_run_time(QConfig(None)) == QConfig(None)


def test_transform_reaches_every_qconfig_and_leaves_none_alone() -> None:
    mapping = QConfigMapping(A, {"x": B, "y": None}, {"nn.Linear": C, "nn.ReLU": None})
    found = transform(mapping, lambda q: replace(q, weight=None))
    bare = [replace(q, weight=None) for q in (A, B, C)]
    assert found == QConfigMapping(bare[0], {"x": bare[1], "y": None}, {"nn.Linear": bare[2], "nn.ReLU": None})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_name_observers_that_exist(name: str) -> None:
    preset = PRESETS[name]
    assert preset.weight is not None
    for spec in filter(None, (preset.activation, preset.weight, preset.result)):
        assert spec.observer in OBSERVERS
        observer_for(spec)
    assert as_mapping(name) == QConfigMapping(default=preset)


@pytest.mark.parametrize(
    ("name", "activation", "weight", "axis"),
    [
        ("default", (0, 255), (-127, 127), 0),
        ("per_tensor", (0, 255), (-127, 127), None),
        ("int8", (-128, 127), (-127, 127), 0),
        ("symmetric", (-127, 127), (-127, 127), 0),
        ("asymmetric_weight", (0, 255), (0, 255), 0),
        ("reduced_range", (0, 127), (-127, 127), 0),
        ("int4_weight", (0, 255), (-7, 7), 0),
        ("int16", (-32767, 32767), (-127, 127), 0),
    ],
)
def test_ranges_of_presets(name: str, activation: tuple[int, int], weight: tuple[int, int], axis: int | None) -> None:
    preset = PRESETS[name]
    assert preset.activation is not None
    assert preset.weight is not None
    assert (preset.activation.range, preset.weight.range, preset.weight.axis) == (activation, weight, axis)


def test_what_users_may_write() -> None:
    mapping = QConfigMapping(A)
    assert as_mapping(mapping) is mapping
    assert as_mapping(A) == mapping
    assert as_mapping(None) == QConfigMapping(None)
    with pytest.raises(KeyError, match=r"'defualt'.*default"):
        as_mapping("defualt")
