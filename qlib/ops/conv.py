"""Convolutions."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _conv(dim: int, tail: str, doc: str) -> Op:
    chain = (f"aten::conv{dim}d", *((f"aten::{tail}",) if tail else ()))
    name = "_".join([f"conv{dim}d", *([tail] if tail else [])])
    return Op(
        f"quantized::{name}", Family.WEIGHTED, chain, "conv", doc, parameters=(1, 2), required=(1,), weight=1, bias=2
    )


OPS = tuple(
    row
    for dim in (1, 2, 3)
    for row in (
        _conv(dim, "", f"{dim}-dimensional convolution in integers"),
        _conv(dim, "relu", f"{dim}-dimensional convolution and relu with one requantization"),
    )
)
