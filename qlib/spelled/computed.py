"""Operators that ATen computes on floats only: in float64 on integers, which it holds exactly, and rounded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qlib.graph import call, op_name
from qlib.kernels import KERNELS, Site
from qlib.spelled.formulas import ATEN, requantized_float, shifted, times, to

# Selections that ATen has kernels for integers for.
_ON_INTEGERS = frozenset({"aten::max_pool2d", "aten::max_pool3d"})


def computed(site: Site) -> fx.Node:
    """``f((x - x_zero_point) * x_scale) / y_scale``: a function without an integer formula."""
    graph, source, result = site.model.graph, site.sources[0], site.bounded_result
    real = times(graph, shifted(graph, source.node, source.zero_point), source.scale)
    real = call(graph, site.match.head.target, real, *(_double(graph, a) for a in site.match.head.args[1:]))
    return requantized_float(graph, call(graph, ATEN.div.Scalar, real, result.scale), result)


def homogeneous(site: Site) -> fx.Node:
    """``f(x - x_zero_point) * (x_scale / y_scale)``: a sum or a weighted mean."""
    graph, source, result = site.model.graph, site.sources[0], site.bounded_result
    y = _chain(site, _integers(site))
    return requantized_float(graph, times(graph, y, source.scale / result.scale), result)


def averaging(site: Site) -> fx.Node:
    """``f(x - x_zero_point)``: a mean that keeps its input's scale."""
    assert site.result is not None
    return requantized_float(site.model.graph, _chain(site, _integers(site)), site.result)


def monotone(site: Site) -> fx.Node:
    """A selection by order: it does the same to integers as to the numbers that they stand for."""
    graph, source = site.model.graph, site.sources[0]
    if op_name(site.match.head) in _ON_INTEGERS:
        return _chain(site, source.node)
    return to(graph, _chain(site, to(graph, source.node, torch.float64)), source.dtype)


def as_it_is(site: Site) -> fx.Node:
    """The float operator on the stored integers, with the arguments that its kernel has."""
    return call(site.model.graph, site.match.head.target, *KERNELS[site.match.op.kernel].arguments(site))


def _integers(site: Site) -> fx.Node:
    graph, source = site.model.graph, site.sources[0]
    return to(graph, shifted(graph, source.node, source.zero_point), torch.float64)


def _chain(site: Site, x: fx.Node) -> fx.Node:
    """The float operators of the chain, on `x` instead."""
    for node in site.match.nodes:
        x = site.model.graph.call_function(node.target, (x, *node.args[1:]), node.kwargs)  # type: ignore[arg-type]
    return x


def _double(graph: fx.Graph, argument: Any) -> Any:
    return to(graph, argument, torch.float64) if isinstance(argument, fx.Node) else argument
