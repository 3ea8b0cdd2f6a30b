"""Views: operators whose result shares the memory of a tensor, and how a change to the result is put back into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

_aten = torch.ops.aten


@dataclass(frozen=True)
class View:
    """How a view comes out of another tensor: an operator, and which of its results where it has several.

    `name` is empty where the view can't be taken again; `args` are the arguments after the first; `start` is where a piece of
    a split tensor begins; `meta` has the view's shape and type.
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


SPLITS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split"})
_ROWS: tuple[tuple[Inverse, str], ...] = (
    (_same, "alias detach contiguous to dropout alpha_dropout feature_dropout feature_alpha_dropout lift_fresh positive"),
    (_same, "type_as resolve_conj resolve_neg real conj requires_grad"),
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
INVERSES: Mapping[str, Inverse] = MappingProxyType({name: inverse for inverse, names in _ROWS for name in names.split()})
