"""Normalisation, reductions and interpolation of integers, against formulas written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Draft, aten, forms, names
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor

from qlib.kernels import Implementation, implementation
from qlib.ops import OPS

ops = torch.ops.qlib
BOTH = list(Implementation)
TYPES = [torch.uint8, torch.int8, torch.int16]
EPS = 1e-5


@st.composite
def operands(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Tensor, float, int]:
    dtype = draw(st.sampled_from(TYPES))
    info, random = torch.iinfo(dtype), torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    width = draw(st.sampled_from([3, info.max - info.min + 1]))  # narrow data far from the zero point cancel
    x = (info.max - torch.randint(0, width, shape, generator=random)).to(dtype)
    return x, draw(st.sampled_from([0.5, 0.02, 0.0371, 3.0])), draw(st.integers(info.min, info.max))


@st.composite
def targets(draw: st.DrawFn, unit: float) -> Target:
    dtype = draw(st.sampled_from(TYPES))
    info = torch.iinfo(dtype)
    return Target(
        unit * draw(st.sampled_from([1.0, 0.013])), draw(st.integers(info.min, info.max)), info.min, info.max, dtype
    )


def real(x: tuple[Tensor, float, int]) -> Tensor:
    return (x[0].double() - x[2]) * x[1]


def standardised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean 0 and deviation 1 over `dims`, by the definition."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + EPS).sqrt()


def softmax(x: Tensor, dim: int) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def along(values: Tensor) -> Tensor:
    return values.double().reshape(1, -1, 1, 1)


WEIGHT, BIAS = torch.tensor([0.5, -2.0, 1.0, 3.0, 0.0, 1.5]), torch.tensor([4.0, 0.0, -1.0, 2.0, 0.25, 0.0])
SHAPE = (2, 6, 3, 5)
# What follows the data, and the same by formula.
CASES: dict[str, tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]] = {
    "layer_norm": (([3, 5], None, None, EPS, False), lambda x: standardised(x, (2, 3))),
    "group_norm": (
        (2, WEIGHT, BIAS, EPS, False),
        lambda x: standardised(x.unflatten(1, (2, 3)), (2, 3, 4)).flatten(1, 2) * along(WEIGHT) + along(BIAS),
    ),
    "instance_norm": (
        (WEIGHT, BIAS, None, None, True, 0.1, EPS, False),
        lambda x: standardised(x, (2, 3)) * along(WEIGHT) + along(BIAS),
    ),
    "softmax": ((1, None), lambda x: softmax(x, 1)),
    "log_softmax": ((1, None), lambda x: (x - x.amax(1, True)) - (x - x.amax(1, True)).exp().sum(1, True).log()),
    "rms_norm": (
        ([3, 5], None, EPS),
        lambda x: x / (x.square().mean((2, 3), keepdim=True) + EPS).sqrt(),
    ),
    "mean": (([1, 3], True), lambda x: x.sum((1, 3), keepdim=True) / 30),
    "sum": ((None, False), lambda x: x.sum()),
    "upsample_bilinear2d": (
        (None, True, [5 / 3, 1.0]),
        lambda x: torch.stack([x[:, :, 0], x[:, :, :2].mean(2), x[:, :, 1], x[:, :, 1:].mean(2), x[:, :, 2]], 2),
    ),
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("op", sorted(CASES))
@given(data=st.data())
def test_one_rounding_of_the_formula(name: str, op: str, data: st.DataObject) -> None:
    arguments, formula = CASES[op]
    x = data.draw(operands(SHAPE))
    value = formula(real(x))
    target = data.draw(targets(float(value.abs().amax()) / 100 or 1.0))
    with implementation(name):
        found = getattr(ops, op)(*x, *arguments, *target.arguments)
    # A magnitude of the results alone: nothing is allowed for terms that cancel.
    assert errors(found, value / target.scale, value.abs() / target.scale, target) == 0


def test_every_row_is_tried_here_or_is_an_interpolation() -> None:
    rows = {op.short_name for op in OPS.values() if op.kernel in ("computed", "homogeneous")}
    assert rows == {*CASES, "upsample_linear1d", "upsample_trilinear3d"}


@pytest.mark.parametrize("name", BOTH)
def test_linear_interpolation_in_other_dimensions(name: str) -> None:
    x = torch.tensor([[[0, 100, 50]]], dtype=torch.uint8)
    target = Target(1.0, 10)
    with implementation(name):
        found = ops.upsample_linear1d(x, 1.0, 10, [5], True, None, *target.arguments)
        cube = ops.upsample_trilinear3d(x[:, :, None, None], 1.0, 10, [1, 2, 5], True, None, *target.arguments)
    assert found.flatten().tolist() == [0, 50, 100, 75, 50]
    assert cube.shape == (1, 1, 1, 2, 5) and cube.flatten().tolist() == [0, 50, 100, 75, 50] * 2


@pytest.mark.parametrize("name", BOTH)
def test_ties_of_a_mean_go_to_the_even_neighbour_of_the_exact_value(name: str) -> None:
    x = torch.tensor([[0, 1], [1, 2], [2, 3], [5, 6]], dtype=torch.uint8)
    with implementation(name):
        found = ops.mean(x, 0.3, 0, [1], False, 0.3, 0, 0, 255, torch.uint8)
    assert found.tolist() == [0, 2, 2, 6]


@pytest.mark.parametrize("name", BOTH)
def test_long_sums_are_exact(name: str) -> None:
    x = torch.full((1, 300_001), 32767, dtype=torch.int16)
    with implementation(name):
        total = ops.sum(x, 1.0, -32768, [1], False, 300_001.0, -65535, -32768, 32767, torch.int16)
        mean = ops.mean(x, 1.0, -32768, [1], False, 1.0, -32768, -32768, 32767, torch.int16)
    assert total.tolist() == [0] and mean.tolist() == [32767]


def test_statistics_kept_by_the_module_stay_in_float() -> None:
    draft = Draft()
    x = draft.input(2, 3, 5)
    statistics = (draft.draw("norm.mean", 3), draft.constant("norm.var", torch.ones(3)))
    norm = draft.call(aten.instance_norm.default, x, None, None, *statistics, False, 0.1, EPS, False)
    assert names(forms(draft.done(norm)).final) == ["instance_norm"]


def test_a_softmax_has_the_steps_of_its_interval() -> None:
    draft = Draft()
    found = forms(draft.done(draft.call(aten.softmax.int, draft.linear(draft.input(4, 6), 3), 1)))
    assert names(found.final) == ["quantize_per_tensor", "linear", "softmax", "dequantize_per_tensor"]
    assert next(n for n in found.final.graph.nodes if n.name.startswith("dequantize")).args[1:] == (1 / 256, 0)
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))
