"""The sums of convolutions, plain and transposed: windows laid out as rows by index, times the weights as columns.

Along each spatial axis a table of indices says which element of the input each tap of each window meets, so that
stride, padding and dilation are in the tables alone. A tap that meets none gets the index after the last, where a zero
stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qlib.graph import call
from qlib.kernels import Site
from qlib.spelled.formulas import ATEN
from qlib.spelled.weighted import shifted_weight


@dataclass(frozen=True)
class Columns:
    """The weights of each group as columns: (groups, channels / groups * taps, outputs / groups)."""

    node: fx.Node
    groups: int


def conv_sums(site: Site, x: fx.Node) -> fx.Node:
    """The sums of a convolution; `x` is less its zero point."""
    stride, padding, dilation, groups = _arguments(site, 4)
    outputs, channels, *kernel = site.tensor(site.weight[0]).shape
    tables = []
    for size, s, p, d, k in zip(_sizes(site), stride, padding, dilation, kernel, strict=True):
        positions = (size + 2 * p - d * (k - 1) - 1) // s + 1
        place = torch.arange(positions).unsqueeze(1) * s + torch.arange(k) * d - p
        tables.append(_within(place, place >= 0, size))
    graph, w = site.model.graph, shifted_weight(site, site.weight)
    rows = call(graph, ATEN.reshape.default, w, [groups, outputs // groups, channels * math.prod(kernel)])
    return _convolved(site, x, tables, Columns(call(graph, ATEN.transpose.int, rows, 1, 2), groups))


def transposed_sums(site: Site, x: fx.Node) -> fx.Node:
    """The sums of a transposed convolution: tap k of element i lies at ``i * stride + k * dilation - padding``."""
    stride, padding, output_padding, groups, dilation = _arguments(site, 5)
    channels, outputs, *kernel = site.tensor(site.weight[0]).shape
    tables = []
    sizes = _sizes(site)
    for size, s, p, extra, d, k in zip(sizes, stride, padding, output_padding, dilation, kernel, strict=True):
        positions = (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        place = torch.arange(positions).unsqueeze(1) + p - torch.arange(k) * d
        tables.append(_within(place // s, (place >= 0) & (place % s == 0), size))
    graph, w, taps = site.model.graph, shifted_weight(site, site.weight), math.prod(kernel)
    w = call(graph, ATEN.reshape.default, w, [groups, channels // groups, outputs, taps])
    w = call(graph, ATEN.transpose.int, w, 2, 3)
    columns = call(graph, ATEN.reshape.default, w, [groups, channels // groups * taps, outputs])
    return _convolved(site, x, tables, Columns(columns, groups))


def _arguments(site: Site, count: int) -> tuple[Any, ...]:
    """The float operator's arguments after the bias."""
    assert site.match.op.bias is not None
    first = site.match.op.bias + 1
    return site.match.head.args[first : first + count]


def _sizes(site: Site) -> tuple[int, ...]:
    """The input's size along each spatial axis."""
    shape: tuple[int, ...] = site.match.operands[0].meta["shape"]
    return shape[2 - site.tensor(site.weight[0]).dim() :]


def _within(place: Tensor, there: Tensor, size: int) -> Tensor:
    return place.where(there & (place < size), size)


def _convolved(site: Site, x: fx.Node, tables: list[Tensor], columns: Columns) -> fx.Node:
    """The products of windows and columns, laid out as the result; a single example is taken as a batch of one."""
    graph, shape = site.model.graph, site.match.tail.meta["shape"]
    batched = len(shape) == len(tables) + 2
    x = x if batched else call(graph, ATEN.unsqueeze.default, x, 0)
    acc = call(graph, ATEN.matmul.default, _windows(site, x, tables, columns.groups), columns.node)
    acc = call(graph, ATEN.transpose.int, acc, 2, 3)
    acc = call(graph, ATEN.reshape.default, acc, [-1, *shape[-len(tables) - 1 :]])
    return acc if batched else call(graph, ATEN.squeeze.dim, acc, 0)


def _windows(site: Site, x: fx.Node, tables: list[Tensor], groups: int) -> fx.Node:
    """The windows of `x` (N, C, *spatial) as (N, groups, windows, C / groups * taps)."""
    graph, dims = site.model.graph, len(tables)
    for axis, (size, table) in enumerate(zip(_sizes(site), tables, strict=True)):
        if (table == size).any():
            x = call(graph, ATEN.constant_pad_nd.default, x, [*[0, 0] * (dims - 1 - axis), 0, 1], 0)
        x = call(graph, ATEN.index_select.default, x, 2 + axis, site.constant("windows", table.flatten()))
    channels = site.match.operands[0].meta["shape"][-dims - 1] // groups
    x = call(graph, ATEN.reshape.default, x, [-1, groups, channels, *(n for table in tables for n in table.shape)])
    windows, taps = range(3, 3 + 2 * dims, 2), range(4, 4 + 2 * dims, 2)
    x = call(graph, ATEN.permute.default, x, [0, 1, *windows, 2, *taps])
    count, each = (math.prod(table.shape[i] for table in tables) for i in (0, 1))
    return call(graph, ATEN.reshape.default, x, [-1, groups, count, channels * each])
