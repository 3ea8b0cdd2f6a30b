"""The formulas of ARCHITECTURE.md's section "Arithmetic", written into a graph as ATen operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qlib.graph import call
from qlib.kernels.kernel import Result, Site

ATEN = torch.ops.aten


def with_other(graph: fx.Graph, packet: Any, x: fx.Node, other: fx.Node | float) -> fx.Node:
    """An operator of a tensor and a tensor or number, by the overload for it."""
    return call(graph, packet.Tensor if isinstance(other, fx.Node) else packet.Scalar, x, other)


def to(graph: fx.Graph, x: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The same numbers in another type."""
    return call(graph, ATEN.to.dtype, x, dtype)


def doubled(graph: fx.Graph, argument: Any) -> Any:
    """A tensor of floats in float64; masks, indices and numbers as they are."""
    floats = isinstance(argument, fx.Node) and argument.meta["dtype"].is_floating_point
    return to(graph, argument, torch.float64) if floats else argument


def shifted(graph: fx.Graph, x: fx.Node, zero_point: fx.Node | int) -> fx.Node:
    """``x - zero_point`` in int64."""
    return with_other(graph, ATEN.sub, to(graph, x, torch.int64), zero_point)


def times(graph: fx.Graph, integers: fx.Node, multiplier: fx.Node | float) -> fx.Node:
    """Integers times a float64 multiplier, in float64."""
    return with_other(graph, ATEN.mul, to(graph, integers, torch.float64), multiplier)


def requantized(graph: fx.Graph, real: fx.Node, result: Result) -> fx.Node:
    """``clamp(round_half_even(real) + zero_point)`` for numbers in steps of the result, none of which is NaN."""
    return to(graph, _clamped(graph, real, result), result.dtype)


def requantized_float(graph: fx.Graph, real: fx.Node, result: Result) -> fx.Node:
    """As `requantized`, of numbers that a float operator gave: NaN is stored as the least integer."""
    clamped = _clamped(graph, real, result)
    return to(graph, call(graph, ATEN.nan_to_num.default, clamped, float(result.qmin)), result.dtype)


def _clamped(graph: fx.Graph, real: fx.Node, result: Result) -> fx.Node:
    moved = call(graph, ATEN.add.Scalar, call(graph, ATEN.round.default, real), result.zero_point)
    return call(graph, ATEN.clamp.default, moved, result.qmin, result.qmax)


def finished(site: Site, y: fx.Node) -> fx.Node:
    """The float32 result of an operator whose results stay in float, through the relu that its chain may end in."""
    graph = site.model.graph
    y = to(graph, y, torch.float32)
    return call(graph, ATEN.relu.default, y) if site.match.op.chain[-1] == "aten::relu" else y
