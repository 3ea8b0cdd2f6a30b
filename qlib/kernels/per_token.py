"""Linear layers whose input is quantized row by row, each by the range that it has at run time.

acc = sum(x * w) - x_zero_point * sum(w)                      exact integers, w without its zero point
y   = acc * (x_scale * w_scale) + bias                        float32, x_scale and x_zero_point by row
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qlib.arith import broadcast, qparams_of_rows, quantize
from qlib.kernels.boundary import storage_spec
from qlib.kernels.kernel import Implementation, Kernel
from qlib.kernels.layer import Weight
from qlib.kernels.weighted import (
    DYNAMIC_RESULT,
    WEIGHT,
    dynamic_arguments,
    float64_sum,
    integer_sum,
    linear_dynamic_fake,
)
from qlib.ops import Op

# Neither `sum(x * w)` nor `x_zero_point * sum(w)` of so many 8-bit products leaves int32.
MOST_IN_INT32 = 2**31 // (255 * 128) // 2

Sums = Callable[[Tensor, Tensor, Weight], Tensor]


def _wide(summed: Callable[[Tensor, Tensor, None], Tensor]) -> Sums:
    """The sums over differences from both zero points, in a type that is wide enough for any of them."""

    def sums(x: Tensor, zero_point: Tensor, weight: Weight) -> Tensor:
        shifted = weight.w.to(torch.int32) - broadcast(weight.zero_point, 0, weight.w.dim())
        return summed(x.to(torch.int32) - zero_point, shifted, None).to(torch.float64)

    return sums


_plain_sums = _wide(integer_sum)
_portable_sums = _wide(float64_sum)


@cache
def exact_products() -> bool:
    """Multiply the extreme values once: without VNNI instructions the sums of two products may saturate at 16 bits."""
    x = torch.full((32, 64), 255, dtype=torch.uint8)
    w = torch.full((32, 64), -128, dtype=torch.int8)
    return bool((torch._int_mm(x, w.t()) == -255 * 128 * 64).all())


def _suits(x: Tensor, weight: Weight) -> bool:
    """Whether the product of 8-bit matrices computes this rightly: it needs more than one column, and some data."""
    eight_bits = x.dtype in (torch.uint8, torch.int8) and weight.w.dtype == torch.int8
    fits = 1 < x.shape[-1] <= MOST_IN_INT32 and x.numel() > 0 and weight.w.numel() > 0
    return eight_bits and fits and not bool(weight.zero_point.any()) and exact_products()


def _quick_sums(x: Tensor, zero_point: Tensor, weight: Weight) -> Tensor:
    if not _suits(x, weight):
        return _portable_sums(x, zero_point, weight)
    acc = torch._int_mm(x.reshape(-1, x.shape[-1]).contiguous(), weight.w.contiguous().t())
    acc = acc.reshape(*x.shape[:-1], -1)
    if bool(zero_point.any()):
        acc = acc - zero_point * weight.w.sum(1, dtype=torch.int32)
    return acc


def _linear_per_token(sums: Sums, dtype: torch.dtype) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        relu = op.chain[-1] == "aten::relu"

        def linear_per_token(x: Tensor, *rest: Any) -> Tensor:
            weight = Weight(*rest[:4])
            rows = qparams_of_rows(x, storage_spec(*rest[4:]))
            acc = sums(quantize(x, rows), rows.zero_point, weight)
            y = acc.to(dtype) * (rows.scale.to(dtype) * weight.scale.to(dtype))
            y = (y if weight.bias is None else y + weight.bias).to(torch.float32)
            return y.clamp_min(0.0) if relu else y

        return linear_per_token

    return build


LINEAR_PER_TOKEN = Kernel(
    "linear layer that quantizes each row of its float input by its range",
    dynamic_arguments,
    lambda op: f"(Tensor x, {WEIGHT}, {DYNAMIC_RESULT}) -> Tensor",
    _linear_per_token(_plain_sums, torch.float64),
    _linear_per_token(_quick_sums, torch.float32),
    linear_dynamic_fake,
)
