"""Tables that are looked up by row, their rows stored in few bits; the results are floats.

An `embedding` uses its padding index in training only; in an `embedding_bag` it leaves rows out of the sums, which no
kernel does: such a one stays in float.
"""

from __future__ import annotations

from qlib.ops.op import Family, Op, When
from qlib.qparams import DType

_WIDTHS = {"byte": (DType.UINT8, DType.INT8), "4bit": (DType.UINT4, DType.INT4)}


def _embedding(width: str) -> Op:
    return Op(
        f"quantized::embedding_{width}",
        Family.WEIGHTED,
        ("aten::embedding",),
        "embedding",
        f"rows of a table of {'8' if width == 'byte' else '4'}-bit integers, by their indices",
        When.WEIGHT_ONLY,
        operands=(),
        parameters=(0,),
        others=(1,),
        required=(0,),
        weight=0,
        weight_types=_WIDTHS[width],
    )


def _bag(width: str) -> Op:
    return Op(
        f"quantized::embedding_bag_{width}",
        Family.WEIGHTED,
        ("aten::embedding_bag", "getitem"),
        "embedding_bag",
        f"sums, means or maxima of rows of a table of {'8' if width == 'byte' else '4'}-bit integers",
        When.WEIGHT_ONLY,
        operands=(),
        parameters=(0,),
        others=(1, 2, 6),
        required=(0,),
        weight=0,
        weight_types=_WIDTHS[width],
        none_at=8,
    )


OPS = tuple(row for width in _WIDTHS for row in (_embedding(width), _bag(width)))
