"""Normalisation with constant statistics."""

from __future__ import annotations

from qlib.ops.op import Family, Op

_PARAMETERS = (1, 2, 3, 4)
_STATISTICS = (3, 4)
_TRAINING = 5

OPS = (
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
