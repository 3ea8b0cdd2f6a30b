"""Linear layers on floats whose weights alone are stored in few bits."""

from __future__ import annotations

from qlib.ops.op import INTEGERS, Family, Op, When
from qlib.qparams import DType

_HALF = (DType.FLOAT16,)


def _linear(name: str, tail: str, kernel: str, weight_types: tuple[DType, ...], doc: str) -> Op:
    return Op(
        f"quantized::{name}",
        Family.WEIGHTED,
        ("aten::linear", *((f"aten::{tail}",) if tail else ())),
        kernel,
        doc,
        When.WEIGHT_ONLY,
        parameters=(1, 2),
        required=(1,),
        weight=1,
        bias=2,
        weight_types=weight_types,
    )


OPS = (
    _linear("linear_weight_only", "", "linear_weight_only", INTEGERS, "linear on floats with integer weights"),
    _linear("linear_relu_weight_only", "relu", "linear_weight_only", INTEGERS, "linear_weight_only followed by relu"),
    _linear("linear_dynamic_fp16", "", "linear_fp16", _HALF, "linear on floats with weights rounded to float16"),
    _linear("linear_relu_dynamic_fp16", "relu", "linear_fp16", _HALF, "linear_dynamic_fp16 followed by relu"),
)
