"""Linear layers."""

from __future__ import annotations

from qlib.ops.op import Family, Op, When


def _linear(name: str, chain: tuple[str, ...], kernel: str, when: When, doc: str) -> Op:
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


_RELU = ("aten::linear", "aten::relu")
_PLAIN = ("aten::linear",)

OPS = (
    _linear("linear", _PLAIN, "linear", When.STATIC, "y = x W^T + b in integers"),
    _linear("linear_relu", _RELU, "linear", When.STATIC, "linear and relu with one requantization"),
    _linear(
        "linear_dynamic",
        _PLAIN,
        "linear_dynamic",
        When.DYNAMIC,
        "linear with the input quantized by its range at run time",
    ),
    _linear("linear_relu_dynamic", _RELU, "linear_dynamic", When.DYNAMIC, "linear_dynamic followed by relu"),
    _linear(
        "linear_per_token_dynamic",
        _PLAIN,
        "linear_per_token",
        When.PER_TOKEN,
        "linear with each row of the input quantized by its own range at run time",
    ),
    _linear(
        "linear_relu_per_token_dynamic",
        _RELU,
        "linear_per_token",
        When.PER_TOKEN,
        "linear_per_token_dynamic followed by relu",
    ),
)
