"""Choices between tensors, fills with a number and softmax behind a mask, on integers against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor

from qlib.kernels import Implementation, implementation

ops = torch.ops.qlib
BOTH = list(Implementation)
TYPES = [torch.uint8, torch.int8, torch.int16]
SHAPES = [((3, 5), (3, 5), (3, 5)), ((4, 1, 3), (2, 1), (3,)), ((0, 3), (3,), (1,)), ((), (7,), ()), ((2, 6), (), (6,))]
Operand = tuple[Tensor, float, int]


@st.composite
def operands(draw: st.DrawFn, shape: tuple[int, ...]) -> Operand:
    dtype = draw(st.sampled_from(TYPES))
    info, random = torch.iinfo(dtype), torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randint(info.min, info.max + 1, shape, generator=random).to(dtype)
    return x, draw(st.sampled_from([0.5, 0.02, 0.0371, 3.0])), draw(st.integers(info.min, info.max))


@st.composite
def targets(draw: st.DrawFn, unit: float) -> Target:
    dtype = draw(st.sampled_from(TYPES))
    info = torch.iinfo(dtype)
    zero_point = draw(st.integers(info.min, info.max))
    return Target(unit * draw(st.sampled_from([1.0, 1.3, 0.01])), zero_point, info.min, info.max, dtype)


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**20)))) > 0.5


def real(x: Operand) -> Tensor:
    return (x[0].double() - x[2]) * x[1]


@pytest.mark.parametrize("name", BOTH)
@given(data=st.data(), shapes=st.sampled_from(SHAPES))
def test_one_of_two_tensors(name: str, data: st.DataObject, shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = (data.draw(operands(shape)) for shape in shapes[:2])
    condition, target = data.draw(masks(shapes[2])), data.draw(targets(a[1] + b[1]))
    with implementation(name):
        found = ops.where(condition, *a, *b, *target.arguments)
    value = torch.where(condition, real(a), real(b)) / target.scale
    assert errors(found, value, value.abs(), target) == 0


@pytest.mark.parametrize("name", BOTH)
@given(data=st.data(), shapes=st.sampled_from(SHAPES), number=st.sampled_from([0, -1.5, 7, 1e6]))
def test_a_number_where_a_mask_is_true(
    name: str, data: st.DataObject, shapes: tuple[tuple[int, ...], ...], number: float
) -> None:
    x, mask = data.draw(operands(shapes[0])), data.draw(masks(shapes[2]))
    target = data.draw(targets(x[1]))
    with implementation(name):
        found = ops.masked_fill(*x, mask, number, *target.arguments)
    value = torch.where(mask, number, real(x)) / target.scale
    assert errors(found, value, value.abs(), target) == 0


def probabilities(scores: Tensor, dim: int) -> Tensor:
    """Zero where everything is hidden."""
    highest = scores.amax(dim, keepdim=True).clamp(min=-1e300)
    powers = (scores - highest).exp()
    return (powers / powers.sum(dim, keepdim=True)).nan_to_num(0.0)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("safe", ["", "safe_"])
@given(data=st.data(), dim=st.sampled_from([1, -1]))
def test_what_is_hidden_has_no_probability(name: str, safe: str, data: st.DataObject, dim: int) -> None:
    x, mask = data.draw(operands((2, 4, 5))), data.draw(masks((4, 5)))
    mask = mask.index_fill(0, torch.tensor([1]), True) if safe and dim == -1 else mask
    bias = torch.where(mask, -torch.inf, torch.linspace(-3, 3, 20).reshape(4, 5))
    if not safe:  # nothing is hidden whole
        mask, bias = mask & ~torch.eye(4, 5, dtype=torch.bool), bias.nan_to_num(neginf=-1e4)
        mask[:, 4] &= dim == -1
    target = Target(1 / 256, 0)
    with implementation(name):
        hidden = getattr(ops, f"masked_fill_{safe}softmax")(*x, mask, -torch.inf, dim, *target.arguments)
        moved = getattr(ops, f"add_{safe}softmax")(*x, bias, dim, *target.arguments)
    for found, scores in ((hidden, real(x).masked_fill(mask, -torch.inf)), (moved, real(x) + bias.double())):
        value = probabilities(scores, dim) * 256
        assert errors(found, value, value, target) == 0
