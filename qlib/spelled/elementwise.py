"""Look-ups in tables, and operators of several tensors that are rounded once."""

from __future__ import annotations

import torch
from torch import fx

from qlib.arith import requantize
from qlib.graph import call
from qlib.kernels import KERNELS, Site, Source
from qlib.spelled.formulas import ATEN, requantized, requantized_float, shifted, times, to


def table(site: Site) -> fx.Node:
    """The kernel's table, or its tables for each channel, at the index of each stored integer.

    Contiguous as in the kernel: what stays in float after it may compute otherwise on memory in another order.
    """
    graph = site.model.graph
    x, entries = KERNELS[site.match.op.kernel].arguments(site)
    index = [shifted(graph, x, torch.iinfo(site.sources[0].dtype).min)]
    if site.tensor(entries).dim() == 2:
        _, channels, *rest = site.match.operands[0].meta["shape"]
        index.insert(0, site.constant("channels", torch.arange(channels).reshape(-1, *[1] * len(rest))))
    return call(graph, ATEN.contiguous.default, call(graph, ATEN.index.Tensor, entries, index))


def combine(site: Site) -> fx.Node:
    """A sum, difference or extremum, in steps of the result."""
    graph = site.model.graph
    a, b = (_rescaled(site, source) for source in site.sources)
    return requantized(graph, call(graph, site.match.head.target, a, b), site.bounded_result)


def product(site: Site) -> fx.Node:
    """A product of two tensors, element by element or of matrices."""
    graph, (a, b), result = site.model.graph, site.sources, site.bounded_result
    pair = [shifted(graph, source.node, source.zero_point) for source in (a, b)]
    found = call(graph, site.match.head.target, *pair)
    return requantized(graph, times(graph, found, a.scale * b.scale / result.scale), result)


def quotient(site: Site) -> fx.Node:
    """A quotient of two tensors: of two integers in float64, where zero over zero is NaN."""
    graph, (a, b), result = site.model.graph, site.sources, site.bounded_result
    pair = (to(graph, shifted(graph, source.node, source.zero_point), torch.float64) for source in (a, b))
    found = call(graph, site.match.head.target, *pair)
    return requantized_float(graph, times(graph, found, a.scale / b.scale / result.scale), result)


def choose(site: Site) -> fx.Node:
    """Both tensors requantized to the result's parameters, then elements of the one or of the other."""
    head = site.match.head
    return call(site.model.graph, head.target, head.args[0], *_requantized(site))


def fill(site: Site) -> fx.Node:
    """The tensor requantized to the result's parameters, then the integer of the number where the mask is true."""
    head, result = site.match.head, site.bounded_result
    mask, value = head.args[1:3]
    number = torch.tensor(value / result.scale, dtype=torch.float64)  # type: ignore[operator]
    integer = requantize(number, 1.0, result.zero_point, result.qmin, result.qmax, result.dtype)
    return call(site.model.graph, head.target, *_requantized(site), mask, int(integer))


def join(site: Site) -> fx.Node:
    """Each tensor requantized to the result's parameters, then put together."""
    graph, head = site.model.graph, site.match.head
    return call(graph, head.target, _requantized(site), *head.args[1:])


def _requantized(site: Site) -> list[fx.Node]:
    """Each operand as integers of the result's parameters."""
    return [requantized(site.model.graph, _rescaled(site, source), site.bounded_result) for source in site.sources]


def _rescaled(site: Site, source: Source) -> fx.Node:
    """An operand in steps of the result, in float64."""
    graph = site.model.graph
    integers = shifted(graph, source.node, source.zero_point)
    return times(graph, integers, source.scale / site.bounded_result.scale)
