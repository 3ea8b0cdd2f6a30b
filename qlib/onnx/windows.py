"""Pooling, reductions, padding and resampling, as ONNX's operators."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from qlib.graph import overload_name
from qlib.onnx.borders import Emit
from qlib.onnx.draft import Draft, over_windows, refuse, shape_of
from qlib.spelled.selections import adaptive_windows


def _max_pool(draft: Draft, node: fx.Node) -> str:
    arguments: tuple[Any, ...] = node.args
    _, kernel, stride, padding, dilation, ceil = arguments[:6]
    return over_windows(
        draft,
        node,
        "MaxPool",
        [],
        len(kernel),
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        ceil_mode=int(ceil),
    )


def _avg_pool(draft: Draft, node: fx.Node) -> str:
    arguments: tuple[Any, ...] = node.args
    _, kernel, stride, padding, ceil, include = arguments[:6]
    if len(arguments) > 6 and arguments[6] is not None:
        raise refuse(node, "a divisor of its own")
    return over_windows(
        draft,
        node,
        "AveragePool",
        [],
        len(kernel),
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        ceil_mode=int(ceil),
        count_include_pad=int(include),
    )


def _adaptive(kind: str) -> Emit:
    """A pooling to a given size: over everything, by equal windows where the size divides, else by tables."""

    def emit(draft: Draft, node: fx.Node) -> Any:
        size = list(node.args[1])  # type: ignore[arg-type]
        whole = shape_of(node.args[0])[-len(size) :]
        size = [have if want is None else want for want, have in zip(size, whole, strict=True)]
        if set(size) == {1}:
            found = over_windows(draft, node, f"Global{kind}", [], len(size))
        elif any(have % want for want, have in zip(size, whole, strict=True)):
            found = _by_tables(draft, node, adaptive_windows(whole, size))
        else:
            kernel = [have // want for want, have in zip(size, whole, strict=True)]
            found = over_windows(draft, node, kind, [], len(size), kernel_shape=kernel, strides=kernel)
        return (found,) if "max" in str(node.target) else found

    return emit


def _by_tables(draft: Draft, node: fx.Node, tables: list[torch.Tensor]) -> str:
    """The maximum or mean of the elements that tables name, one axis after the other; one named again counts once."""
    name, dims = draft.value(node.args[0], node), len(shape_of(node.args[0]))
    for axis, table in enumerate(tables, dims - len(tables)):
        name = draft.add("Gather", [name, draft.constant(table, f"{node.name}_index")], f"{node.name}_taken", axis=axis)
        beside = draft.integers([axis + 1], f"{node.name}_axis")
        if "max" in str(node.target):
            name = draft.add("ReduceMax", [name, beside], f"{node.name}_largest", keepdims=0)
            continue
        new = torch.cat([torch.ones_like(table[:, :1]), table.diff(dim=1)], 1).float()
        share = (new / new.sum(1, keepdim=True)).reshape(*table.shape, *[1] * (dims - 1 - axis))
        name = draft.add("Mul", [name, draft.constant(share, f"{node.name}_share")], f"{node.name}_parts")
        name = draft.add("ReduceSum", [name, beside], f"{node.name}_mean", keepdims=0)
    return name


def _extremum(kind: str) -> Emit:
    """The extremum and its index along one dimension, the extremum of all elements, or that of two tensors."""

    def emit(draft: Draft, node: fx.Node) -> Any:
        arguments: tuple[Any, ...] = (*node.args, False)
        x = draft.value(arguments[0], node if "dtype" in node.meta else arguments[0])
        way = overload_name(node)
        if way == "other":
            return draft.add(kind, [x, draft.value(arguments[1], node)], node.name)
        if way != "dim":
            return draft.add(f"Reduce{kind}", [x], node.name, keepdims=0)
        dim, keep = arguments[1], int(arguments[2])
        value = draft.add(f"Reduce{kind}", [x, draft.integers([dim], f"{node.name}_axis")], node.name, keepdims=keep)
        return value, draft.add(f"Arg{kind}", [x], f"{node.name}_index", axis=dim, keepdims=keep)

    return emit


def _reduce(kind: str) -> Emit:
    """A reduction over the dimensions named, or over all of them."""

    def emit(draft: Draft, node: fx.Node) -> str:
        arguments: tuple[Any, ...] = (*node.args[1:], None, False)
        dims, keep = arguments[:2]
        dims = [dims] if isinstance(dims, int) else list(dims or [])
        given = [draft.value(node.args[0], node)]
        given += [draft.integers(dims, f"{node.name}_axes")] if dims else []
        return draft.add(kind, given, node.name, keepdims=int(bool(keep)))

    return emit


def _order(draft: Draft, node: fx.Node) -> tuple[str, ...]:
    """``TopK``; a sort is the first so many as there are."""
    arguments: tuple[Any, ...] = node.args
    if "topk" in str(node.target):
        x, count, dim, largest, ordered = arguments[:5]
    else:
        if len(arguments) > 1 and isinstance(arguments[-1], bool) and len(arguments) == 4:
            _, _, dim, largest = arguments
        else:
            _, dim, largest = arguments[:3]
        x, ordered = arguments[0], True
        count = shape_of(x)[dim]
    given = [draft.value(x, node), draft.integers([count], f"{node.name}_count")]
    names = [node.name, f"{node.name}_indices"]
    return draft.add_many("TopK", given, names, axis=dim, largest=int(largest), sorted=int(ordered))


def _pad(mode: str) -> Emit:
    """``Pad`` with a number, or with what lies at the border."""

    def emit(draft: Draft, node: fx.Node) -> str:
        arguments: tuple[Any, ...] = node.args
        x, pads = arguments[:2]
        dims = len(shape_of(x))
        before, after = [0] * dims, [0] * dims
        for n in range(len(pads) // 2):
            before[dims - 1 - n], after[dims - 1 - n] = pads[2 * n], pads[2 * n + 1]
        given = [draft.value(x, node), draft.integers([*before, *after], f"{node.name}_pads")]
        given += [draft.value(arguments[2], node)] if mode == "constant" else []
        return draft.add("Pad", given, node.name, mode=mode)

    return emit


def _resize(mode: str) -> Emit:
    """``Resize`` by the factors that the module was written with, else to the captured size.

    Both give the same size, but a position in the source is the position in the result divided by the factor as given.
    """

    def emit(draft: Draft, node: fx.Node) -> str:
        corners = mode == "linear" and bool(node.args[2])
        where = "align_corners" if corners else ("half_pixel" if mode == "linear" else "asymmetric")
        last: tuple[Any, ...] = node.args[3 if mode == "linear" else 2 :]
        factors = [float(factor) for factor in pytree.tree_leaves(last) if factor is not None]
        given = [draft.value(node.args[0], node), ""]
        if len(factors) == len(shape_of(node)) - 2:
            given += [draft.constant([1.0, 1.0, *factors], f"{node.name}_factors", torch.float32)]
        else:
            given += ["", draft.integers(shape_of(node), f"{node.name}_sizes")]
        nearest = "floor" if mode == "nearest" else None
        return draft.add(
            "Resize", given, node.name, mode=mode, coordinate_transformation_mode=where, nearest_mode=nearest
        )

    return emit


WINDOWS: Mapping[str, Emit] = MappingProxyType(
    {
        **{f"aten::max_pool{d}d": _max_pool for d in (1, 2, 3)},
        **{f"aten::avg_pool{d}d": _avg_pool for d in (1, 2, 3)},
        **{f"aten::adaptive_avg_pool{d}d": _adaptive("AveragePool") for d in (1, 2, 3)},
        **{f"aten::adaptive_max_pool{d}d": _adaptive("MaxPool") for d in (1, 2, 3)},
        "aten::mean": _reduce("ReduceMean"),
        "aten::sum": _reduce("ReduceSum"),
        "aten::amax": _reduce("ReduceMax"),
        "aten::amin": _reduce("ReduceMin"),
        "aten::max": _extremum("Max"),
        "aten::min": _extremum("Min"),
        "aten::topk": _order,
        "aten::sort": _order,
        "aten::constant_pad_nd": _pad("constant"),
        **{f"aten::reflection_pad{d}d": _pad("reflect") for d in (1, 2, 3)},
        **{f"aten::replication_pad{d}d": _pad("edge") for d in (1, 2, 3)},
        **{f"aten::upsample_nearest{d}d": _resize("nearest") for d in (1, 2, 3)},
        **{f"aten::upsample_{k}linear{d}d": _resize("linear") for k, d in (("", 1), ("bi", 2), ("tri", 3))},
    }
)
