"""Products of two quantized matrices, against exact sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor

from qlib.kernels import Implementation, implementation
from qlib.kernels.matmul import MOST_IN_FLOAT32

ops = torch.ops.qlib
BOTH = list(Implementation)
SHAPES = [
    ((2, 3, 5), (2, 5, 4)),
    ((3, 5), (2, 5, 4)),
    ((5,), (5,)),
    ((2, 3, 5), (5,)),
    ((5,), (2, 5, 3)),
    ((2, 1, 3, 5), (4, 5, 1)),
    ((0, 5), (5, 3)),
    ((3, 0), (0, 3)),
]


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", BOTH)
@given(
    shapes=st.sampled_from(SHAPES),
    types=st.tuples(*[st.sampled_from([torch.uint8, torch.int8, torch.int16])] * 2),
    zero_points=st.tuples(st.integers(-128, 127), st.integers(0, 255)),
    seed=st.integers(0, 2**20),
)
def test_product(
    name: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    types: tuple[torch.dtype, torch.dtype],
    zero_points: tuple[int, int],
    seed: int,
) -> None:
    a, b = (integers(shape, dtype, seed + i) for i, (shape, dtype) in enumerate(zip(shapes, types, strict=True)))
    left, right = a.double() - zero_points[0], b.double() - zero_points[1]
    size = left.abs() @ right.abs()
    scale = max(float(size.mean()) if size.numel() else 1.0, 1.0) * 0.02 * 0.3 / 50
    target = Target(scale, 100)
    with implementation(name):
        found = ops.matmul(a, 0.02, zero_points[0], b, 0.3, zero_points[1], *target.arguments)
    multiplier = 0.02 * 0.3 / scale
    assert errors(found, left @ right * multiplier, size * multiplier, target) == 0


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("length", [MOST_IN_FLOAT32, MOST_IN_FLOAT32 + 1, 5000])
def test_long_sums_of_extremes_are_exact(name: str, length: int) -> None:
    a = torch.full((1, length), 255, dtype=torch.uint8)
    b = torch.full((length, 1), 255, dtype=torch.uint8)
    b[0] = 254
    total = 255 * 255 * length - 255
    with implementation(name):
        # Steps of one: what is stored is how far the sum is from the one that is expected.
        found = ops.matmul(a, 1.0, 0, b, 1.0, 0, 1.0, 0, -(2**31), 2**31 - 1, torch.int32)
    assert int(found) == total
