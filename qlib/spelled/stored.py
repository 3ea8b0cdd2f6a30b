"""Operators on floats whose weights alone are stored in few bits: in float64 on what the integers stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qlib.graph import call
from qlib.kernels import Site
from qlib.kernels.weight_only import stored_half, stored_weight
from qlib.spelled.formulas import ATEN, doubled, finished, shifted, times, to


def linear_weight_only(site: Site) -> fx.Node:
    """``x W^T + bias`` with the weight ``(w - w_zero_point) * w_scale``."""
    return _linear(site, _real(site, None))


def linear_fp16(site: Site) -> fx.Node:
    """``x W^T + bias`` with the weight as float16 has it."""
    return _linear(site, to(site.model.graph, stored_half(site), torch.float64))


def embedding(site: Site) -> fx.Node:
    """What the rows of integers that are asked for stand for."""
    return to(site.model.graph, _real(site, site.match.head.args[1]), torch.float32)


def embedding_bag(site: Site) -> fx.Node:
    """Sums, means or maxima of what the rows stand for."""
    graph, (head, first) = site.model.graph, site.match.nodes
    bags = call(graph, head.target, _real(site, None), *(doubled(graph, a) for a in head.args[1:]))
    return to(graph, call(graph, first.target, bags, 0), torch.float32)


def _linear(site: Site, w: fx.Node) -> fx.Node:
    graph = site.model.graph
    # Contiguous as in the kernel, so that the order of the sums is the same.
    x = call(graph, ATEN.to.dtype, site.match.head.args[0], torch.float64)
    x = call(graph, ATEN.contiguous.default, x)
    bias = None if site.bias is None else to(graph, site.bias, torch.float64)
    return finished(site, call(graph, ATEN.linear.default, x, w, bias))


def _real(site: Site, indices: Any) -> fx.Node:
    """``(w - w_zero_point) * w_scale`` in float64, of the rows at `indices` or of all."""
    graph = site.model.graph
    (w, scale, zero_point), group_size = site.weight, stored_weight(site)[3]
    single = site.tensor(scale).dim() == 0

    def rows(values: fx.Node) -> fx.Node:
        return values if indices is None else call(graph, ATEN.index.Tensor, values, [indices])

    def beside(values: fx.Node) -> fx.Node:
        """Scales or zero points, beside the elements that they belong to."""
        if single:
            return values
        if group_size is None:
            return call(graph, ATEN.unsqueeze.default, rows(values), -1)
        wide = call(graph, ATEN.repeat_interleave.self_int, rows(values), group_size, -1)
        return call(graph, ATEN.slice.Tensor, wide, -1, 0, site.tensor(w).shape[1])

    return times(graph, shifted(graph, rows(w), beside(zero_point)), to(graph, beside(scale), torch.float64))
