"""Operators that ATen computes on floats only: in float64 on integers, which it holds exactly, and rounded once."""

from __future__ import annotations

import torch
from torch import fx

from qlib.graph import call
from qlib.kernels import KERNELS, Site
from qlib.spelled.formulas import ATEN, doubled, requantized_float, shifted, times, to


def computed(site: Site) -> fx.Node:
    """``f((x - x_zero_point) * x_scale) / y_scale``: a function without an integer formula, or a chain of such."""
    graph, source, result = site.model.graph, site.sources[0], site.bounded_result
    real = times(graph, shifted(graph, source.node, source.zero_point), source.scale)
    for node in site.match.nodes:
        real = call(graph, node.target, real, *(doubled(graph, a) for a in node.args[1:]))
    return requantized_float(graph, call(graph, ATEN.div.Scalar, real, result.scale), result)


def homogeneous(site: Site) -> fx.Node:
    """``f(x - x_zero_point) * (x_scale / y_scale)``: a sum or a weighted mean."""
    graph, source, result = site.model.graph, site.sources[0], site.bounded_result
    y = chain_on(site, _integers(site))
    return requantized_float(graph, times(graph, y, source.scale / result.scale), result)


def averaging(site: Site) -> fx.Node:
    """``f(x - x_zero_point)``: a mean that keeps its input's scale."""
    assert site.result is not None
    return requantized_float(site.model.graph, chain_on(site, _integers(site)), site.result)


def as_it_is(site: Site) -> fx.Node:
    """The float operator on the stored integers, with the arguments that its kernel has."""
    return call(site.model.graph, site.match.head.target, *KERNELS[site.match.op.kernel].arguments(site))


def _integers(site: Site) -> fx.Node:
    graph, source = site.model.graph, site.sources[0]
    return to(graph, shifted(graph, source.node, source.zero_point), torch.float64)


def chain_on(site: Site, x: fx.Node) -> fx.Node:
    """The float operators of the chain, on `x` instead."""
    for node in site.match.nodes:
        x = site.model.graph.call_function(node.target, (x, *node.args[1:]), node.kwargs)  # type: ignore[arg-type]
    return x
