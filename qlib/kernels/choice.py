"""Choices element by element: between two quantized tensors, or between one and a number.

What is chosen is in steps of the result before it is rounded, so that each element is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlib.arith import requantize
from qlib.kernels.elementwise import OPERANDS, RESULT
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op


def _choose(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """``y = (a - a_zero_point) * a_scale`` where the condition holds, the same of b elsewhere, requantized."""

    def choose(condition, a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, *rest):  # type: ignore[no-untyped-def]
        left = (a.to(dtype) - a_zero_point) * (a_scale / y_scale)
        right = (b.to(dtype) - b_zero_point) * (b_scale / y_scale)
        return requantize(torch.where(condition, left, right), 1.0, *rest)

    return lambda op: choose


def _fill(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """``y = value`` where the mask is true, ``(x - x_zero_point) * x_scale`` elsewhere, requantized."""

    def fill(x, x_scale, x_zero_point, mask, value, y_scale, *rest):  # type: ignore[no-untyped-def]
        real = (x.to(dtype) - x_zero_point) * (x_scale / y_scale)
        return requantize(real.masked_fill(mask, value / y_scale), 1.0, *rest)

    return lambda op: fill


def _choose_arguments(site: Site) -> tuple[object, ...]:
    a, b = site.sources
    operands = (a.node, a.scale, a.zero_point, b.node, b.scale, b.zero_point)
    return (site.match.head.args[0], *operands, *site.bounded_result.arguments)


def _fill_arguments(site: Site) -> tuple[object, ...]:
    source, (mask, value) = site.sources[0], site.match.head.args[1:3]
    return (source.node, source.scale, source.zero_point, mask, value, *site.bounded_result.arguments)


def _choose_fake(op: Op) -> Implementation:
    def fake(condition: Tensor, a: Tensor, a_scale: float, a_zero_point: int, b: Tensor, *rest):  # type: ignore[no-untyped-def]
        return torch.where(condition, a.to(torch.float32), b.to(torch.float32)).to(rest[-1])

    return fake


def _fill_fake(op: Op) -> Implementation:
    def fake(x: Tensor, x_scale: float, x_zero_point: int, mask: Tensor, *rest):  # type: ignore[no-untyped-def]
        return x.to(torch.float32).masked_fill(mask, 0.0).to(rest[-1])

    return fake


CHOOSE = Kernel(
    "elements of one quantized tensor or of another",
    _choose_arguments,
    lambda op: f"(Tensor condition, {OPERANDS}, {RESULT}) -> Tensor",
    _choose(torch.float64),
    _choose(torch.float32),
    _choose_fake,
)
FILL = Kernel(
    "elements of a quantized tensor or a number",
    _fill_arguments,
    lambda op: f"(Tensor x, float x_scale, int x_zero_point, Tensor mask, Scalar value, {RESULT}) -> Tensor",
    _fill(torch.float64),
    _fill(torch.float32),
    _fill_fake,
)
