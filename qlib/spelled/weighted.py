"""Linear layers and convolutions: sums of products in int64, then one multiplication in float64.

A layer is a way of summing, and what its sums become: integers of the result's scale where the input is quantized
beforehand, floats where it is quantized at run time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from qlib.graph import call
from qlib.kernels import Site
from qlib.spelled.formulas import ATEN, finished, requantized, shifted, times, to

Sums = Callable[[Site, fx.Node], fx.Node]
Stored = tuple[fx.Node, fx.Node, fx.Node]


def shifted_weight(site: Site, stored: Stored) -> fx.Node:
    """``w - w_zero_point`` in int64, in the shape of the weight; `stored` is as `Site.stored` gives it."""
    graph, (w, _, zero_point) = site.model.graph, stored
    if site.tensor(zero_point).dim():
        shape = [1] * site.tensor(w).dim()
        shape[site.match.op.weight_axis] = -1
        zero_point = call(graph, ATEN.reshape.default, zero_point, shape)
    return shifted(graph, w, zero_point)


def linear_sums(site: Site, x: fx.Node) -> fx.Node:
    """``x W^T``; `x` and W are less their zero points."""
    graph = site.model.graph
    return call(graph, ATEN.matmul.default, x, call(graph, ATEN.transpose.int, shifted_weight(site, site.weight), 0, 1))


def to_integers(sums: Sums) -> Callable[[Site], fx.Node]:
    """``clamp(round_half_even((acc + bias) * (x_scale * w_scale / y_scale)) + y_zero_point)``."""

    def write(site: Site) -> fx.Node:
        graph, source, result = site.model.graph, site.sources[0], site.bounded_result
        acc = sums(site, shifted(graph, source.node, source.zero_point))
        if site.bias is not None:
            acc = call(graph, ATEN.add.Tensor, acc, call(graph, ATEN.reshape.default, site.bias, _along(site)))
        multiplier = source.scale * site.tensor(site.weight[1]).double() / result.scale
        factor = _constant(site, "multiplier", multiplier) if multiplier.dim() else float(multiplier)
        return requantized(graph, times(graph, acc, factor), result)

    return write


def to_floats(sums: Sums) -> Callable[[Site], fx.Node]:
    """``acc * (x_scale * w_scale) + bias`` in float64, rounded to float32."""

    def write(site: Site) -> fx.Node:
        assert site.runtime is not None
        graph, runtime = site.model.graph, site.runtime
        acc = sums(site, shifted(graph, runtime.integers, runtime.zero_point))
        weight_scale = _constant(site, "weight_scale_float64", site.tensor(site.weight[1]).double())
        step = call(graph, ATEN.mul.Tensor, to(graph, runtime.scale, torch.float64), weight_scale)
        y = times(graph, acc, step)
        if site.bias is not None:
            bias = call(graph, ATEN.reshape.default, to(graph, site.bias, torch.float64), _along(site))
            y = call(graph, ATEN.add.Tensor, y, bias)
        return finished(site, y)

    return write


def _along(site: Site) -> list[int]:
    """The shape in which one value per output channel lies along the channels of the result."""
    return [-1, *[1] * (site.tensor(site.weight[0]).dim() - 2)]


def _constant(site: Site, name: str, values: Tensor) -> fx.Node:
    return site.constant(name, values.reshape(_along(site)) if values.dim() else values)
