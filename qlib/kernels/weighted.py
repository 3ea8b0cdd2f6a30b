"""Linear layers and convolutions on integers.

    acc = sum((x - x_zero_point) * (w - w_zero_point)) + bias            exact integers
    y   = clamp(round_half_even(acc * (x_scale * w_scale / y_scale)) + y_zero_point, qmin, qmax)

The reference does the first line in int64 and the second in float64. The fast form hands both to oneDNN's int8
primitives where these can take them, and else computes the sums in float64, which is exact below 2**53.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qlib.arith import broadcast, qparams_of_tensor, quantize, requantize
from qlib.kernels import onednn
from qlib.kernels.boundary import storage_spec
from qlib.kernels.kernel import Implementation, Kernel, Result, Site
from qlib.kernels.layer import Layer, Weight, Window
from qlib.ops import Op

WEIGHT = "Tensor w, Tensor w_scale, Tensor w_zero_point, Tensor? bias"
DYNAMIC_RESULT = "int qmin, int qmax, bool symmetric, ScalarType dtype"
RESULT = "float y_scale, int y_zero_point, int qmin, int qmax, ScalarType dtype"
WINDOW = "int[] stride, int[] padding, int[] dilation, int groups"

Sum = Callable[[Tensor, Tensor, Window | None], Tensor]
Run = Callable[[Layer, Result], Tensor]


def patches(x: Tensor, kernel: tuple[int, ...], window: Window) -> Tensor:
    """The windows of `x` (N, C, *spatial), zero-padded, as a view (N, C, *output, *kernel)."""
    padding = [side for p in reversed(window.padding) for side in (p, p)]
    x = torch.nn.functional.pad(x, padding)
    for d, (size, stride, dilation) in enumerate(zip(kernel, window.stride, window.dilation, strict=True)):
        x = x.unfold(2 + d, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x


def integer_sum(x: Tensor, w: Tensor, window: Window | None) -> Tensor:
    """The sums of products in int64, as the definition says; `x` and `w` have their zero points taken off already."""
    x, w = x.to(torch.int64), w.to(torch.int64)
    if window is None:
        return (x.unsqueeze(-2) * w).sum(-1)
    outputs, spatial = w.shape[0] // window.groups, len(window.stride)
    views = patches(x, tuple(w.shape[2:]), window)
    views = views.unflatten(1, (window.groups, -1)).movedim(2, 2 + spatial).flatten(2 + spatial)
    columns = views.flatten(2, 1 + spatial)
    rows = w.reshape(window.groups, outputs, -1)
    acc = torch.stack([columns[:, g] @ rows[g].t() for g in range(window.groups)], 1)
    y: Tensor = acc.movedim(3, 2).flatten(1, 2).unflatten(2, views.shape[2 : 2 + spatial])
    return y


_CONVOLUTIONS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)


def float64_sum(x: Tensor, w: Tensor, window: Window | None) -> Tensor:
    """The same sums in float64: exact, since no partial sum of 8- or 16-bit products reaches 2**53."""
    x, w = x.to(torch.float64), w.to(torch.float64)
    if window is None:
        return x @ w.t()
    convolve = _CONVOLUTIONS[len(window.stride) - 1]
    y: Tensor = convolve(x, w, None, window.stride, window.padding, window.dilation, window.groups)
    return y


def accumulate(layer: Layer, summed: Sum) -> Tensor:
    """``sum((x - x_zero_point) * (w - w_zero_point))`` in float64, without the bias, by the given way of summing."""
    weight = layer.weight
    shifted = weight.w.to(torch.int32) - broadcast(weight.zero_point, weight.axis, weight.w.dim())
    return summed(layer.x.to(torch.int32) - layer.zero_point, shifted, layer.window).to(torch.float64)


def exactly(summed: Sum) -> Run:
    """How to run a layer with exact sums and the rest in float64."""

    def run(layer: Layer, result: Result) -> Tensor:
        acc, weight = accumulate(layer, summed), layer.weight
        if weight.bias is not None:
            acc = acc + layer.along_channels(weight.bias.to(torch.float64))
        multiplier = layer.scale * layer.along_channels(weight.scale.to(torch.float64)) / result.scale
        return requantize(acc, multiplier, *result.arguments[1:])

    return run


_reference_run = exactly(integer_sum)
_portable_run = exactly(float64_sum)


def _fast_run(layer: Layer, result: Result) -> Tensor:
    return onednn.run(layer, result) if onednn.suits(layer, result.dtype) else _portable_run(layer, result)


def _linear(run: Run) -> Callable[[Op], Implementation]:
    def linear(x: Tensor, scale: float, zero_point: int, *rest: Any) -> Tensor:
        return run(Layer(x, scale, zero_point, Weight(*rest[:4])), Result(*rest[4:]))

    return lambda op: linear


def _conv(run: Run) -> Callable[[Op], Implementation]:
    def conv(x: Tensor, scale: float, zero_point: int, *rest: Any) -> Tensor:
        weight = Weight(*rest[:4])
        batched = x if x.dim() == weight.w.dim() else x.unsqueeze(0)
        y = run(Layer(batched, scale, zero_point, weight, _window(*rest[4:8])), Result(*rest[8:]))
        return y if batched is x else y.squeeze(0)

    return lambda op: conv


def _window(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> Window:
    return Window(tuple(stride), tuple(padding), tuple(dilation), groups)


def to_float(summed: Sum) -> Callable[[Layer], Tensor]:
    """A layer with a float32 result, exact but for its last rounding."""

    def run(layer: Layer) -> Tensor:
        y = accumulate(layer, summed) * (layer.scale * layer.along_channels(layer.weight.scale.double()))
        y = y if layer.weight.bias is None else y + layer.along_channels(layer.weight.bias.double())
        return y.to(torch.float32)

    return run


_reference_to_float = to_float(integer_sum)
_portable_to_float = to_float(float64_sum)


def _fast_to_float(layer: Layer) -> Tensor:
    suits = onednn.suits(layer, torch.uint8)
    return onednn.run_to_float(layer) if suits else _portable_to_float(layer)


def _linear_dynamic(run: Callable[[Layer], Tensor]) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        relu = op.chain[-1] == "aten::relu"

        def linear_dynamic(x: Tensor, *rest: Any) -> Tensor:
            qparams = qparams_of_tensor(x, storage_spec(*rest[4:]))
            quantized = quantize(x, qparams)
            y = run(Layer(quantized, float(qparams.scale), int(qparams.zero_point), Weight(*rest[:4])))
            return y.clamp_min(0.0) if relu else y

        return linear_dynamic

    return build


def _conv_dynamic(run: Callable[[Layer], Tensor]) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        relu = op.chain[-1] == "aten::relu"

        def conv_dynamic(x: Tensor, *rest: Any) -> Tensor:
            weight, qparams = Weight(*rest[:4]), qparams_of_tensor(x, storage_spec(*rest[8:]))
            quantized = quantize(x if x.dim() == weight.w.dim() else x.unsqueeze(0), qparams)
            window, zero_point = _window(*rest[4:8]), int(qparams.zero_point)
            y = run(Layer(quantized, float(qparams.scale), zero_point, weight, window))
            y = y if x.dim() == y.dim() else y.squeeze(0)
            return y.clamp_min(0.0) if relu else y

        return conv_dynamic

    return build


def weighted_arguments(site: Site) -> tuple[object, ...]:
    """Input, weight and result in integers, and between them the float operator's arguments after the bias."""
    source, head, op = site.sources[0], site.match.head, site.match.op
    assert op.bias is not None
    rest = head.args[op.bias + 1 :]
    result = site.bounded_result.arguments
    return (source.node, source.scale, source.zero_point, *site.weight, site.bias, *rest, *result)


def dynamic_arguments(site: Site) -> tuple[object, ...]:
    """Float input, weight, the float operator's arguments after the bias, and how the input is quantized."""
    op = site.match.op
    assert site.runtime is not None and op.bias is not None
    return (site.runtime.node, *site.weight, site.bias, *site.match.head.args[op.bias + 1 :], *site.runtime.arguments)


def _linear_fake(op: Op) -> Implementation:
    def fake(x: Tensor, scale: float, zero_point: int, w: Tensor, *rest: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=rest[-1])

    return fake


def linear_dynamic_fake(op: Op) -> Implementation:
    """Shape and dtype of the result of a linear layer that stays in float."""

    def fake(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)

    return fake


def _conv_shape(x: Tensor, w: Tensor, window: Window) -> tuple[int, ...]:
    stride, dims = window.stride, len(window.stride)
    spatial = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x.shape[-dims:], window.padding, window.dilation, w.shape[2:], stride, strict=True)
    ]
    return (*x.shape[: x.dim() - dims - 1], w.shape[0], *spatial)


def _conv_fake(op: Op) -> Implementation:
    def fake(x: Tensor, scale: float, zero_point: int, w: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(_conv_shape(x, w, _window(*rest[3:7])), dtype=rest[-1])

    return fake


def _conv_dynamic_fake(op: Op) -> Implementation:
    def fake(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(_conv_shape(x, w, _window(*rest[3:7])), dtype=torch.float32)

    return fake


LINEAR = Kernel(
    "linear layer on integers",
    weighted_arguments,
    lambda op: f"(Tensor x, float x_scale, int x_zero_point, {WEIGHT}, {RESULT}) -> Tensor",
    _linear(_reference_run),
    _linear(_fast_run),
    _linear_fake,
)
LINEAR_DYNAMIC = Kernel(
    "linear layer that quantizes its float input by its range",
    dynamic_arguments,
    lambda op: f"(Tensor x, {WEIGHT}, {DYNAMIC_RESULT}) -> Tensor",
    _linear_dynamic(_reference_to_float),
    _linear_dynamic(_fast_to_float),
    linear_dynamic_fake,
)
CONV = Kernel(
    "convolution on integers",
    weighted_arguments,
    lambda op: f"(Tensor x, float x_scale, int x_zero_point, {WEIGHT}, {WINDOW}, {RESULT}) -> Tensor",
    _conv(_reference_run),
    _conv(_fast_run),
    _conv_fake,
)
CONV_DYNAMIC = Kernel(
    "convolution that quantizes its float input by its range",
    dynamic_arguments,
    lambda op: f"(Tensor x, {WEIGHT}, {WINDOW}, {DYNAMIC_RESULT}) -> Tensor",
    _conv_dynamic(_reference_to_float),
    _conv_dynamic(_fast_to_float),
    _conv_dynamic_fake,
)
