"""Products of two quantized matrices."""

from __future__ import annotations

from qlib.ops.op import Family, Op

OPS = tuple(
    Op(f"quantized::{name}", Family.ARITHMETIC, (f"aten::{name}",), "matmul", doc, operands=(0, 1))
    for name, doc in {
        "matmul": "matrix product of two tensors, all dimensions but the last two broadcast",
        "bmm": "matrix products of two batches",
    }.items()
)
