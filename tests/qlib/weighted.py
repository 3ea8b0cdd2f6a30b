"""Layers of integer weights, drawn, and how far a kernel is from their exact results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor

from qlib.kernels import Implementation, implementation

ops = torch.ops.qlib
CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


@dataclass(frozen=True)
class Layer:
    """Integer weights, and the data that they are applied to; `window` is empty for a linear layer."""

    x: Tensor
    x_scale: float
    x_zero_point: int
    w: Tensor
    w_scale: Tensor
    w_zero_point: Tensor
    bias: Tensor | None
    target: Target
    window: tuple[Any, ...] = ()

    def run(self, name: Implementation | str) -> Tensor:
        op = getattr(ops, f"conv{self.w.dim() - 2}d" if self.window else "linear")
        with implementation(name):
            result: Tensor = op(
                *(self.x, self.x_scale, self.x_zero_point, self.w, self.w_scale, self.w_zero_point, self.bias),
                *self.window,
                *self.target.arguments,
            )
        return result

    def sums(self) -> tuple[Tensor, Tensor]:
        """The exact accumulators in float64, and the sums of the absolute terms."""
        x = self.x.double() - self.x_zero_point
        zero_point = self.w_zero_point.double().reshape(-1, *[1] * (self.w.dim() - 1))
        w = self.w.double() - (zero_point if self.w_zero_point.dim() else self.w_zero_point)
        acc, size = self._apply(x, w), self._apply(x.abs(), w.abs())
        if self.bias is not None:
            b = self._along(self.bias.double())
            acc, size = acc + b, size + b.abs()
        return acc, size

    def _apply(self, x: Tensor, w: Tensor) -> Tensor:
        return CONVOLUTIONS[w.dim() - 2](x, w, None, *self.window) if self.window else x @ w.t()

    def _along(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.w.dim() - 2)) if values.dim() else values

    def wrong(self, name: Implementation | str) -> int:
        acc, size = self.sums()
        multiplier = self.x_scale * self._along(self.w_scale.double()) / self.target.scale
        return errors(self.run(name), acc * multiplier, size * multiplier, self.target)


def integers(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random integers of the whole range, or of its two ends only."""
    info, random = torch.iinfo(dtype), torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    values = torch.randint(info.min, info.max + 1, shape, generator=random)
    if draw(st.booleans()):
        values = torch.where(values > (info.min + info.max) // 2, info.max, info.min)
    return values.to(dtype)


@st.composite
def targets(draw: st.DrawFn, size: float) -> Target:
    """Results of any type, the scale fitting accumulators of about `size` real units, or far off either way."""
    dtype = draw(st.sampled_from([torch.uint8, torch.int8]))
    info = torch.iinfo(dtype)
    narrow = draw(st.sampled_from([0, 0, 1, 28]))
    qmin, qmax = info.min + narrow, info.max - narrow
    scale = max(size, 1e-6) / 100 * draw(st.sampled_from([1.0, 0.37, 7.0, 1e-6, 1e6]))
    return Target(scale, draw(st.integers(qmin, qmax)), qmin, qmax, dtype)


@st.composite
def layers(draw: st.DrawFn, x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: tuple[Any, ...]) -> Layer:
    x_dtype, w_dtype = draw(
        st.sampled_from([(a, b) for a in (torch.uint8, torch.int8) for b in (torch.int8, torch.uint8)])
    )
    info, random = torch.iinfo(x_dtype), torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    outputs = w_shape[0]
    w_scale = torch.rand(outputs, generator=random) * 0.05 + 1e-4
    w_zero_point = torch.zeros(outputs, dtype=torch.int32)
    if w_dtype is torch.uint8:
        w_zero_point = torch.randint(0, 256, (outputs,), dtype=torch.int32, generator=random)
    if draw(st.booleans()):
        w_scale, w_zero_point = w_scale[0].clone(), w_zero_point[0].clone()
    x_scale = draw(st.sampled_from([0.02, 0.0173, 3e-5, 0.5]))
    bias = torch.randint(-30000, 30000, (outputs,), dtype=torch.int32, generator=random)
    x, w = integers(draw, x_shape, x_dtype), integers(draw, w_shape, w_dtype)
    zero_point = draw(st.integers(info.min, info.max))
    layer = Layer(
        x, x_scale, zero_point, w, w_scale, w_zero_point, draw(st.sampled_from([None, bias])), Target(1.0, 0), window
    )
    acc, _ = layer.sums()
    size = float(acc.abs().mean()) * x_scale * float(w_scale.mean()) if acc.numel() else 1.0
    return replace(layer, target=draw(targets(size)))


sizes = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 31, 64, 65]))


@st.composite
def linears(draw: st.DrawFn) -> Layer:
    rows = draw(st.sampled_from([(0,), (1,), (3,), (17,), (2, 3), (0, 2), ()]))
    inputs, outputs = draw(sizes), draw(sizes)
    return draw(layers((*rows, inputs), (outputs, inputs), ()))


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    dim = draw(st.sampled_from([1, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=dim, max_size=dim)))

    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    kernel, stride, padding = each(1, 3), each(1, 3), each(0, 2)
    # Gaps in a window of one kill the process: see test_gaps_in_a_window_of_one.
    dilation = tuple(1 if k == 1 else d for k, d in zip(kernel, each(1, 2), strict=True))
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    spatial = tuple(n + e for n, e in zip(least, each(0, 5), strict=True))
    batch = draw(st.sampled_from([(0,), (1,), (2,), ()]))
    window = (list(stride), list(padding), list(dilation), groups)
    return draw(layers((*batch, inputs, *spatial), (outputs, inputs // groups, *kernel), window))
