"""Linear layers and convolutions on integers.

    acc = sum((x - x_zero_point) * (w - w_zero_point)) + bias            exact integers
    y   = clamp(round_half_even(acc * (x_scale * w_scale / y_scale)) + y_zero_point, qmin, qmax)

The reference does the first line in int64 and the second in float64. The fast form hands both to oneDNN's int8
primitives where these can take them, and else computes the sums in float64, which is exact below 2**53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.arith import broadcast, qparams_of_tensor, quantize, requantize
from qlib.kernels import onednn
from qlib.kernels.boundary import storage_spec
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op

WEIGHT = "Tensor w, Tensor w_scale, Tensor w_zero_point, Tensor? bias"
RESULT = "float y_scale, int y_zero_point, int qmin, int qmax, ScalarType dtype"
WINDOW = "int[] stride, int[] padding, int[] dilation, int groups"


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution, one entry per spatial dimension; None stands for a linear layer."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


Sum = Callable[[Tensor, Tensor, Window | None], Tensor]


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
    groups, outputs = window.groups, w.shape[0] // window.groups
    views = patches(x, tuple(w.shape[2:]), window)
    spatial = len(window.stride)
    views = views.unflatten(1, (groups, -1)).movedim(2, 2 + spatial).flatten(2 + spatial)
    columns = views.flatten(2, 1 + spatial)
    rows = w.reshape(groups, outputs, -1)
    acc = torch.stack([columns[:, g] @ rows[g].t() for g in range(groups)], 1)
    return acc.movedim(3, 2).flatten(1, 2).unflatten(2, views.shape[2 : 2 + spatial])


_CONVOLUTIONS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)


def float64_sum(x: Tensor, w: Tensor, window: Window | None) -> Tensor:
    """The same sums in float64: exact, since no partial sum of 8- or 16-bit products reaches 2**53."""
    x, w = x.to(torch.float64), w.to(torch.float64)
    if window is None:
        return x @ w.t()
    convolve = _CONVOLUTIONS[len(window.stride) - 1]
    return convolve(x, w, None, window.stride, window.padding, window.dilation, window.groups)


def accumulate(
    x: Tensor, x_zero_point: int | Tensor, w: Tensor, w_zero_point: Tensor, window: Window | None, summed: Sum
) -> Tensor:
    """``sum((x - x_zero_point) * (w - w_zero_point))``, by the given way of summing; output channels along axis 1 or last."""
    shifted = x.to(torch.int32) - x_zero_point
    return summed(shifted, w.to(torch.int32) - broadcast(w_zero_point, 0, w.dim()), window)


def channels(values: Tensor, window: Window | None) -> Tensor:
    """Shape one value per output channel so that it lies along the output's channel axis."""
    return values if window is None or values.dim() == 0 else values.reshape(-1, *[1] * len(window.stride))


def _exact(summed: Sum) -> Callable[..., Tensor]:
    """A weighted operator with exact sums and the rest in float64."""

    def run(
        x: Tensor, x_scale: float, x_zero_point: int, w: Tensor, w_scale: Tensor, w_zero_point: Tensor,
        bias: Tensor | None, window: Window | None, result: tuple[float, int, int, int, torch.dtype],
    ) -> Tensor:  # fmt: skip
        acc = accumulate(x, x_zero_point, w, w_zero_point, window, summed).to(torch.float64)
        if bias is not None:
            acc = acc + channels(bias.to(torch.float64), window)
        y_scale, y_zero_point, qmin, qmax, dtype = result
        multiplier = x_scale * channels(w_scale.to(torch.float64), window) / y_scale
        return requantize(acc, multiplier, y_zero_point, qmin, qmax, dtype)

    return run


_reference_run = _exact(integer_sum)
_portable_run = _exact(float64_sum)


def _fast_run(
    x: Tensor, x_scale: float, x_zero_point: int, w: Tensor, w_scale: Tensor, w_zero_point: Tensor,
    bias: Tensor | None, window: Window | None, result: tuple[float, int, int, int, torch.dtype],
) -> Tensor:  # fmt: skip
    weight = onednn.Weight(w, w_scale, w_zero_point, bias)
    if not onednn.suits(x, weight, result[4]):
        return _portable_run(x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, window, result)
    qparams = (x_scale, x_zero_point)
    if window is None:
        return onednn.linear(x, qparams, weight, result)
    geometry = (window.stride, window.padding, window.dilation, window.groups)
    return onednn.conv(x, qparams, weight, geometry, result)


def _linear(run: Callable[..., Tensor]) -> Callable[[Op], Implementation]:
    def linear(x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, *result):  # type: ignore[no-untyped-def]
        return run(x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, None, result)

    return lambda op: linear


def _conv(run: Callable[..., Tensor]) -> Callable[[Op], Implementation]:
    def conv(  # type: ignore[no-untyped-def]
        x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, stride, padding, dilation, groups, *result
    ):
        window = Window(tuple(stride), tuple(padding), tuple(dilation), groups)
        batched = x if x.dim() == w.dim() else x.unsqueeze(0)
        y = run(batched, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, window, result)
        return y if batched is x else y.squeeze(0)

    return lambda op: conv


def _linear_dynamic(summed: Sum) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        relu = op.chain[-1] == "aten::relu"

        def linear_dynamic(  # type: ignore[no-untyped-def]
            x, w, w_scale, w_zero_point, bias, qmin, qmax, symmetric, dtype
        ):
            qparams = qparams_of_tensor(x, storage_spec(qmin, qmax, symmetric, dtype))
            acc = accumulate(quantize(x, qparams), qparams.zero_point, w, w_zero_point, None, summed)
            y = acc.to(torch.float64) * (qparams.scale.double() * w_scale.double())
            y = y if bias is None else y + bias.double()
            return (y.clamp_min(0.0) if relu else y).to(torch.float32)

        return linear_dynamic

    return build


def _linear_dynamic_fast(op: Op) -> Implementation:
    portable = _linear_dynamic(float64_sum)(op)
    relu = op.chain[-1] == "aten::relu"

    def linear_dynamic(  # type: ignore[no-untyped-def]
        x, w, w_scale, w_zero_point, bias, qmin, qmax, symmetric, dtype
    ):
        weight = onednn.Weight(w, w_scale, w_zero_point, bias)
        if dtype not in onednn.ACTIVATIONS or not onednn.suits_weight(weight):
            return portable(x, w, w_scale, w_zero_point, bias, qmin, qmax, symmetric, dtype)
        qparams = qparams_of_tensor(x, storage_spec(qmin, qmax, symmetric, dtype))
        scale, zero_point = float(qparams.scale), int(qparams.zero_point)
        return onednn.linear_to_float(quantize(x, qparams), (scale, zero_point), weight, "relu" if relu else "none")

    return linear_dynamic


def _weighted_arguments(site: Site) -> tuple[object, ...]:
    source, head, op = site.sources[0], site.match.head, site.match.op
    assert op.weight is not None and op.bias is not None
    rest = head.args[op.bias + 1 :]
    result = site.bounded_result.arguments
    return (source.node, source.scale, source.zero_point, *site.weight, site.bias, *rest, *result)


def _dynamic_arguments(site: Site) -> tuple[object, ...]:
    assert site.runtime is not None
    return (site.runtime.node, *site.weight, site.bias, *site.runtime.arguments)


def _linear_fake(op: Op) -> Implementation:
    def fake(x, *arguments):  # type: ignore[no-untyped-def]
        w, dtype = arguments[2], arguments[-1]
        return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=dtype)

    return fake


def _linear_dynamic_fake(op: Op) -> Implementation:
    def fake(x, w, *arguments):  # type: ignore[no-untyped-def]
        return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)

    return fake


def _conv_fake(op: Op) -> Implementation:
    def fake(x, x_scale, x_zero_point, w, *arguments):  # type: ignore[no-untyped-def]
        stride, padding, dilation, groups = arguments[3:7]
        spatial = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(x.shape[-len(stride) :], padding, dilation, w.shape[2:], stride, strict=True)
        ]
        batch = x.shape[: x.dim() - len(stride) - 1]
        return x.new_empty((*batch, w.shape[0], *spatial), dtype=arguments[-1])

    return fake


LINEAR = Kernel(
    "linear layer on integers",
    _weighted_arguments,
    lambda op: f"(Tensor x, float x_scale, int x_zero_point, {WEIGHT}, {RESULT}) -> Tensor",
    _linear(_reference_run),
    _linear(_fast_run),
    _linear_fake,
)
LINEAR_DYNAMIC = Kernel(
    "linear layer that quantizes its float input by its range",
    _dynamic_arguments,
    lambda op: f"(Tensor x, {WEIGHT}, int qmin, int qmax, bool symmetric, ScalarType dtype) -> Tensor",
    _linear_dynamic(integer_sum),
    _linear_dynamic_fast,
    _linear_dynamic_fake,
)
CONV = Kernel(
    "convolution on integers",
    _weighted_arguments,
    lambda op: f"(Tensor x, float x_scale, int x_zero_point, {WEIGHT}, {WINDOW}, {RESULT}) -> Tensor",
    _conv(_reference_run),
    _conv(_fast_run),
    _conv_fake,
)
