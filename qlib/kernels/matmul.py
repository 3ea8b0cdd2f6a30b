"""Matrix products of two quantized tensors.

acc = sum((a - a_zero_point) * (b - b_zero_point))            exact integers
y   = clamp(round_half_even(acc * (a_scale * b_scale / y_scale)) + y_zero_point, qmin, qmax)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qlib.arith import requantize
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op

OPERANDS = "Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point"
RESULT = "float y_scale, int y_zero_point, int qmin, int qmax, ScalarType dtype"

# Sums of so many products of two 8-bit differences are whole numbers below 2**24, which float32 holds exactly.
MOST_IN_FLOAT32 = 2**24 // 255**2

_EIGHT_BITS = (torch.uint8, torch.int8)


def _plain_type(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.int64


def _quick_type(a: Tensor, b: Tensor) -> torch.dtype:
    """The fastest type that holds every partial sum exactly."""
    short = a.dim() > 0 and a.shape[-1] <= MOST_IN_FLOAT32
    return torch.float32 if short and a.dtype in _EIGHT_BITS and b.dtype in _EIGHT_BITS else torch.float64


def _matmul(choose: Callable[[Tensor, Tensor], torch.dtype]) -> Callable[[Op], Implementation]:
    def run(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, *rest):  # type: ignore[no-untyped-def]
        dtype = choose(a, b)
        acc = (a.to(dtype) - a_zero_point) @ (b.to(dtype) - b_zero_point)
        return requantize(acc.to(torch.float64), a_scale * b_scale / y_scale, *rest)

    return lambda op: run


def _arguments(site: Site) -> tuple[object, ...]:
    a, b = site.sources
    return (a.node, a.scale, a.zero_point, b.node, b.scale, b.zero_point, *site.bounded_result.arguments)


def _fake(op: Op) -> Implementation:
    def fake(a: Tensor, a_scale: float, a_zero_point: int, b: Tensor, *rest: Any) -> Tensor:
        return (a.to(torch.float32) @ b.to(torch.float32)).to(rest[-1])

    return fake


MATMUL = Kernel(
    "matrix product of two quantized tensors",
    _arguments,
    lambda op: f"({OPERANDS}, {RESULT}) -> Tensor",
    _matmul(_plain_type),
    _matmul(_quick_type),
    _fake,
)
