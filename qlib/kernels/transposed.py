"""Transposed convolutions on integers: each input element spreads the kernel over a window of the output.

The reference puts ``stride - 1`` zeros between the elements and convolves with the mirrored kernel, in int64. The fast
form adds up in float64, which is exact below 2**53.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qlib.arith import qparams_of_tensor, quantize
from qlib.kernels.boundary import storage_spec
from qlib.kernels.kernel import Implementation, Kernel, Result
from qlib.kernels.layer import Layer, Weight, Window
from qlib.kernels.weighted import (
    DYNAMIC_RESULT,
    RESULT,
    WEIGHT,
    Run,
    dynamic_arguments,
    exactly,
    integer_sum,
    to_float,
    weighted_arguments,
)
from qlib.ops import Op

WINDOW = "int[] stride, int[] padding, int[] output_padding, int groups, int[] dilation"

_TRANSPOSED = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)


def spread_sum(x: Tensor, w: Tensor, window: Window | None) -> Tensor:
    """The sums of products in int64, by a plain convolution; `w` is (inputs, outputs / groups, *kernel)."""
    assert window is not None
    dims = len(window.stride)
    steps = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], window.stride, strict=True)]
    apart = x.new_zeros((*x.shape[:2], *(max(step, 0) for step in steps)))
    places = tuple(slice(None, None, stride) for stride in window.stride)
    apart[(slice(None), slice(None), *places)] = x
    sides = [d * (k - 1) - p for d, k, p in zip(window.dilation, w.shape[2:], window.padding, strict=True)]
    far = [side + extra for side, extra in zip(sides, window.output_padding, strict=True)]
    apart = torch.nn.functional.pad(apart, [n for pair in zip(sides[::-1], far[::-1], strict=True) for n in pair])
    mirrored = w.unflatten(0, (window.groups, -1)).transpose(1, 2).flatten(0, 1).flip(list(range(2, 2 + dims)))
    return integer_sum(apart, mirrored, Window((1,) * dims, (0,) * dims, window.dilation, window.groups))


def float64_spread_sum(x: Tensor, w: Tensor, window: Window | None) -> Tensor:
    """The same sums in float64."""
    assert window is not None
    x, w = x.to(torch.float64), w.to(torch.float64)
    geometry = (window.stride, window.padding, window.output_padding, window.groups, window.dilation)
    y: Tensor = _TRANSPOSED[len(window.stride) - 1](x, w, None, *geometry)
    return y


def _layer(x: Tensor, scale: float, zero_point: int, *rest: Any) -> Layer:
    """A layer of a batch, from the arguments that `WEIGHT` and `WINDOW` name."""
    w, w_scale, w_zero_point, bias, stride, padding, output_padding, groups, dilation = rest
    weight = Weight(w, w_scale, w_zero_point, bias, axis=1)
    window = Window(tuple(stride), tuple(padding), tuple(dilation), groups, tuple(output_padding))
    return Layer(x if x.dim() == len(stride) + 2 else x.unsqueeze(0), scale, zero_point, weight, window)


def _conv_transpose(run: Run) -> Callable[[Op], Implementation]:
    def conv_transpose(x: Tensor, scale: float, zero_point: int, *rest: Any) -> Tensor:
        y = run(_layer(x, scale, zero_point, *rest[:9]), Result(*rest[9:]))
        return y if x.dim() == y.dim() else y.squeeze(0)

    return lambda op: conv_transpose


def _conv_transpose_dynamic(run: Callable[[Layer], Tensor]) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        relu = op.chain[-1] == "aten::relu"

        def conv_transpose_dynamic(x: Tensor, *rest: Any) -> Tensor:
            qparams = qparams_of_tensor(x, storage_spec(*rest[9:]))
            y = run(_layer(quantize(x, qparams), float(qparams.scale), int(qparams.zero_point), *rest[:9]))
            y = y if x.dim() == y.dim() else y.squeeze(0)
            return y.clamp_min(0.0) if relu else y

        return conv_transpose_dynamic

    return build


def _shape(x: Tensor, w: Tensor, *window: Any) -> tuple[int, ...]:
    stride, padding, output_padding, groups, dilation = window
    spatial = [
        (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for size, s, p, d, k, extra in zip(
            x.shape[-len(stride) :], stride, padding, dilation, w.shape[2:], output_padding, strict=True
        )
    ]
    return (*x.shape[: x.dim() - len(stride) - 1], w.shape[1] * groups, *spatial)


def _fake(op: Op) -> Implementation:
    def fake(x: Tensor, scale: float, zero_point: int, w: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(_shape(x, w, *rest[3:8]), dtype=rest[-1])

    return fake


def _dynamic_fake(op: Op) -> Implementation:
    def fake(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(_shape(x, w, *rest[3:8]), dtype=torch.float32)

    return fake


CONV_TRANSPOSE = Kernel(
    "transposed convolution on integers",
    weighted_arguments,
    lambda op: f"(Tensor x, float x_scale, int x_zero_point, {WEIGHT}, {WINDOW}, {RESULT}) -> Tensor",
    _conv_transpose(exactly(spread_sum)),
    _conv_transpose(exactly(float64_spread_sum)),
    _fake,
)
CONV_TRANSPOSE_DYNAMIC = Kernel(
    "transposed convolution that quantizes its float input by its range",
    dynamic_arguments,
    lambda op: f"(Tensor x, {WEIGHT}, {WINDOW}, {DYNAMIC_RESULT}) -> Tensor",
    _conv_transpose_dynamic(to_float(spread_sum)),
    _conv_transpose_dynamic(to_float(float64_spread_sum)),
    _dynamic_fake,
)
