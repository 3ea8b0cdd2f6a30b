"""Normalisation: with constant statistics, with those of the data, and by the sum of the exponentials."""

from __future__ import annotations

from qlib.ops.op import Family, Op

_PARAMETERS = (1, 2, 3, 4)
_STATISTICS = (3, 4)
_TRAINING = 5


def _of_data(name: str, parameters: tuple[int, ...], doc: str) -> Op:
    head = (f"aten::{name}",)
    return Op(f"quantized::{name}", Family.OBSERVED, head, "computed", doc, parameters=parameters)


def _masked(head: str, tail: str, overload: str, doc: str) -> Op:
    """A softmax of quantized scores that a mask in float goes before: what it hides is in no range of integers."""
    return Op(
        f"quantized::{head}_{tail.removeprefix('_')}",
        Family.FIXED,
        (f"aten::{head}", f"aten::{tail}"),
        "masked",
        doc,
        interval=(0.0, 1.0),
        others=(1,),
        overload=overload,
    )


OPS = (
    _of_data("layer_norm", (2, 3), "normalisation over the last dimensions"),
    _of_data("group_norm", (2, 3), "normalisation over groups of channels"),
    _of_data("instance_norm", (1, 2), "normalisation over each channel of each example"),
    _of_data("rms_norm", (2,), "division by the root of the mean square over the last dimensions"),
    Op(
        "quantized::log_softmax",
        Family.ARITHMETIC,
        ("aten::log_softmax",),
        "computed",
        "logarithm of softmax",
        zero_at=2,
        overload="int",
    ),
    *(
        row
        for tail in ("softmax", "_safe_softmax")
        for row in (
            _masked("masked_fill", tail, "Scalar", "softmax of scores where a mask is false"),
            _masked("add", tail, "Tensor", "softmax of scores plus a mask in float"),
        )
    ),
    Op(
        "quantized::softmax",
        Family.FIXED,
        ("aten::softmax",),
        "computed",
        "exponentials along one dimension over their sum, results in [0, 1]",
        interval=(0.0, 1.0),
        zero_at=2,
        overload="int",
    ),
    Op(
        "quantized::batch_norm",
        Family.OBSERVED,
        ("aten::batch_norm",),
        "channel_table",
        "batch normalisation in evaluation mode, any number of dimensions",
        parameters=_PARAMETERS,
        required=_STATISTICS,
        zero_at=_TRAINING,
    ),
    Op(
        "quantized::batch_norm_relu",
        Family.OBSERVED,
        ("aten::batch_norm", "aten::relu"),
        "channel_table",
        "batch normalisation in evaluation mode, then relu",
        parameters=_PARAMETERS,
        required=_STATISTICS,
        zero_at=_TRAINING,
    ),
)
