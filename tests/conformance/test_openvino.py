"""OpenVINO as a backend: verdicts of real runs, refusals, and what happens where it or its tool is not installed."""

from __future__ import annotations

from importlib import metadata

import pytest
from small_specs import cases_of

from conformance.backends import open_backend
from conformance.backends.nncf import LACKS, Numbers, Request, request_of
from conformance.backends.openvino import TARGETS
from conformance.case import Case
from conformance.engine import run_case, task_of
from conformance.errors import Unsupported, UsageError
from conformance.record import Record, Verdict

SPECS = """\
spec: 1
suite: engine
defaults: {inputs: {x: {shape: [4, 12]}}}
cases:
  - id: linear
    why: the pattern that every engine has
    module: ["nn.Linear(12, 8)", nn.ReLU(), "nn.Linear(8, 5)"]
    modes: [numerics]
    expect: {ops: {quantized::linear_relu: 1, quantized::linear: 1}, absent: [aten::linear], debug_equal: 0 quanta}
  - id: conv
    why: integers between a border of its own and one that the kernel has within it
    module: ["nn.Conv2d(4, 8, 3, padding=1)", nn.ReLU(), "nn.Conv2d(8, 4, 3)"]
    inputs: {x: {shape: [1, 4, 8, 8]}}
    modes: [numerics]
    expect:
      ops: {quantized::conv2d_relu: 1, quantized::conv2d: 1, quantized::quantize_per_tensor: 1}
      debug_equal: 0 quanta
  - id: transposed
    why: a kernel that it has for some shapes only runs in float, which is right and no integer operator
    module: nn.ConvTranspose2d(4, 4, 3)
    inputs: {x: {shape: [1, 4, 8, 8]}}
    modes: [numerics]
    expect: {ops: {quantized::conv_transpose2d: 1}, debug_equal: 0 quanta}
"""
FLOW = """\
spec: 1
suite: flow
defaults: {inputs: {x: {shape: [4, 12]}}, capture: [export]}
cases:
  - id: linear
    why: its own tool quantizes it
    module: ["nn.Linear(12, 8)", nn.ReLU(), "nn.Linear(8, 5)"]
    matrix: {qconfig: [default, per_tensor, symmetric, histogram, moving_average, int16]}
    qconfig: ${qconfig}
    expect: {ops: {quantized::linear_relu: 1, quantized::linear: 1}, absent: [aten::linear], accuracy: {sqnr_db: 25}}
"""


def records(text: str, name: str) -> dict[str, Record]:
    backend = open_backend(name)
    return {case.id.partition("[")[0]: run_case(case, backend, name).record for case in cases_of(text)}


def flows() -> dict[str, Case]:
    return {str(case.parameters["qconfig"]): case for case in cases_of(FLOW)}


@pytest.fixture
def installed() -> None:
    pytest.importorskip("onnx", minversion="1.20")
    pytest.importorskip("openvino")


@pytest.mark.usefixtures("installed")
def test_given_graphs() -> None:
    found = records(SPECS, "openvino")
    assert {name: record.verdict for name, record in found.items()} == {
        "engine::linear": Verdict.NATIVE,
        "engine::conv": Verdict.NATIVE,
        "engine::transposed": Verdict.FALLBACK,
    }
    assert found["engine::transposed"].executed_ops["aten::conv_transpose2d"] == 1
    assert found["engine::conv"].measures.wrong == 0


@pytest.mark.usefixtures("installed")
def test_without_low_precision_transformations_nothing_computes_on_integers() -> None:
    found = records(SPECS, "openvino:no-lpt")
    assert {record.verdict for record in found.values()} == {Verdict.FALLBACK}
    assert not [name for record in found.values() for name in record.executed_ops if name.startswith("quantized::")]


@pytest.mark.usefixtures("installed")
def test_its_own_tool() -> None:
    pytest.importorskip("nncf")
    record = run_case(flows()["default"], open_backend("openvino"), "openvino").record
    assert record.verdict is Verdict.NATIVE, record.findings


@pytest.mark.parametrize(
    ("qconfig", "activation", "weight", "estimator"),
    [
        ("default", Numbers("asymmetric", False), Numbers("symmetric", True), "MINMAX"),
        ("per_tensor", Numbers("asymmetric", False), Numbers("symmetric", False), "MINMAX"),
        ("histogram", Numbers("asymmetric", False), Numbers("symmetric", True), "HISTOGRAM"),
    ],
)
def test_a_qconfig_in_the_words_of_its_tool(qconfig: str, activation: Numbers, weight: Numbers, estimator: str) -> None:
    assert request_of(task_of(flows()[qconfig])) == Request(activation, weight, estimator)


@pytest.mark.parametrize(
    ("qconfig", "feature"), [("moving_average", "the observer moving_average_min_max"), ("int16", "int16")]
)
def test_what_its_tool_has_no_word_for_is_declared(qconfig: str, feature: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        request_of(task_of(flows()[qconfig]))
    assert refusal.value.feature == feature and feature in LACKS


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("conformance.environment.metadata.version", version)


def test_where_it_is_not_installed_no_case_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino", "nncf")
    found = {(r.verdict, r.error) for r in records(SPECS, "openvino").values()}
    assert found == {(Verdict.UNSUPPORTED, "not installed: openvino")}


@pytest.mark.usefixtures("installed")
def test_without_its_tool_given_graphs_are_run_and_modules_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "nncf")
    record = run_case(flows()["default"], open_backend("openvino"), "openvino").record
    assert (record.verdict, record.error) == (Verdict.UNSUPPORTED, "not installed: nncf")
    assert records(SPECS, "openvino")["engine::linear"].verdict is Verdict.NATIVE


def test_targets() -> None:
    assert [open_backend(f"openvino:{target}").about().name for target in TARGETS] == ["openvino"] * 2
    with pytest.raises(UsageError, match="no target 'some'"):
        open_backend("openvino:some")
