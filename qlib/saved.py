"""A graph as plain data, and back: what a pickled model holds, names and metadata included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Reference:
    """Stands for a node in another node's arguments."""

    name: str


@dataclass(frozen=True)
class Operator:
    """Stands for an overload of a `torch` operator, which can't be pickled: `aten::add` and `Tensor`.

    An operator with graphs of its own has no overloads.
    """

    name: str
    overload: str


@dataclass(frozen=True)
class Row:
    """One node; `meta` holds what the passes of this library wrote."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    meta: dict[str, Any]


KEPT = (
    *("module_path", "module_type", "shape", "dtype", "source"),
    *("operator", "float_bias", "annotated", "replaces"),
)


def rows_of(graph: fx.Graph) -> tuple[Row, ...]:
    """The nodes of a graph, in order."""

    def plain(value: Any) -> Any:
        return Reference(value.name) if isinstance(value, fx.Node) else value

    return tuple(
        Row(
            node.op,
            node.name,
            _named(node.target),
            _mapped(node.args, plain),
            _mapped(node.kwargs, plain),
            {key: node.meta[key] for key in KEPT if key in node.meta},
        )
        for node in graph.nodes
    )


def graph_of(rows: tuple[Row, ...]) -> fx.Graph:
    """The graph that `rows_of` was given."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def live(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, Reference) else value

    for row in rows:
        args, kwargs = _mapped(row.args, live), _mapped(row.kwargs, live)
        node = graph.create_node(row.op, _found(row.target), args, kwargs, row.name)
        node.meta = dict(row.meta)
        nodes[row.name] = node
    return graph


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return change(value)


def _named(target: Any) -> Any:
    if isinstance(target, torch._ops.HigherOrderOperator):
        return Operator(f"{target.namespace}::{target.name()}", "")
    if not isinstance(target, torch._ops.OpOverload):
        return target
    return Operator(target._schema.name, target._overloadname)


def _found(target: Any) -> Any:
    if not isinstance(target, Operator):
        return target
    namespace, _, name = target.name.partition("::")
    found = getattr(getattr(torch.ops, namespace), name)
    return getattr(found, target.overload) if target.overload else found
