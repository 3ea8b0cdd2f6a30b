"""The operator table: one row per quantized operator, found by name or by the float operators it stands for.

Adding an operator is adding a row to one of the files of this folder. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qlib.ops import (
    activation,
    arithmetic,
    conv,
    embedding,
    linear,
    matmul,
    norm,
    pooling,
    recurrent,
    reduction,
    resampling,
    shape,
    transposed,
    weight_only,
)
from qlib.ops.op import Family, Op, When

GROUPS = (
    linear,
    conv,
    transposed,
    weight_only,
    embedding,
    recurrent,
    matmul,
    arithmetic,
    norm,
    activation,
    pooling,
    reduction,
    resampling,
    shape,
)

OPS: Mapping[str, Op] = MappingProxyType({op.name: op for group in GROUPS for op in group.OPS})

# Operators that every flow places by itself, with what they do.
BOUNDARY: Mapping[str, str] = MappingProxyType(
    {
        "quantized::quantize_per_tensor": "real numbers to integers with one scale",
        "quantized::quantize_per_channel": "real numbers to integers with one scale per channel",
        "quantized::dequantize_per_tensor": "integers to real numbers with one scale",
        "quantized::dequantize_per_channel": "integers to real numbers with one scale per channel",
        "quantized::dequantize_per_group": "integers to real numbers with one scale per group of a row's elements",
        "quantized::choose_qparams": "scale and zero point from the range of a tensor at run time",
        "quantized::choose_qparams_per_token": "scales and zero points from the range of each row at run time",
        "quantized::quantize_per_token": "real numbers to integers with one scale per row",
        "quantized::dequantize_per_token": "integers to real numbers with one scale per row",
    }
)


def _by_head() -> Mapping[str, tuple[Op, ...]]:
    heads: dict[str, list[Op]] = {}
    for op in OPS.values():
        heads.setdefault(op.chain[0], []).append(op)
    return MappingProxyType({head: tuple(sorted(rows, key=lambda op: -len(op.chain))) for head, rows in heads.items()})


# Rows by the first float operator of their chain, the longest chain first.
BY_HEAD: Mapping[str, tuple[Op, ...]] = _by_head()

__all__ = ["BOUNDARY", "BY_HEAD", "GROUPS", "OPS", "Family", "Op", "When"]
