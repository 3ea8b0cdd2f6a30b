"""Reductions over dimensions, and selections by order along one."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _ordered(name: str, doc: str) -> Op:
    # These yield the indices too; what is quantized are the values, where nothing else is asked for.
    return Op(f"quantized::{name}", Family.SHARED, (f"aten::{name}", "getitem"), "monotone", doc, overload="default")


OPS = (
    Op(
        "quantized::mean",
        Family.SHARED,
        ("aten::mean",),
        "homogeneous",
        "mean over dimensions, rounded once",
        overload="dim",
    ),
    Op(
        "quantized::sum",
        Family.ARITHMETIC,
        ("aten::sum",),
        "homogeneous",
        "sum over dimensions, rounded once",
        overload="dim_IntList",
    ),
    Op("quantized::amax", Family.SHARED, ("aten::amax",), "move", "maximum over dimensions"),
    Op("quantized::amin", Family.SHARED, ("aten::amin",), "move", "minimum over dimensions"),
    _ordered("sort", "the elements along one dimension in order"),
    _ordered("topk", "the largest or smallest elements along one dimension"),
)
