"""Views: operators whose result shares the memory of a tensor, and how a change to the result is put back into it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_arg

from qlib.regions import IN_PYTHON

_aten = torch.ops.aten


@dataclass(frozen=True)
class View:
    """How a view comes out of another tensor: an operator, and which of its results where it has several.

    `name` is empty where the view can't be taken again; `args` are the arguments after the first; `start` is where a
    piece of a split tensor begins; `meta` has the view's shape and type.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    meta: Mapping[str, Any]
    index: int | None = None
    start: int = 0


Call = tuple[OpOverload, tuple[Any, ...]]
Inverse = Callable[[View, fx.Node, fx.Node], Call]


def _same(step: View, whole: fx.Node, part: fx.Node) -> Call:
    return _aten.alias.default, (part,)


def _reshaped(step: View, whole: fx.Node, part: fx.Node) -> Call:
    return _aten.reshape.default, (part, list(whole.meta["shape"]))


def _permuted(step: View, whole: fx.Node, part: fx.Node) -> Call:
    order = permutation(step.target, len(whole.meta["shape"]), step.args)
    return _aten.permute.default, (part, sorted(range(len(order)), key=order.__getitem__))


def permutation(target: Callable[..., Any], dims: int, args: tuple[Any, ...]) -> list[int]:
    """The order in which an operator puts `dims` dimensions, found by giving each another size."""
    result: Tensor = target(torch.empty(tuple(range(1, dims + 1)), device="meta"), *args)
    return [size - 1 for size in result.shape]


def _selected(step: View, whole: fx.Node, part: fx.Node) -> Call:
    return _aten.select_scatter.default, (whole, part, *step.args)


def _sliced(step: View, whole: fx.Node, part: fx.Node) -> Call:
    return _aten.slice_scatter.default, (whole, part, *step.args)


def _narrowed(step: View, whole: fx.Node, part: fx.Node) -> Call:
    dim, start, length = step.args
    first = start % whole.meta["shape"][dim] if length else 0
    return _aten.slice_scatter.default, (whole, part, dim, first, first + length, 1)


def _diagonal(step: View, whole: fx.Node, part: fx.Node) -> Call:
    return _aten.diagonal_scatter.default, (whole, part, *step.args)


def _piece(step: View, whole: fx.Node, part: fx.Node) -> Call:
    dim = step.args[1]
    return _aten.slice_scatter.default, (whole, part, dim, step.start, step.start + step.meta["shape"][dim], 1)


def _unbound(step: View, whole: fx.Node, part: fx.Node) -> Call:
    return _aten.select_scatter.default, (whole, part, step.args[0], step.index)


SPLITS = frozenset(
    {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"}
)
_ROWS: tuple[tuple[Inverse, str], ...] = (
    (
        _same,
        "alias detach contiguous to dropout alpha_dropout feature_dropout feature_alpha_dropout lift_fresh positive",
    ),
    (_same, "type_as resolve_conj resolve_neg real conj"),
    (_reshaped, "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel expand expand_as"),
    (_reshaped, "atleast_1d atleast_2d atleast_3d"),
    (_permuted, "permute transpose t mT mH adjoint numpy_T matrix_H swapaxes swapdims movedim moveaxis"),
    (_selected, "select"),
    (_sliced, "slice"),
    (_narrowed, "narrow"),
    (_diagonal, "diagonal"),
    (_piece, " ".join(sorted(SPLITS))),
    (_unbound, "unbind"),
)
# How to put a changed view back into the tensor that it is a view of, by the operator that made the view.
INVERSES: Mapping[str, Inverse] = MappingProxyType(
    {name: inverse for inverse, names in _ROWS for name in names.split()}
)


def separate_written(graph: fx.Graph) -> None:
    """Copy what is returned or written back, where it lies in an input or buffer that is written to, in place.

    The writes come last, so that nothing else can see them.
    """
    writes = graph.find_nodes(op="call_function", target=_aten.copy_.default)
    if not writes:
        return
    exposed = {node.args[0] for node in writes}
    for node in graph.nodes:
        inputs = node.all_input_nodes if node.target in IN_PYTHON else node.all_input_nodes[:1]
        if not exposed.isdisjoint(inputs) and _may_be_view(node):
            exposed.add(node)
    copies: dict[fx.Node, fx.Node] = {}
    for user, values in [(node, [node.args[1]]) for node in writes] + [
        (graph.output_node(), graph.output_node().all_input_nodes)
    ]:
        for value in values:
            if value not in exposed or not isinstance(value, fx.Node):
                continue
            if value not in copies:
                with graph.inserting_before(writes[0]):
                    copies[value] = graph.call_function(_aten.clone.default, (value,))
                copies[value].meta = dict(value.meta)
            replaced = map_arg(user.args, partial(_swap, value, copies[value]))
            user.args = (user.args[0], *replaced[1:]) if user in writes else replaced


def _swap(old: fx.Node, new: fx.Node, node: fx.Node) -> fx.Node:
    return new if node is old else node


def _may_be_view(node: fx.Node) -> bool:
    if isinstance(node.target, OpOverload):
        return any(result.alias_info is not None for result in node.target._schema.returns)
    return node.target is operator.getitem or node.target in IN_PYTHON
