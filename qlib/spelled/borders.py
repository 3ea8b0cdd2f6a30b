"""Quantize, dequantize and the choice of parameters at run time, where the graph meets floats: in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.arith import MIN_SCALE
from qlib.graph import call, op_name
from qlib.spelled.formulas import ATEN, to, with_other

_OPS = torch.ops.qlib


def _laid(graph: fx.Graph, node: fx.Node) -> tuple[Any, Any]:
    """Scale and zero point of a quantize or dequantize, laid beside the elements that they belong to."""
    scale, zero_point = node.args[1:3]
    if "per_group" in op_name(node):
        length = node.meta["shape"][-1]
        wide = [call(graph, ATEN.repeat_interleave.self_int, v, node.args[3], -1) for v in (scale, zero_point)]
        return tuple(call(graph, ATEN.slice.Tensor, v, -1, 0, length) for v in wide)  # type: ignore[return-value]
    if "per_channel" not in op_name(node):
        return scale, zero_point
    shape = [1] * len(node.meta["shape"])
    shape[int(node.args[3])] = -1  # type: ignore[arg-type]
    return call(graph, ATEN.reshape.default, scale, shape), call(graph, ATEN.reshape.default, zero_point, shape)


def _quantize(graph: fx.Graph, node: fx.Node) -> fx.Node:
    scale, zero_point = _laid(graph, node)
    qmin, qmax, dtype = node.args[-3:]
    steps = with_other(graph, ATEN.div, node.args[0], scale)  # type: ignore[arg-type]
    if dtype is not torch.float16:  # where the conversion rounds
        steps = call(graph, ATEN.round.default, steps)
    moved = with_other(graph, ATEN.add, steps, zero_point)
    if dtype is torch.int32:  # whose bounds are no float32 numbers
        moved = to(graph, moved, torch.float64)
    clamped = call(graph, ATEN.clamp.default, moved, qmin, qmax)
    numbers = call(graph, ATEN.nan_to_num.default, clamped, float(qmin))  # type: ignore[arg-type]
    return call(graph, ATEN.to.dtype, numbers, dtype)


def _dequantize(graph: fx.Graph, node: fx.Node) -> fx.Node:
    scale, zero_point = _laid(graph, node)
    moved = with_other(graph, ATEN.sub, call(graph, ATEN.to.dtype, node.args[0], torch.float32), zero_point)
    return with_other(graph, ATEN.mul, moved, scale)


def _choose(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The scales and zero points of ranges at run time, as `qlib.arith.qparams_from_range` has them."""
    x, qmin, qmax, symmetric, _ = node.args
    assert isinstance(qmin, int) and isinstance(qmax, int)
    by_row = node.target is _OPS.choose_qparams_per_token.default
    x = x if by_row else call(graph, ATEN.flatten.using_ints, x)
    # Zero always belongs to the range; appended to the data it makes a range of empty data too.
    values = to(graph, call(graph, ATEN.constant_pad_nd.default, x, [0, 1], 0), torch.float64)
    low, high = (call(graph, extremum.default, values, [-1], by_row) for extremum in (ATEN.amin, ATEN.amax))
    middle = (qmin + qmax + 1) // 2
    if symmetric:
        size = call(graph, ATEN.maximum.default, call(graph, ATEN.neg.default, low), high)
        scale = call(graph, ATEN.div.Scalar, size, min(qmax - middle, middle - qmin))
    else:
        scale = call(graph, ATEN.div.Scalar, call(graph, ATEN.sub.Tensor, high, low), qmax - qmin)
    empty = call(graph, ATEN.eq.Scalar, scale, 0.0)
    scale = call(graph, ATEN.clamp.default, scale, MIN_SCALE)
    scale = to(graph, call(graph, ATEN.masked_fill.Scalar, scale, empty, 1.0), torch.float32)
    if symmetric:
        point = call(graph, ATEN.add.Scalar, call(graph, ATEN.zeros_like.default, scale), middle)
    else:
        below = call(graph, ATEN.div.Tensor, low, to(graph, scale, torch.float64))
        point = call(graph, ATEN.rsub.Scalar, call(graph, ATEN.round.default, below), qmin)
        point = call(graph, ATEN.clamp.default, point, qmin, qmax)
    return scale, to(graph, point, torch.int32)


# How the operators that every flow places by itself are spelled out; a choice of parameters gives two nodes.
BORDERS: Mapping[Any, Callable[[fx.Graph, fx.Node], fx.Node | tuple[fx.Node, fx.Node]]] = MappingProxyType(
    {
        _OPS.quantize_per_tensor.default: _quantize,
        _OPS.quantize_per_tensor.tensor: _quantize,
        _OPS.quantize_per_channel.default: _quantize,
        _OPS.dequantize_per_tensor.default: _dequantize,
        _OPS.dequantize_per_tensor.tensor: _dequantize,
        _OPS.dequantize_per_channel.default: _dequantize,
        _OPS.quantize_per_token.default: _quantize,
        _OPS.dequantize_per_token.default: _dequantize,
        _OPS.dequantize_per_group.default: _dequantize,
        _OPS.choose_qparams.default: _choose,
        _OPS.choose_qparams_per_token.default: _choose,
    }
)
