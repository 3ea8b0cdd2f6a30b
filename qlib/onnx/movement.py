"""Operators that only move elements, as ONNX's operators."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.graph import nodes_in
from qlib.onnx.borders import Emit
from qlib.onnx.draft import Draft, refuse, shape_of


def _reshape(draft: Draft, node: fx.Node) -> str:
    """Whatever keeps the elements in order, as a ``Reshape`` to the captured shape."""
    given = [draft.value(node.args[0], node), draft.integers(shape_of(node), f"{node.name}_shape")]
    return draft.add("Reshape", given, node.name)


def _expand(draft: Draft, node: fx.Node) -> str:
    given = [draft.value(node.args[0], node), draft.integers(shape_of(node), f"{node.name}_shape")]
    return draft.add("Expand", given, node.name)


def _permute(draft: Draft, node: fx.Node) -> str:
    dims = len(shape_of(node))
    order = [int(d) % dims for d in node.args[1]]  # type: ignore[arg-type, union-attr]
    return draft.add("Transpose", [draft.value(node.args[0], node)], node.name, perm=order)


def _transpose(draft: Draft, node: fx.Node) -> str:
    dims = len(shape_of(node))
    order = list(range(dims))
    a, b = (int(d) % dims for d in node.args[1:3])  # type: ignore[arg-type]
    order[a], order[b] = b, a
    return draft.add("Transpose", [draft.value(node.args[0], node)], node.name, perm=order)


def _cat(draft: Draft, node: fx.Node) -> str:
    given = [draft.value(item, node) for item in nodes_in(node.args[0])]
    return draft.add("Concat", given, node.name, axis=node.args[1])


def _stack(draft: Draft, node: fx.Node) -> str:
    dims = len(shape_of(node))
    axis = int(node.args[1]) % dims  # type: ignore[arg-type]
    axes = draft.integers([axis], f"{node.name}_axis")
    names = [
        draft.add("Unsqueeze", [draft.value(item, node), axes], f"{node.name}_item") for item in nodes_in(node.args[0])
    ]
    return draft.add("Concat", names, node.name, axis=axis)


def _slice(draft: Draft, node: fx.Node) -> str:
    bounds: tuple[Any, ...] = node.args[1:5]
    dim, start, end, step = bounds
    parts = (("start", start), ("end", end), ("axis", dim), ("step", step))
    given = [draft.integers([value], f"{node.name}_{name}") for name, value in parts]
    return draft.add("Slice", [draft.value(node.args[0], node), *given], node.name)


def _by_index(draft: Draft, node: fx.Node) -> Any:
    """Any other movement: the operator on the numbers of the elements says which element goes where.

    Tensors that are moved (those of the result's type) are numbered one after the other; indices have to be constants.
    """
    assert callable(node.target)
    start, moved = 0, []

    def numbered(argument: fx.Node) -> torch.Tensor:
        nonlocal start
        if argument.meta["dtype"] != node.meta.get("dtype", argument.meta["dtype"]):
            if argument.op != "get_attr":
                raise refuse(node, f"indices that are computed ({argument})")
            return draft.stored(argument)
        numbers = start + torch.arange(prod(shape_of(argument))).reshape(shape_of(argument))
        start += numbers.numel()
        moved.append(argument)
        return numbers

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), numbered)
    found = node.target(*args, **kwargs)
    flat = draft.integers([-1], f"{node.name}_flat")
    rows = [draft.add("Reshape", [draft.value(source, node), flat], f"{node.name}_row") for source in moved]
    row = rows[0] if len(rows) == 1 else draft.add("Concat", rows, f"{node.name}_rows", axis=0)
    if isinstance(found, torch.Tensor):
        return _taken(draft, node, row, found)
    return tuple(_taken(draft, node, row, piece) for piece in found)


def _taken(draft: Draft, node: fx.Node, row: str, index: torch.Tensor) -> str:
    indices = draft.integers(index.flatten().tolist(), f"{node.name}_index")
    taken = draft.add("Gather", [row, indices], f"{node.name}_taken")
    return draft.add("Reshape", [taken, draft.integers(list(index.shape), f"{node.name}_shape")], node.name)


def _pixel_shuffle(draft: Draft, node: fx.Node) -> Any:
    if len(shape_of(node)) != 4:
        return _by_index(draft, node)
    x = draft.value(node.args[0], node)
    return draft.add("DepthToSpace", [x], node.name, blocksize=node.args[1], mode="CRD")


def _index_select(draft: Draft, node: fx.Node) -> str:
    x, dim, index = node.args
    return draft.add("Gather", [draft.value(x, node), draft.value(index, node)], node.name, axis=dim)


def _gather(draft: Draft, node: fx.Node) -> str:
    x, dim, index = node.args[:3]
    return draft.add("GatherElements", [draft.value(x, node), draft.value(index, node)], node.name, axis=dim)


def _item(draft: Draft, node: fx.Node) -> Any:
    source, index = node.args
    return draft.names[source][index]  # type: ignore[index]


_IN_ORDER = ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone")
_MOVED = (
    *("select", "repeat", "tile", "repeat_interleave", "flip", "roll", "rot90", "channel_shuffle", "pixel_unshuffle"),
    *("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "index", "select_scatter", "slice_scatter"),
)
MOVEMENT: Mapping[str, Emit] = MappingProxyType(
    {
        **{f"aten::{name}": _reshape for name in _IN_ORDER},
        **{f"aten::{name}": _by_index for name in _MOVED},
        "aten::expand": _expand,
        "aten::permute": _permute,
        "aten::transpose": _transpose,
        "aten::cat": _cat,
        "aten::stack": _stack,
        "aten::slice": _slice,
        "aten::pixel_shuffle": _pixel_shuffle,
        "aten::index_select": _index_select,
        "aten::gather": _gather,
        "getitem": _item,
    }
)
