"""One way of writing reductions, extrema and changes of size, whichever overload they were called by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx
from torch._ops import OpOverload

from qlib.graph import become

_aten = torch.ops.aten
Rewrite = Callable[[fx.Node], None]


def _reduce_all(target: OpOverload) -> Rewrite:
    """A reduction of everything is one over no dimensions in particular."""

    def rewrite(node: fx.Node) -> None:
        keywords = dict(node.kwargs)
        become(node, target, node.args[0], None, False)
        node.kwargs = keywords

    return rewrite


def _extremum_of_all(target: OpOverload) -> Rewrite:
    return lambda node: become(node, target, node.args[0], [], False)


def _extremum(target: OpOverload) -> Rewrite:
    """An extremum along one dimension whose indices nobody uses."""

    def rewrite(node: fx.Node) -> None:
        items = list(node.users)
        if all(item.args[1] == 0 for item in items if item.users):
            for item in items:
                if item.args[1] == 0:
                    node.meta.update(shape=item.meta["shape"], dtype=item.meta["dtype"])
                    item.replace_all_uses_with(node)
                node.graph.erase_node(item)
            become(node, target, node.args[0], [node.args[1]], node.args[2])

    return rewrite


def _resize(target: OpOverload) -> Rewrite:
    """A change to a given size, in the form that takes a size or factors."""

    def rewrite(node: fx.Node) -> None:
        dims = len(node.meta["shape"]) - 2
        if all(factor is None for factor in node.args[-dims:]):
            become(node, target, *node.args[:-dims], None)

    return rewrite


_RESIZED = ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d")
# Rewrites, each with the operators that it is for.
REDUCTIONS: tuple[tuple[Rewrite, tuple[OpOverload, ...]], ...] = (
    (_reduce_all(_aten.mean.dim), (_aten.mean.default,)),
    (_reduce_all(_aten.sum.dim_IntList), (_aten.sum.default,)),
    (_extremum_of_all(_aten.amax.default), (_aten.max.default,)),
    (_extremum_of_all(_aten.amin.default), (_aten.min.default,)),
    (_extremum(_aten.amax.default), (_aten.max.dim,)),
    (_extremum(_aten.amin.default), (_aten.min.dim,)),
    *((_resize(p.vec), (p.default,)) for p in (getattr(_aten, f"upsample_{name}") for name in _RESIZED)),
)
