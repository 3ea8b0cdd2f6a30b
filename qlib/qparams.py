"""How a tensor is quantized: the parameters, and the description they are computed from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


Number = TypeVar("Number", int, float)


class DType(StrEnum):
    """Types by name; the 4-bit types are stored in a byte and differ in their range only.

    `float16` is for weights that are rounded to half precision: its one step is 1 and its values need not be integers.
    """

    UINT8 = "uint8"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    UINT4 = "uint4"
    INT4 = "int4"
    FLOAT16 = "float16"


class RangeFrom(StrEnum):
    """Where the range of a tensor comes from."""

    CALIBRATION = "calibration"
    RUNTIME = "runtime"
    FIXED = "fixed"


RANGES: dict[DType, tuple[int, int]] = {
    DType.UINT8: (0, 255),
    DType.INT8: (-128, 127),
    DType.INT16: (-32768, 32767),
    DType.INT32: (-(2**31), 2**31 - 1),
    DType.UINT4: (0, 15),
    DType.INT4: (-8, 7),
    DType.FLOAT16: (-65504, 65504),
}

# The group size that stands for a whole row, however long it is.
ROW = 0


@dataclass(frozen=True)
class QParams:
    """The map between stored integers and real numbers: ``real = scale * (stored - zero_point)``.

    `scale` (float32 values) and `zero_point` (int32 values) are 0-dimensional tensors, or 1-dimensional with one entry
    for each index along `axis`, or have the tensor's shape with one entry for each `group_size` elements of the last
    dimension. Stored values lie in ``[qmin, qmax]`` and are kept in a tensor of `dtype`.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    dtype: DType
    axis: int | None = None
    group_size: int | None = None


@dataclass(frozen=True)
class QSpec:
    """The description that one tensor's `QParams` are computed from.

    `qmin` and `qmax` default to the whole range of `dtype`, or to a range that is symmetric about zero where
    `symmetric` asks for zero point = 0 on a signed type. `axis` asks for one scale per index along that axis,
    `group_size` for one per so many elements along the last dimension: of weights by their number, of tensors that are
    quantized at run time by `ROW`, a whole row (each token of a sequence, say).
    `observer` names an entry of `qlib.observers.OBSERVERS`. `scale` and `zero_point` are given for the fixed observer
    only: a number each, or with an axis one for each index along it; one zero point may stand for all.
    Raises ValueError for a range that the dtype can't hold or that is empty, and for contradictory fields.
    """

    dtype: DType = DType.UINT8
    qmin: int | None = None
    qmax: int | None = None
    symmetric: bool = False
    axis: int | None = None
    observer: str = "min_max"
    scale: float | tuple[float, ...] | None = None
    zero_point: int | tuple[int, ...] | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Check the fields against each other, so that every later step may trust them."""
        low, high = RANGES[DType(self.dtype)]
        qmin, qmax = self.range
        if not low <= qmin < qmax <= high:
            raise ValueError(
                f"the range [{qmin}, {qmax}] does not fit {self.dtype}: expected {low} <= qmin < qmax <= {high}"
            )
        if (self.observer == "fixed") != (self.scale is not None):
            raise ValueError("scale is given if and only if the observer is 'fixed'")
        for scale in _each(self.scale):
            if not 0.0 < scale < float("inf"):
                raise ValueError(f"a scale is a positive finite number, found {scale}")
        for zero_point in _each(self.zero_point):
            if not qmin <= zero_point <= qmax:
                raise ValueError(f"the zero point {zero_point} lies outside [{qmin}, {qmax}]")
        if isinstance(self.scale, tuple) and self.axis is None:
            raise ValueError("several scales need the axis that they lie along")
        if isinstance(self.zero_point, tuple) and len(self.zero_point) != len(_each(self.scale)):
            raise ValueError(
                f"expected {len(_each(self.scale))} zero points, as many as scales, found {self.zero_point}"
            )
        if self.group_size is not None and (self.group_size < 0 or self.axis is not None):
            raise ValueError(f"a group size is at least 0 and stands without an axis, found {self.group_size}")
        if self.group_size is not None and (self.group_size == ROW) != (self.observer == "runtime"):
            raise ValueError(
                f"group size {ROW} (rows) goes with the observer 'runtime' and only with it, "
                f"found {self.group_size} with {self.observer!r}"
            )

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest stored integer."""
        low, high = RANGES[DType(self.dtype)]
        if self.symmetric and low < 0:
            low += 1
        return (low if self.qmin is None else self.qmin, high if self.qmax is None else self.qmax)

    @property
    def range_from(self) -> RangeFrom:
        """Where the range comes from; it follows from the observer."""
        return {"runtime": RangeFrom.RUNTIME, "fixed": RangeFrom.FIXED}.get(self.observer, RangeFrom.CALIBRATION)


def _each(value: Number | tuple[Number, ...] | None) -> tuple[Number, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)
