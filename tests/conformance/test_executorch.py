"""ExecuTorch as a backend: what its operators are called, what its quantizer can be asked, and real runs."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from small_specs import cases_of

from conformance.backend import Task
from conformance.backends import executorch_xnnpack, open_backend
from conformance.backends.executorch_names import Executed, Source, sequence
from conformance.backends.executorch_program import operator
from conformance.backends.executorch_xnnpack import Scheme
from conformance.backends.qlib import vocabulary
from conformance.engine import run_case
from conformance.errors import Unsupported, UsageError
from conformance.record import Verdict
from conformance.spec import QConfigModel

LINEAR, RELU, ADD = Source("linear", "linear", ("relu",)), Source("relu", "relu"), Source("add", "add", ("relu",), True)
SILU, VIEW = Source("silu", "silu"), Source("view", "view")
SOURCES = {source.name: source for source in (LINEAR, RELU, ADD, SILU, VIEW)}


def xnn(kind: str, inputs: str, output: str, source: str = "", bounded: bool = False) -> Executed:
    return Executed(f"XNN{kind}", tuple(inputs.split()), (output,), source, bounded)


@pytest.mark.parametrize(
    ("ran", "module", "names"),
    [
        ([xnn("FullyConnected", "qint8 qcint8", "qint8", "linear")], ["linear"], ["quantized::linear"]),
        (
            [xnn("FullyConnected", "qint8 qcint8", "qint8", "linear", True)],
            ["linear", "relu"],
            ["quantized::linear_relu"],
        ),
        (
            [xnn("FullyConnected", "qint8 qcint8", "qint8", "linear", True), xnn("Clamp", "qint8", "qint8", "relu")],
            ["linear", "relu"],
            ["quantized::linear", "quantized::relu"],
        ),
        (
            [xnn("FullyConnected", "fp32 fp32", "fp32", "linear", True)],
            ["linear", "relu"],
            ["aten::linear", "aten::relu"],
        ),
        (
            [xnn("FullyConnected", "qdint8 qcint8", "fp32", "linear")],
            ["linear"],
            ["quantized::linear_per_token_dynamic"],
        ),
        ([xnn("FullyConnected", "fp32 qcint8", "fp32", "linear")], ["linear"], ["quantized::linear_weight_only"]),
        ([xnn("Add", "qint8 qint8", "qint8", "add", True)], ["add", "relu"], ["quantized::add_scalar_relu"]),
        (
            [xnn("Sigmoid", "fp32", "fp32", "silu"), xnn("Multiply", "fp32 fp32", "fp32", "silu")],
            ["silu"],
            ["aten::silu"],
        ),
        (
            [xnn("Sigmoid", "qint8", "qint8", "silu"), xnn("Multiply", "fp32 fp32", "fp32", "silu")],
            ["silu"],
            ["aten::silu"],
        ),
        ([xnn("StaticReshape", "qint8", "qint8", "view")], ["flatten"], ["quantized::flatten"]),
        ([xnn("StaticReshape", "qint8", "qint8", "view")], ["linear"], []),
        ([xnn("StaticTranspose", "qint8", "qint8")], ["conv2d"], []),
        ([xnn("Convert", "fp32", "qint8")], [], ["quantized::quantize_per_tensor"]),
        ([xnn("Convert", "qint8", "fp32")], [], ["quantized::dequantize_per_tensor"]),
        (
            [xnn("Convert", "fp32", "qdint8")],
            [],
            ["quantized::choose_qparams_per_token", "quantized::quantize_per_token"],
        ),
        ([Executed("choose_qparams", ("fp32",), ("float64",), "chosen")], [], ["quantized::choose_qparams"]),
        ([xnn("Mystery", "qint8", "qint8")], ["linear"], ["unmapped:XNNMystery"]),
    ],
)
def test_names(ran: list[Executed], module: list[str], names: list[str]) -> None:
    assert list(sequence(ran, SOURCES, [f"aten::{name}" for name in module])) == names


def test_operators_have_short_names() -> None:
    ops = torch.ops.aten
    targets = (ops.conv2d.default, ops.add_.Tensor, ops.view_copy.default, ops._to_copy.default)
    assert [operator(target) for target in targets] == ["conv2d", "add", "view", "_to_copy"]


def task(written: object, mode: str = "static") -> Task:
    qconfig = None if written is None else QConfigModel.model_validate(written, context=vocabulary())
    return Task(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), ((torch.zeros(1, 2),),), mode, "export", qconfig)


@pytest.mark.parametrize(
    ("qconfig", "mode", "asked"),
    [
        (None, "static", Scheme(False)),
        ("default", "dynamic", Scheme(True)),
        ("int8", "static", Scheme(False, observer="min_max")),
        ("symmetric", "static", Scheme(False, symmetric=True, observer="min_max", least=-127)),
        ("histogram", "static", Scheme(False, observer="histogram")),
        ("per_tensor", "static", Scheme(False, per_channel=False, observer="min_max")),
        ("per_token", "static", Scheme(True)),
        ("per_token", "dynamic", Scheme(True)),
    ],
)
def test_what_the_quantizer_is_asked(qconfig: object, mode: str, asked: Scheme) -> None:
    assert executorch_xnnpack.scheme(task(qconfig, mode)) == asked


@pytest.mark.parametrize(
    ("qconfig", "mode", "feature"),
    [
        ("int16", "static", "int16 activations"),
        ("reduced_range", "static", "narrow ranges"),
        ("asymmetric_weight", "static", "uint8 weights"),
        ("int4_weight", "static", "int4 weights"),
        ("weight_only_int8", "static", "activations in float"),
        ("int8", "dynamic", "one range of the whole tensor at run time"),
        ("per_token_symmetric", "dynamic", "symmetric activations at run time"),
        ({"default": "default", "types": {"nn.Linear": None}}, "static", "QConfigs by module"),
    ],
)
def test_what_the_quantizer_has_no_word_for_is_declared(qconfig: object, mode: str, feature: str) -> None:
    with pytest.raises(Unsupported) as refused:
        executorch_xnnpack.scheme(task(qconfig, mode))
    assert refused.value.feature == feature
    assert feature in open_backend("executorch-xnnpack").about().lacks


SPECS = """\
spec: 1
suite: executorch
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
    module: ["nn.Linear(12, 8)", nn.SiLU()]
    expect: {ops: {quantized::linear: 1, quantized::silu: 1}, accuracy: {sqnr_db: 25}}
"""


def test_verdicts() -> None:
    pytest.importorskip("executorch.exir")
    backend = open_backend("executorch-xnnpack")
    trials = [run_case(case, backend, "executorch-xnnpack") for case in cases_of(SPECS)]
    records = {trial.record.subject.spec: trial.record for trial in trials}
    assert {spec: (record.verdict, record.error) for spec, record in records.items()} == {
        "linear": (Verdict.NATIVE, None),
        "dynamic": (Verdict.NATIVE, None),
        "in_float": (Verdict.FALLBACK, None),
    }
    assert records["in_float"].executed_ops["aten::silu"] == 1
    assert records["linear"].native_ops["XNNFullyConnected:qint8,qcint8>qint8"] == 2


def test_it_has_no_targets() -> None:
    with pytest.raises(UsageError, match="no targets"):
        open_backend("executorch-xnnpack:vulkan")


def test_where_it_is_not_installed_no_case_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("conformance.environment.metadata.version", missing)
    records = [run_case(case, open_backend("executorch-xnnpack"), "x").record for case in cases_of(SPECS)]
    assert {(record.verdict, record.error) for record in records} == {
        (Verdict.UNSUPPORTED, "not installed: executorch, torchao, torch")
    }
