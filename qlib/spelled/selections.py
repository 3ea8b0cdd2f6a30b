"""Selections by order: they do the same to integers as to the numbers that they stand for.

Where ATen has no kernel for integers, a table of indices for each spatial axis says which elements each result is the
maximum of: one, for the nearest element.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from qlib.graph import call, op_name
from qlib.kernels import Site
from qlib.spelled.computed import chain_on
from qlib.spelled.formulas import ATEN


def selection(site: Site) -> fx.Node:
    """The operator on the stored integers."""
    return SELECTIONS[op_name(site.match.head)](site)


def _itself(site: Site) -> fx.Node:
    return chain_on(site, site.sources[0].node)


def _with_indices(site: Site) -> fx.Node:
    """`max_pool1d` by the operator that yields the indices too, which has a kernel for integers."""
    graph, arguments = site.model.graph, site.match.head.args[1:]
    return call(
        graph, operator.getitem, call(graph, ATEN.max_pool1d_with_indices.default, site.sources[0].node, *arguments), 0
    )


def _by_tables(tables: Callable[[tuple[int, ...], Any], list[Tensor]]) -> Callable[[Site], fx.Node]:
    """The maximum of the elements that tables (results, elements) name, one axis after the other."""

    def write(site: Site) -> fx.Node:
        graph, x = site.model.graph, site.sources[0].node
        found = tables(site.match.operands[0].meta["shape"], site.match.head.args[1:])
        for axis, table in enumerate(found, -len(found)):
            x = call(graph, ATEN.index_select.default, x, axis, site.constant("selected", table.flatten()))
            if table.shape[1] > 1:
                x = call(graph, ATEN.unflatten.int, x, axis, list(table.shape))
                x = call(graph, ATEN.amax.default, x, [axis])
        return x

    return write


def adaptive_windows(shape: Sequence[int], wanted: Sequence[int]) -> list[Tensor]:
    """Which elements the results of an adaptive pooling are of: a table (results, elements) for each of the last axes.

    Result i of m takes the elements from ``floor(i * n / m)`` to before ``ceil((i + 1) * n / m)``; where there are
    fewer than elsewhere, the last is named again.
    """
    tables = []
    for n, m in zip(shape[-len(wanted) :], wanted, strict=True):
        result = torch.arange(m).unsqueeze(1)
        start, end = result * n // m, -((result + 1) * -n // m)
        widest = int((end - start).max()) if m else 1
        tables.append(torch.minimum(start + torch.arange(widest), end - 1))
    return tables


def _adaptive(shape: tuple[int, ...], arguments: Any) -> list[Tensor]:
    return adaptive_windows(shape, arguments[0])


def _nearest(shape: tuple[int, ...], arguments: Any) -> list[Tensor]:
    """The index that the operator itself takes from the indices of one axis."""
    tables = []
    for axis, size in enumerate(shape[2:]):
        given = [None if values is None else [values[axis]] for values in arguments[:2]]
        indices = ATEN.upsample_nearest1d.vec(torch.arange(size, dtype=torch.float64).reshape(1, 1, -1), *given)
        tables.append(indices.to(torch.int64).reshape(-1, 1))
    return tables


SELECTIONS: Mapping[str, Callable[[Site], fx.Node]] = MappingProxyType(
    {
        "aten::max_pool1d": _with_indices,
        **{f"aten::{name}": _itself for name in ("max_pool2d", "max_pool3d", "sort", "topk")},
        **{f"aten::adaptive_max_pool{dim}d": _by_tables(_adaptive) for dim in (1, 2, 3)},
        **{f"aten::upsample_nearest{dim}d": _by_tables(_nearest) for dim in (1, 2, 3)},
    }
)
