"""Transposed convolutions."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _transposed(dim: int, tail: str, doc: str) -> Op:
    name = f"conv_transpose{dim}d"
    return Op(
        f"quantized::{name}{tail and f'_{tail}'}",
        Family.WEIGHTED,
        (f"aten::{name}", *((f"aten::{tail}",) if tail else ())),
        "conv_transpose",
        doc,
        parameters=(1, 2),
        required=(1,),
        weight=1,
        bias=2,
        weight_axis=1,
        groups=6,
    )


OPS = tuple(
    row
    for dim in (1, 2, 3)
    for row in (
        _transposed(dim, "", f"{dim}-dimensional transposed convolution in integers"),
        _transposed(dim, "relu", f"{dim}-dimensional transposed convolution and relu with one requantization"),
    )
)
