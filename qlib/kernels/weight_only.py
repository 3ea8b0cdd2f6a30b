"""Operators on floats whose weight alone is stored in few bits: linear layers, and tables looked up by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qlib.arith import dequantize
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op
from qlib.qparams import DType, QParams

# Where there is no group size, there is one scale, or one for each row.
STORED = "Tensor w, Tensor w_scale, Tensor w_zero_point, int? group_size"


@dataclass(frozen=True)
class Stored:
    """A weight (rows, columns) as `STORED` hands it over."""

    w: Tensor
    scale: Tensor
    zero_point: Tensor
    group_size: int | None

    def real(self, dtype: torch.dtype) -> Tensor:
        """The numbers that it stands for, in the float type `dtype`."""
        axis = 0 if self.group_size is None and self.scale.dim() else None
        params = QParams(self.scale, self.zero_point, 0, 0, DType.INT8, axis, self.group_size)
        return dequantize(self.w, params, dtype)

    def rows(self, chosen: Tensor) -> Stored:
        """The rows at the indices `chosen` (1-dimensional)."""
        scale, zero_point = self.scale, self.zero_point
        if scale.dim():
            scale, zero_point = scale.index_select(0, chosen), zero_point.index_select(0, chosen)
        return Stored(self.w.index_select(0, chosen), scale, zero_point, self.group_size)


def stored_weight(site: Site) -> tuple[fx.Node | int | None, ...]:
    """The arguments that `STORED` names."""
    assert site.match.op.weight is not None
    dequantized = site.match.head.args[site.match.op.weight]
    assert isinstance(dequantized, fx.Node)
    by_group = dequantized.target is torch.ops.qlib.dequantize_per_group.default
    return (*site.weight, int(dequantized.args[3]) if by_group else None)  # type: ignore[arg-type]


def _finished(y: Tensor, op: Op) -> Tensor:
    y = y.to(torch.float32)
    return y.clamp_min(0.0) if op.chain[-1] == "aten::relu" else y


def _apply(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    # Contiguous, so that the order of the sums does not depend on the layout.
    return torch.nn.functional.linear(x.to(w.dtype).contiguous(), w, None if bias is None else bias.to(w.dtype))


def _linear(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        def linear_weight_only(x: Tensor, *rest: Any) -> Tensor:
            return _finished(_apply(x, Stored(*rest[:4]).real(dtype), rest[4]), op)

        return linear_weight_only

    return build


def _linear_fp16(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        def linear_fp16(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
            return _finished(_apply(x, w.to(dtype), bias), op)

        return linear_fp16

    return build


def _linear_arguments(site: Site) -> tuple[object, ...]:
    return (site.match.head.args[0], *stored_weight(site), site.bias)


def _fp16_arguments(site: Site) -> tuple[object, ...]:
    return (site.match.head.args[0], stored_half(site), site.bias)


def stored_half(site: Site) -> fx.Node:
    """The node of the weight in float16."""
    assert site.match.op.weight is not None
    dequantized = site.match.head.args[site.match.op.weight]
    assert isinstance(dequantized, fx.Node) and isinstance(dequantized.args[0], fx.Node)
    return dequantized.args[0]


def _linear_fake(op: Op) -> Implementation:
    return lambda x, w, *rest: x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)


LINEAR_WEIGHT_ONLY = Kernel(
    "linear layer on floats with weights stored as integers",
    _linear_arguments,
    lambda op: f"(Tensor x, {STORED}, Tensor? bias) -> Tensor",
    _linear(torch.float64),
    _linear(torch.float32),
    _linear_fake,
)
LINEAR_FP16 = Kernel(
    "linear layer on floats with weights stored as float16",
    _fp16_arguments,
    lambda op: "(Tensor x, Tensor w, Tensor? bias) -> Tensor",
    _linear_fp16(torch.float64),
    _linear_fp16(torch.float32),
    _linear_fake,
)
