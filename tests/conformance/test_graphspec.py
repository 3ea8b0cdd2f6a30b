"""Specs that write out a quantized graph."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_specs import case_of, cases_of

from conformance.backends import open_backend
from conformance.backends.qlib import vocabulary
from conformance.engine import run_case, task_of
from conformance.errors import SpecError
from conformance.fingerprint import fingerprint
from conformance.inputs import inputs_of, real
from conformance.load import load_text
from conformance.modules import build
from conformance.tensorspec import Dtype, TensorQParams
from qlib.arith import bias_of_layer, quantize
from qlib.qparams import RANGES, DType, QParams

VALID = (
    """\
spec: 1
suite: small
cases:
  - id: one
    why: a test
    graph:
      inputs: {x: {shape: [1, 4, 6, 6], dtype: uint8, scale: 0.5, zero_point: 200}}
      constants:
        weight: {shape: [3, 2, 3, 3], dtype: int8, range: [-9, 9], scale: [0.25, 1, 0.1], axis: 0}
        bias: {shape: [3], dtype: int32, range: [-500, 500]}
      compute: F.conv2d(x[:, 1:3], weight, F.relu(bias))
      output: {dtype: uint8, scale: 4, zero_point: 3}
    expect: {ops: {quantized::conv2d: 1}}
""".replace("x[:, 1:3]", "x")
    .replace("F.relu(bias)", "bias")
    .replace("[3, 2, 3, 3]", "[3, 4, 3, 3]")
)

# old text, new text, line, column, part of the message
MISTAKES = [
    ("dtype: uint8, scale: 0.5, ", "dtype: uint8, ", 7, 19, "uint8 needs the key 'scale'"),
    ("scale: 0.5", "scale: 0", 7, 62, "at least"),
    ("scale: 0.5", "scale: [0.5, 1]", 7, 62, "expected 1 number without an axis, found 2"),
    ("scale: 0.5", "scael: 0.5", 7, 55, "Did you mean 'scale'"),
    ("zero_point: 200", "zero_point: 256", 7, 79, "zero point in [0, 255] for uint8, found 256"),
    ("zero_point: 200", "range: [0, 256], zero_point: 2", 7, 74, "256 is no value of uint8"),
    ("zero_point: 200", "axis: 4, zero_point: 2", 7, 73, "expected an axis of shape"),
    ("dtype: uint8, scale: 0.5, zero_point: 200", "dtype: int32", 7, 48, "expected one of bool, float32, int64"),
    ("dtype: uint8, scale: 0.5, zero_point: 200", "dtype: float32, scale: 1", 7, 57, "'scale' doesn't fit float32"),
    ("inputs: {x:", "inputs: {output_1:", 7, 16, "is an output's"),
    ("inputs: {x:", "inputs: {forward:", 7, 16, "taken by PyTorch"),
    ("[0.25, 1, 0.1]", "[0.25, 1]", 9, 75, "expected 3 numbers along axis 0 of [3, 4, 3, 3], found 2"),
    ("weight: {", "x: {", 9, 9, "'x' is an input's already"),
    ("[-500, 500]", "[-500, 5000000]", 10, 49, "expected a bias within 4194304"),
    ("range: [-500, 500]}", "range: [-500, 500], zero_point: 1}", 10, 62, "'zero_point' doesn't fit int32"),
    ("shape: [3], dtype", "shape: [4], dtype", 10, 15, "scale of bias 'bias'"),
    ("F.conv2d(x, weight, bias)", "F.conv2d(x, weight)", 10, 9, "'bias' is used nowhere"),
    ("F.conv2d(x, weight, bias)", "F.conv2d(x, weight) + bias", 10, 15, "scale of bias 'bias'"),
    ("F.conv2d(x, weight, bias)", "F.conv2d(x, wieght, bias)", 11, 28, "Did you mean 'weight'"),
    ("F.conv2d(x, weight, bias)", "F.covn2d(x, weight, bias)", 11, 16, "Did you mean 'conv2d'"),
    ("F.conv2d(x, weight, bias)", "F.conv2d(x, weight, bias", 11, 24, "never closed"),
    ("F.conv2d(x, weight, bias)", '"y = F.conv2d(x, weight, bias)"', 11, 19, "not valid Python"),
    ("F.conv2d(x, weight, bias)", '"F.conv2d(x, weight, bias), x"', 12, 15, "expected 2 outputs"),
    ("      output: {dtype: uint8, scale: 4, zero_point: 3}\n", "", 7, 7, "missing key 'output'"),
    ("output: {dtype: uint8", "output: {dtype: int32", 12, 23, "expected one of int8, uint8 here, found int32"),
    ("zero_point: 3}", "zero_point: -1}", 12, 52, "zero point in [0, 255] for uint8, found -1"),
    ("    expect:", "    module: nn.ReLU()\n    expect:", 13, 5, "remove 'module'"),
    ("    expect:", "    inputs: {x: {shape: [1]}}\n    expect:", 13, 5, "remove 'inputs'"),
    ("    expect:", "    qconfig: default\n    expect:", 13, 5, "remove 'qconfig'"),
    ("    expect:", "    modes: [static]\n    expect:", 13, 12, "expected modes [numerics]"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "column", "message"), MISTAKES, ids=[m[1][:40] for m in MISTAKES])
def test_a_mistake_is_shown_where_it_stands(old: str, new: str, line: int, column: int, message: str) -> None:
    assert VALID.count(old) == 1
    with pytest.raises(SpecError) as caught:
        load_text(VALID.replace(old, new), "a.qspec.yaml", vocabulary())
    found = [(m.line, m.column, m.message) for m in caught.value.mistakes]
    assert message in " ".join(said for at, col, said in found if (at, col) == (line, column)), found


def test_a_graph_becomes_a_module_and_what_is_known_of_its_tensors() -> None:
    (case,) = cases_of(VALID)
    assert case.id == "small::one[numerics-export]"
    assert (tuple(case.inputs), case.inputs["x"].dtype, case.inputs["x"].range) == (("x",), "uint8", (0, 255))
    assert case.qparams == {
        "x": TensorQParams(Dtype.UINT8, (0.5,), (200,)),
        "weight": TensorQParams(Dtype.INT8, (0.25, 1.0, float(torch.tensor(0.1))), (0, 0, 0), 0),
        "bias": TensorQParams(Dtype.INT32, (0.125, 0.5, 0.5 * float(torch.tensor(0.1))), (0, 0, 0), 0),
        "output_0": TensorQParams(Dtype.UINT8, (4.0,), (3,)),
    }
    module, (x,) = build(case), inputs_of(case)
    with torch.no_grad():
        assert torch.equal(module(x), torch.nn.functional.conv2d(x, module.weight, module.bias))
    assert {name for name, _ in module.named_parameters()} == {"weight", "bias"}


def test_defaults_for_modules_are_no_part_of_a_graph() -> None:
    defaults = "defaults: {inputs: {y: {shape: [2]}}, qconfig: per_tensor, capture: [trace, script]}\ncases:"
    (case,) = cases_of(VALID.replace("cases:", defaults))
    assert (tuple(case.inputs), case.qconfig, case.capture) == (("x",), None, "trace")


def test_a_graph_may_have_lines_and_several_results() -> None:
    text = VALID.replace(
        "compute: F.conv2d(x, weight, bias)", "compute: |\n        y = F.conv2d(x, weight, bias)\n        return y, x"
    )
    (case,) = cases_of(text.replace("output: {", "output: [{").replace("zero_point: 3}", "zero_point: 3}, null]"))
    assert case.qparams["output_1"] is None
    with torch.no_grad():
        assert len(build(case)(*inputs_of(case))) == 2


def test_one_case_for_all_captures_where_a_graph_is_given() -> None:
    body = "module: nn.Linear(3, 2)\ninputs: {x: {shape: [1, 3]}}\nmodes: [static, numerics]\nexpect: {ops: {quantized::linear: 1}}"
    cases = cases_of("spec: 1\nsuite: s\ncases:\n  - id: a\n    why: b\n    " + body.replace("\n", "\n    "))
    assert [(str(c.mode), str(c.capture)) for c in cases] == [
        ("static", "export"),
        ("static", "trace"),
        ("numerics", "export"),
    ]


scales = st.floats(2.0**-30, 2.0**30, width=32) | st.integers(-30, 30).map(lambda n: 2.0**n)


@settings(max_examples=200)
@given(scales, st.sampled_from(["uint8", "int8"]), st.data())
def test_quantizing_what_integers_mean_gives_them_back(scale: float, dtype: str, data: st.DataObject) -> None:
    low, high = RANGES[DType(dtype)]
    zero_point = data.draw(st.integers(low, high))
    stored = torch.arange(low, high + 1).to(getattr(torch, dtype))
    found = real(stored, TensorQParams(Dtype(dtype), (scale,), (zero_point,)))
    assert found.dtype == torch.float32
    params = QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high, DType(dtype))
    assert torch.equal(quantize(found, params), stored)


@settings(max_examples=100)
@given(scales, st.lists(scales, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_bias_comes_back_from_its_floats(x_scale: float, w_scales: list[float], seed: int) -> None:
    stored = torch.randint(-(2**22), 2**22 + 1, (len(w_scales),), generator=torch.Generator().manual_seed(seed))
    steps = tuple(x_scale * each for each in w_scales)
    found = real(stored.int(), TensorQParams(Dtype.INT32, steps, (0,) * len(steps), 0))
    integers, _ = bias_of_layer(found, torch.tensor(x_scale), torch.tensor(w_scales))
    assert integers.tolist() == stored.tolist()


def test_the_graph_that_runs_has_the_integers_that_were_drawn() -> None:
    """The result, from integers alone and by the definition."""
    (case,) = cases_of(VALID)
    task, backend = task_of(case), open_backend("qlib")
    x = (inputs_of(case)[0] / 0.5).double()
    known = case.qparams
    weight, bias = task.module.weight.detach().double(), task.module.bias.detach().double()
    w_scale = torch.tensor(known["weight"].scale, dtype=torch.float64)
    w = (weight / w_scale.view(-1, 1, 1, 1)).round()
    b = (bias / torch.tensor(known["bias"].scale, dtype=torch.float64)).round()
    acc = torch.nn.functional.conv2d(x, w, b)
    wanted = (acc * (0.5 * w_scale / 4).view(-1, 1, 1)).round().add(3).clamp(0, 255)
    trial = run_case(case, backend, "qlib")
    assert str(trial.record.verdict) == "native", trial.record
    assert torch.equal((trial.evidence.debug_outputs[0] / 4).double() + 3, wanted)
    assert wanted.unique().numel() > 3


def test_what_a_graph_says_is_part_of_the_fingerprint() -> None:
    (case,) = cases_of(VALID)
    for old, new in (
        ("scale: 0.5", "scale: 0.25"), ("zero_point: 200", "zero_point: 201"), ("axis: 0}", "axis: 0, zero_point: 1}"),
        ("zero_point: 3}", "zero_point: 4}"), ("[-9, 9]", "[-8, 9]"), ("x, weight, bias)", "x, weight, bias, stride=2)"),
        ("output: {dtype: uint8, scale: 4, zero_point: 3}", "output: null"),
    ):  # fmt: skip
        (other,) = cases_of(VALID.replace(old, new, 1))
        assert fingerprint(other) != fingerprint(case), new


def test_a_case_without_a_graph_keeps_its_fingerprint() -> None:
    body = "module: nn.Linear(3, 2)\ninputs: {x: {shape: [1, 3]}}\ncapture: [export]\nexpect: {ops: {quantized::linear: 1}}"
    assert fingerprint(case_of(body)) == "40ee26c66392f43d"


def test_a_graph_is_written_as_onnx_with_its_parameters() -> None:
    onnx = pytest.importorskip("onnx")
    from conformance.backends.qlib import debug_of

    (case,) = cases_of(VALID)
    model, _ = debug_of(task_of(case), lambda _: nullcontext())
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    assert any(value.dtype == "int32" and value.shape == (3,) for value in constants.values())
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 2
    points = {int(value) for value in constants.values() if value.dtype == "uint8" and value.shape == ()}
    assert points == {3, 200}
