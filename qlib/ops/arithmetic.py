"""Operators of several quantized tensors, or of one and a number."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _binary(name: str, doc: str) -> tuple[Op, ...]:
    head, relu = (f"aten::{name}",), (f"aten::{name}", "aten::relu")
    full, scalar = f"quantized::{name}", f"quantized::{name}_scalar"
    return (
        Op(full, Family.ARITHMETIC, head, name, f"{doc} of two tensors", operands=(0, 1)),
        Op(f"{full}_relu", Family.ARITHMETIC, relu, name, f"{doc} of two tensors, then relu", operands=(0, 1)),
        Op(scalar, Family.ARITHMETIC, head, "table", f"{doc} of a tensor and a number"),
        Op(f"{scalar}_relu", Family.ARITHMETIC, relu, "table", f"{doc} of a tensor and a number, then relu"),
    )


OPS = (
    *_binary("add", "sum"),
    *_binary("mul", "product"),
    Op("quantized::cat", Family.ARITHMETIC, ("aten::cat",), "join", "concatenation of tensors with different scales"),
    Op("quantized::stack", Family.ARITHMETIC, ("aten::stack",), "join", "stacking of tensors with different scales"),
)
