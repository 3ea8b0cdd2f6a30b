"""Operators of several quantized tensors, or of one and a number."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _binary(name: str, kernel: str, doc: str) -> tuple[Op, ...]:
    head, relu = (f"aten::{name}",), (f"aten::{name}", "aten::relu")
    full, scalar = f"quantized::{name}", f"quantized::{name}_scalar"
    return (
        Op(full, Family.ARITHMETIC, head, kernel, f"{doc} of two tensors", operands=(0, 1)),
        Op(f"{full}_relu", Family.ARITHMETIC, relu, kernel, f"{doc} of two tensors, then relu", operands=(0, 1)),
        Op(scalar, Family.ARITHMETIC, head, "table", f"{doc} of a tensor and a number"),
        Op(f"{scalar}_relu", Family.ARITHMETIC, relu, "table", f"{doc} of a tensor and a number, then relu"),
    )


def _extremum(name: str, doc: str) -> Op:
    return Op(f"quantized::{name}", Family.ARITHMETIC, (f"aten::{name}",), "combine", doc, operands=(0, 1))


OPS = (
    *_binary("add", "combine", "sum"),
    *_binary("sub", "combine", "difference"),
    *_binary("mul", "mul", "product"),
    *_binary("div", "div", "quotient"),
    Op("quantized::rsub_scalar", Family.ARITHMETIC, ("aten::rsub",), "table", "difference of a number and a tensor"),
    Op(
        "quantized::where",
        Family.ARITHMETIC,
        ("aten::where",),
        "choose",
        "elements of the one tensor where a condition holds, of the other elsewhere",
        operands=(1, 2),
        others=(0,),
        overload="self",
    ),
    Op(
        "quantized::masked_fill",
        Family.ARITHMETIC,
        ("aten::masked_fill",),
        "fill",
        "a number where a mask is true",
        others=(1,),
        finite_at=2,
        overload="Scalar",
    ),
    _extremum("maximum", "the larger of two tensors, element by element"),
    _extremum("minimum", "the smaller of two tensors, element by element"),
    Op("quantized::cat", Family.ARITHMETIC, ("aten::cat",), "join", "concatenation of tensors with different scales"),
    Op("quantized::stack", Family.ARITHMETIC, ("aten::stack",), "join", "stacking of tensors with different scales"),
)
