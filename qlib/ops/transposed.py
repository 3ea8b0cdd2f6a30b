"""Transposed convolutions."""

from __future__ import annotations

from qlib.ops.op import Family, Op, When


def _transposed(dim: int, tail: str, when: When, doc: str) -> Op:
    name = f"conv_transpose{dim}d"
    kernel = "conv_transpose_dynamic" if when is When.DYNAMIC else "conv_transpose"
    return Op(
        f"quantized::{name}{tail and f'_{tail}'}{kernel.removeprefix('conv_transpose')}",
        Family.WEIGHTED,
        (f"aten::{name}", *((f"aten::{tail}",) if tail else ())),
        kernel,
        doc,
        when,
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
        _transposed(dim, "", When.STATIC, f"{dim}-dimensional transposed convolution in integers"),
        _transposed(
            dim, "relu", When.STATIC, f"{dim}-dimensional transposed convolution and relu with one requantization"
        ),
        _transposed(
            dim, "", When.DYNAMIC, f"{dim}-dimensional transposed convolution, its input quantized at run time"
        ),
        _transposed(dim, "relu", When.DYNAMIC, f"conv_transpose{dim}d_dynamic followed by relu"),
    )
)
