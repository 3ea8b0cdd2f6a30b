"""Sums, products, joins and tables on integers, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Draft, aten, forms, names
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors, exact
from torch import Tensor

from qlib.graph import attribute, op_name
from qlib.kernels import Implementation, implementation
from qlib.ops import OPS
from qlib.qconfig import PRESETS

ops = torch.ops.qlib
BOTH = list(Implementation)
TYPES = [torch.uint8, torch.int8, torch.int16]


def every(dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.arange(info.min, info.max + 1, dtype=torch.int32).to(dtype)


@st.composite
def targets(draw: st.DrawFn, unit: float) -> Target:
    dtype = draw(st.sampled_from(TYPES))
    info = torch.iinfo(dtype)
    narrow = draw(st.sampled_from([0, 0, 20]))
    qmin, qmax = info.min + narrow, info.max - narrow
    scale = unit * draw(st.sampled_from([1.0, 2.0, 1.3, 0.01, 100.0]))
    return Target(scale, draw(st.integers(qmin, qmax)), qmin, qmax, dtype)


@st.composite
def operands(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Tensor, float, int]:
    dtype = draw(st.sampled_from(TYPES))
    info, random = torch.iinfo(dtype), torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randint(info.min, info.max + 1, shape, generator=random).to(dtype)
    return x, draw(st.sampled_from([0.5, 0.02, 0.0371, 3.0])), draw(st.integers(info.min, info.max))


SHAPES = [((3, 5), (3, 5)), ((4, 1, 3), (2, 1)), ((0, 3), (3,)), ((), (7,)), ((1,), (1,))]


PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "add_relu": torch.add,
    "sub": torch.sub,
    "sub_relu": torch.sub,
    "mul": torch.mul,
    "mul_relu": torch.mul,
    "div": torch.div,
    "div_relu": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


def test_every_operator_of_two_tensors_is_tried() -> None:
    pairs = {op.short_name for op in OPS.values() if op.kernel in ("combine", "mul", "div")}
    assert pairs == set(PAIRS)


def real(x: tuple[Tensor, float, int]) -> Tensor:
    return (x[0].double() - x[2]) * x[1]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("op", sorted(PAIRS))
@given(data=st.data())
def test_two_tensors(name: str, op: str, data: st.DataObject) -> None:
    a, b = (data.draw(operands(shape)) for shape in data.draw(st.sampled_from(SHAPES)))
    value = PAIRS[op](real(a), real(b))
    size = value.abs() if op[:3] in ("mul", "div") else real(a).abs() + real(b).abs()
    unit = {"mul": a[1] * b[1] * 100, "div": a[1] / b[1] / 20}.get(op[:3], a[1] + b[1])
    target = data.draw(targets(unit))
    if op.startswith("div"):  # nothing over nothing is stored as the least integer
        nothing = torch.full((), (target.qmin - target.zero_point) * target.scale, dtype=torch.float64)
        value, size = torch.where(value.isnan(), nothing, value), size.nan_to_num(0.0)
    with implementation(name):
        found = getattr(ops, op)(*a, *b, *target.arguments)
    assert errors(found, value / target.scale, size / target.scale, target) == 0


@pytest.mark.parametrize("name", BOTH)
def test_ties_of_a_sum_go_to_the_even_neighbour(name: str) -> None:
    a = torch.arange(0, 200, dtype=torch.uint8)
    for zero_point in (0, 1, 3):
        with implementation(name):
            found = ops.add(a, 0.5, 0, torch.zeros(1, dtype=torch.uint8), 0.5, 0, 1.0, zero_point, 0, 255, torch.uint8)
        assert found.tolist() == [round(n / 2) + zero_point for n in range(200)]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("op", ["cat", "stack"])
@given(data=st.data())
def test_joins(name: str, op: str, data: st.DataObject) -> None:
    count, dim = data.draw(st.integers(1, 3)), data.draw(st.integers(-2, 1))
    pieces = [data.draw(operands((2, 3))) for _ in range(count)]
    target = data.draw(targets(max(scale for _, scale, _ in pieces)))
    tensors, scales, zero_points = map(list, zip(*pieces, strict=True))
    with implementation(name):
        found = getattr(ops, op)(tensors, scales, zero_points, dim, *target.arguments)
    value = getattr(torch, op)([real(piece) for piece in pieces], dim) / target.scale
    assert errors(found, value, value.abs(), target) == 0


@pytest.mark.parametrize("name", BOTH)
def test_pieces_of_different_lengths(name: str) -> None:
    a, b = torch.tensor([[10], [20]], dtype=torch.uint8), torch.tensor([[-3, 4], [5, -6]], dtype=torch.int8)
    with implementation(name):
        found = ops.cat([a, b], [0.5, 2.0], [4, 1], 1, 1.0, 8, 0, 255, torch.uint8)
    assert found.tolist() == [[3 + 8, -8 + 8, 6 + 8], [8 + 8, 8 + 8, max(0, -14 + 8)]]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_table_is_looked_up_from_the_least_integer_on(dtype: torch.dtype) -> None:
    x = every(dtype).flip(0)
    table = every(dtype).roll(3)
    expected = table[x.long() - torch.iinfo(dtype).min]
    for shape in ((-1,), (2, -1), (4, 8, -1)):
        assert torch.equal(ops.relu(x.reshape(shape), table), expected.reshape(shape))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 2, 2), (0, 3, 2)])
def test_a_table_for_each_channel(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    info = torch.iinfo(dtype)
    random = torch.Generator().manual_seed(1)
    x = torch.randint(info.min, info.max + 1, shape, generator=random).to(dtype)
    table = torch.randint(0, 256, (3, info.max - info.min + 1), dtype=torch.uint8, generator=random)
    found = ops.batch_norm(x, table)
    assert found.shape == shape
    for c in range(3):
        assert torch.equal(found[:, c], table[c][x[:, c].long() - info.min])


ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "relu": (),
    "relu6": (),
    "hardtanh": (-0.7, 0.4),
    "clamp": (None, 0.3),
    "hardswish": (),
    "elu": (0.7,),
    "leaky_relu": (0.2,),
    "silu": (),
    "gelu": (),
    "celu": (0.7,),
    "selu": (),
    "softplus": (2.0, 3.0),
    "mish": (),
    "threshold": (0.4, -1.5),
    "abs": (),
    "neg": (),
    "hardsigmoid": (),
    "sigmoid": (),
    "tanh": (),
    "exp": (),
    "expm1": (),
    "log": (),
    "log1p": (),
    "sqrt": (),
    "rsqrt": (),
    "reciprocal": (),
    "square": (),
    "pow": (3,),
    "erf": (),
    "sin": (),
    "cos": (),
    "log_sigmoid": (),
    "hardshrink": (0.4,),
    "softshrink": (0.3,),
    "clamp_min": (-0.3,),
    "clamp_max": (0.2,),
    "add_scalar": (0.3,),
    "sub_scalar": (0.3,),
    "mul_scalar": (-1.7,),
    "div_scalar": (-0.7,),
    "rsub_scalar": (1.3,),
}


def test_every_activation_is_tried() -> None:
    tables = {op.short_name for op in OPS.values() if op.kernel == "table"}
    assert tables == {*ACTIVATIONS, "add_scalar_relu", "sub_scalar_relu", "mul_scalar_relu", "div_scalar_relu"}


# Functions of positive numbers, which squares are.
POSITIVE = ("log", "log1p", "sqrt", "rsqrt")


def float_op(name: str) -> Any:
    packet = getattr(aten, name.removesuffix("_scalar"))
    if name == "pow":
        return packet.Tensor_Scalar
    return packet.Scalar if name.endswith("_scalar") else packet.default


@pytest.mark.parametrize("preset", ["default", "int8", "reduced_range"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_table_is_the_float_operator_rounded_once(name: str, preset: str) -> None:
    draft = Draft()
    layer = draft.linear(draft.input(64, 8), 8)
    # A relu would be fused with the layer itself.
    flat = draft.call(aten.flatten.using_ints, layer)
    moved = draft.call(aten.mul.Tensor, layer, layer) if name in POSITIVE else flat
    found = forms(draft.done(draft.call(float_op(name), moved, *ACTIVATIONS[name])), PRESETS[preset])
    node = next(n for n in found.final.graph.nodes if op_name(n) == f"qlib::{name}")
    table = attribute(found.final, str(node.args[1].target))
    maker = "qlib::mul" if name in POSITIVE else "qlib::linear"
    given = next(n for n in found.final.graph.nodes if op_name(n) == maker).args[-5:]
    wanted = next(n for n in found.final.graph.nodes if op_name(n).startswith("qlib::dequantize")).args
    stored = every(given[-1]).double()
    value = float_op(name)((stored - given[1]) * given[0], *ACTIVATIONS[name]) / wanted[1]
    qmin, qmax = {"default": (0, 255), "int8": (-128, 127), "reduced_range": (0, 127)}[preset]
    target = Target(wanted[1], wanted[2], qmin, qmax, given[-1])
    # What has no value (the logarithm of less than zero) is stored as the least integer.
    assert torch.equal(table.double(), exact(value, target).nan_to_num(qmin))


def test_a_relu_after_a_scalar_is_in_the_table() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(64, 8), 8)
    shifted = draft.call(aten.add.Scalar, layer, -0.4)
    found = forms(draft.done(draft.relu(shifted)))
    assert names(found.final).count("add_scalar_relu") == 1
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


def test_a_keyword_argument_is_in_the_table() -> None:
    draft = Draft()
    curve = draft.call(aten.gelu.default, draft.input(64, 8), kwargs={"approximate": "tanh"})
    found = forms(draft.done(curve))
    node = next(n for n in found.final.graph.nodes if op_name(n) == "qlib::gelu")
    scale, zero_point = node.args[0].args[1:3]
    target = Target(*next(n for n in found.final.graph.nodes if op_name(n) == "qlib::dequantize_per_tensor").args[1:])
    value = aten.gelu.default((every(torch.uint8).double() - zero_point) * scale, approximate="tanh") / target.scale
    assert torch.equal(attribute(found.final, str(node.args[1].target)).double(), exact(value, target))


@pytest.mark.parametrize("slopes", [1, 4])
@pytest.mark.parametrize("shape", [(9, 4), (2, 4, 3), (2, 4, 2, 3)])
def test_a_learned_slope_is_that_of_its_channel(slopes: int, shape: tuple[int, ...]) -> None:
    draft = Draft()
    curve = draft.call(aten.prelu.default, draft.input(*shape), draft.draw("act.weight", slopes))
    found = forms(draft.done(curve))
    assert names(found.final) == ["quantize_per_tensor", "prelu", "dequantize_per_tensor"]
    node = next(n for n in found.final.graph.nodes if op_name(n) == "qlib::prelu")
    assert attribute(found.final, str(node.args[1].target)).numel() == 256 * slopes
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))
