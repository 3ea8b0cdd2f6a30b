"""Gradients through rounding: quantize and dequantize as one function that autograd can go through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from qlib.arith import STORAGE, along, bias_of_layer, dequantize, saturate, unclamped
from qlib.qparams import QParams


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``dequantize(quantize(x))``, to the bit, in the shape and dtype of `x`.

    Gradient with respect to `x`, straight through (Jacob et al. 2018, section 3): 1 where
    ``qmin <= round_half_even(x / scale) + zero_point <= qmax``, 0 where the rounded value saturates or is NaN.
    """
    result: Tensor = _StraightThrough.apply(x, qparams)
    return result


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: Tensor, qparams: QParams) -> Tensor:
    """As `fake_quantize`, with gradients for the scale and the zero point too.

    `qparams` holds the values that are used: `scale`, and `zero_point` rounded. With the clamped integer ``q``,
    ``z = zero_point``, and ``g = 1 / sqrt(N * qmax)`` where N counts the elements of `x` that share a scale:

        d/dscale      = g * (q - z - x / scale)  in range;  g * (q - z)  where saturated   (Esser et al. 2020, eq. 3)
        d/dzero_point = 0                        in range;  -g * scale   where saturated   (Bhalgat et al. 2020)

    Both are summed over the elements that share the parameter; NaN counts as saturated.
    """
    result: Tensor = _Learned.apply(x, scale, zero_point, qparams)
    return result


def fake_quantize_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The bias as conversion stores it, in int32 steps of the product of both scales; the gradient is 1."""
    result: Tensor = _Bias.apply(bias, input_scale, weight_scale)
    return result


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, qparams: QParams) -> Tensor:
        rounded = unclamped(x, qparams)
        ctx.save_for_backward((rounded >= qparams.qmin) & (rounded <= qparams.qmax))
        return dequantize(saturate(rounded, qparams.qmin, qparams.qmax, STORAGE[qparams.dtype]), qparams, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


class _Learned(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qparams: QParams) -> Tensor:
        rounded = unclamped(x, qparams)
        q = saturate(rounded, qparams.qmin, qparams.qmax, STORAGE[qparams.dtype])
        ctx.save_for_backward(x, q, (rounded >= qparams.qmin) & (rounded <= qparams.qmax))
        ctx.qparams = qparams
        return dequantize(q, qparams, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, q, inside = ctx.saved_tensors
        gradient, qparams = gradients[0], ctx.qparams
        scale = along(qparams.scale, qparams, x).to(x.dtype)
        centred = q.to(x.dtype) - along(qparams.zero_point, qparams, x)
        by_scale = gradient * torch.where(inside, centred - x / scale, centred)
        by_zero_point = torch.where(inside, 0.0, -gradient * scale)
        factor = (max(x.numel() // qparams.scale.numel(), 1) * qparams.qmax) ** -0.5
        sums = (factor * _sum_along(value, qparams.axis) for value in (by_scale, by_zero_point))
        return gradient * inside, *(value.to(qparams.scale.dtype) for value in sums), None


class _Bias(Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
        return dequantize(*bias_of_layer(bias, input_scale, weight_scale))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


def _sum_along(values: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return values.sum()
    others = [d for d in range(values.dim()) if d != axis % values.dim()]
    return values.sum(others) if others else values
