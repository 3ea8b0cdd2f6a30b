"""Convolutions."""

from __future__ import annotations

from qlib.ops.op import Family, Op, When


def _conv(dim: int, tail: str, when: When, doc: str) -> Op:
    kernel = "conv_dynamic" if when is When.DYNAMIC else "conv"
    name = f"conv{dim}d{tail and f'_{tail}'}{kernel.removeprefix('conv')}"
    chain = (f"aten::conv{dim}d", *((f"aten::{tail}",) if tail else ()))
    return Op(
        f"quantized::{name}",
        Family.WEIGHTED,
        chain,
        kernel,
        doc,
        when,
        parameters=(1, 2),
        required=(1,),
        weight=1,
        bias=2,
    )


OPS = tuple(
    row
    for dim in (1, 2, 3)
    for row in (
        _conv(dim, "", When.STATIC, f"{dim}-dimensional convolution in integers"),
        _conv(dim, "relu", When.STATIC, f"{dim}-dimensional convolution and relu with one requantization"),
        _conv(dim, "", When.DYNAMIC, f"{dim}-dimensional convolution, its input quantized by its range at run time"),
        _conv(dim, "relu", When.DYNAMIC, f"conv{dim}d_dynamic followed by relu"),
    )
)
