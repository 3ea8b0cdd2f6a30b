"""Pooling; results lie in the range of the input and keep its parameters."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _pool(name: str, kernel: str, doc: str) -> Op:
    # The adaptive maximum yields the indices too; what is quantized is its first result.
    chain = (f"aten::{name}", "getitem") if name.startswith("adaptive_max") else (f"aten::{name}",)
    return Op(f"quantized::{name}", Family.SHARED, chain, kernel, doc)


OPS = tuple(
    row
    for dim in (1, 2, 3)
    for row in (
        _pool(f"max_pool{dim}d", "monotone", f"{dim}-dimensional maximum of a window"),
        _pool(f"adaptive_max_pool{dim}d", "monotone", f"{dim}-dimensional maximum, by output size"),
        _pool(f"avg_pool{dim}d", "averaging", f"{dim}-dimensional mean of a window"),
        _pool(f"adaptive_avg_pool{dim}d", "averaging", f"{dim}-dimensional mean, by output size"),
    )
)
