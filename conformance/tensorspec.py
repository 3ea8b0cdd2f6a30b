"""How a tensor's values are drawn: the entries of `inputs:`, of `parameters:` and of a `graph:`."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    Strict,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

MAX_ELEMENTS = 2**26
MAX_RANK = 8

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Nested = float | tuple["Nested", ...]


class Dtype(StrEnum):
    """Types that an input or an output may have."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"


class Distribution(StrEnum):
    """How values are drawn, from a generator seeded by the case."""

    UNIFORM = "uniform"
    NORMAL = "normal"
    INTEGERS = "integers"
    CONSTANT = "constant"
    OUTLIERS = "outliers"
    VALUES = "values"


_KEYS = {
    Distribution.UNIFORM: {"range"},
    Distribution.NORMAL: {"range"},
    Distribution.INTEGERS: {"range"},
    Distribution.CONSTANT: {"value"},
    Distribution.OUTLIERS: {"range", "outliers"},
    Distribution.VALUES: {"values"},
}
_DRAWN = frozenset({"range", "value", "values", "outliers"})
_LIMITS = {
    Dtype.FLOAT16: (-65504, 65504),
    Dtype.INT64: (-(2**63), 2**63 - 1),
    Dtype.INT32: (-(2**31), 2**31 - 1),
    Dtype.INT8: (-128, 127),
    Dtype.UINT8: (0, 255),
    Dtype.BOOL: (0, 1),
}
_INTEGERS = frozenset({Dtype.INT64, Dtype.INT32, Dtype.INT8, Dtype.UINT8, Dtype.BOOL})
_FROM_ZERO = frozenset({Dtype.UINT8, Dtype.BOOL})
EIGHT_BITS = frozenset({Dtype.UINT8, Dtype.INT8})
# What may be said of the meaning of other integers: a bias has no zero point.
_MEANING = {Dtype.INT32: {"scale", "axis"}}


KEY = "[key]"
"""Ends the path of an error that is about a key and not about its value."""


def misplaced(message: str, *path: str) -> PydanticCustomError:
    """Return an error about something further in than what is being validated, so that it is shown there."""
    return PydanticCustomError("misplaced", "{message}", {"message": message, "path": path})


def shape_of(values: object) -> tuple[int, ...]:
    """Return the shape of nested lists; raises ValueError where they are ragged or deeper than a tensor may be."""
    if not isinstance(values, list | tuple):
        return ()
    shapes = {shape_of(value) for value in values}
    if len(shapes) > 1:
        raise ValueError("expected lists of equal length, found a ragged one")
    shape = (len(values), *next(iter(shapes), ()))
    if len(shape) > MAX_RANK:
        raise ValueError(f"expected at most {MAX_RANK} dimensions, found {len(shape)}")
    return shape


def _nested(values: object) -> Nested:
    if isinstance(values, list | tuple):
        shape_of(values)
        return tuple(_nested(value) for value in values)
    if isinstance(values, bool | int | float) and math.isfinite(values):
        return float(values)
    raise ValueError(f"expected numbers, found {str(values)[:60]!r}")


class Outliers(BaseModel):
    """A few values far from the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Integer = Field(1, ge=1, le=MAX_ELEMENTS, description="How many elements are replaced.")
    value: Number = Field(description="What they are replaced by.")


_Range = Annotated[
    tuple[Number, Number],
    Field(
        description="[lowest, highest]: the bounds, both included for integers; for normal, the mean is their middle, "
        "the standard deviation a sixth of their distance. Default [-1, 1], for uint8 and bool [0, 1]."
    ),
]
_Kind = Annotated[Distribution, Field(description="How values are drawn. Default uniform, for integer types integers.")]
_Value = Annotated[Number | None, Field(description="The value of every element; only with `distribution: constant`.")]
_Values = Annotated[
    Any,
    AfterValidator(_nested),
    Field(
        description="The elements as nested lists; only with `distribution: values`.",
        json_schema_extra={"type": "array"},
    ),
]
_Outliers = Annotated[
    Outliers | None, Field(description="Which elements stand out; only with `distribution: outliers`.")
]


class Draw(BaseModel):
    """How a parameter's or buffer's values are drawn; shape and type are the module's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distribution: _Kind = Distribution.UNIFORM
    range: _Range = (-1.0, 1.0)
    value: _Value = None
    values: _Values = None
    outliers: _Outliers = None

    @model_validator(mode="after")
    def _fits(self) -> Draw:
        _check_keys(self)
        return self


class TensorSpec(BaseModel):
    """One input: shape, type and how its values are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[Integer, Field(ge=0)], ...] = Field(
        max_length=MAX_RANK, description="Sizes; may be left out with `distribution: values`."
    )
    dtype: Dtype = Field(Dtype.FLOAT32, description="Type of the elements.")
    distribution: _Kind = Distribution.UNIFORM
    range: _Range = (-1.0, 1.0)
    value: _Value = None
    values: _Values = None
    outliers: _Outliers = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, written: Any) -> Any:
        return complete(written) if isinstance(written, Mapping) else written

    @model_validator(mode="after")
    def _fits(self) -> TensorSpec:
        _check_keys(self)
        _check_shape(self)
        _check_type(self)
        return self


@dataclass(frozen=True)
class WrittenAlone:
    """Tells the JSON Schema that a list of one may be written without its brackets."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


def listed(written: Any) -> Any:
    """A value that stands alone as a list of it."""
    return written if isinstance(written, list | tuple) else [written]


def _single(number: float) -> float:
    """The nearest float32: what every backend is given, and every reference computes with."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


# Products of two and quotients by a third stay normal float32 numbers.
Scale = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=2.0**-40, le=2.0**40), AfterValidator(_single)]
_Scales = Annotated[tuple[Scale, ...], BeforeValidator(listed), WrittenAlone()]
_ZeroPoints = Annotated[tuple[Integer, ...], BeforeValidator(listed), WrittenAlone()]


@dataclass(frozen=True)
class TensorQParams:
    """What the integers of one tensor mean: ``real = scale * (stored - zero_point)``.

    `scale` holds float32 numbers: one, or one for each index along `axis`; `zero_point` as many integers. The stored
    integers may be all that `dtype` holds.
    """

    dtype: Dtype
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


class GraphTensor(BaseModel):
    """A tensor of a graph that is written out: integers and what they mean, or values that are not quantized."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[Integer, Field(ge=0)], ...] = Field(
        max_length=MAX_RANK, description="Sizes; may be left out with `distribution: values`."
    )
    dtype: Dtype = Field(description="uint8 and int8 are quantized and have a scale, an int32 constant is a bias.")
    distribution: _Kind = Distribution.UNIFORM
    range: _Range = (-1.0, 1.0)
    value: _Value = None
    values: _Values = None
    outliers: _Outliers = None
    scale: _Scales | None = Field(
        None, description="Step between integers, or one for each index along `axis`; of a bias that of its products."
    )
    zero_point: _ZeroPoints | None = Field(None, description="The integer for 0.0, or one for each index; default 0.")
    axis: Integer | None = Field(None, ge=0, lt=MAX_RANK, description="Axis with a scale each; null for one scale.")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, written: Any) -> Any:
        return complete(_whole_range(written)) if isinstance(written, Mapping) else written

    @model_validator(mode="after")
    def _fits(self) -> GraphTensor:
        _check_keys(self)
        _check_shape(self)
        _check_type(self)
        _check_meaning(self)
        return self

    @property
    def drawn(self) -> Mapping[str, Any]:
        """The fields that say how the values are drawn, as `Draw` and `TensorSpec` have them too."""
        return {name: getattr(self, name) for name in Draw.model_fields}

    @property
    def qparams(self) -> TensorQParams | None:
        """What the integers mean, None where they are not quantized or follow from other tensors."""
        if self.scale is None:
            return None
        count = 1 if self.axis is None else self.shape[self.axis]
        scales, points = self.scale, self.zero_point or (0,)
        return TensorQParams(
            self.dtype,
            scales if len(scales) == count else scales * count,
            points if len(points) == count else points * count,
            self.axis,
        )


def complete(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is written with the defaults that depend on other keys; the fields refuse what is malformed."""
    dtype = written.get("dtype", "float32")
    integer = isinstance(dtype, str) and dtype in _INTEGERS
    done = {"distribution": "integers" if integer else "uniform", **written}
    kind = done["distribution"]
    if isinstance(kind, str) and isinstance(dtype, str) and "range" in _KEYS.get(kind, ()):  # type: ignore[call-overload]
        done.setdefault("range", [0, 1] if dtype in _FROM_ZERO else [-1, 1])
    if kind == "values" and "shape" not in done:
        try:
            done["shape"] = list(shape_of(done.get("values")))
        except ValueError:
            done["shape"] = []  # the values themselves are refused
    return done


def _whole_range(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """8-bit integers are drawn from all that there are, unless a range or another distribution is written."""
    dtype = written.get("dtype")
    if dtype not in list(EIGHT_BITS) or written.get("distribution", "integers") != "integers":
        return written
    return {"range": list(_LIMITS[Dtype(dtype)]), **written}


def _check_meaning(tensor: GraphTensor) -> None:
    if tensor.dtype in EIGHT_BITS and tensor.scale is None:
        raise ValueError(f"a tensor of {tensor.dtype} needs the key 'scale': add it")
    allowed = {"scale", "zero_point", "axis"} if tensor.dtype in EIGHT_BITS else _MEANING.get(tensor.dtype, set())
    for key in ("scale", "zero_point", "axis"):
        if getattr(tensor, key) is not None and key not in allowed:
            raise misplaced(f"{key!r} doesn't fit {tensor.dtype}: remove it", key, KEY)
    if tensor.axis is not None and tensor.axis >= len(tensor.shape):
        raise misplaced(f"expected an axis of shape {list(tensor.shape)}, found {tensor.axis}", "axis")
    count = 1 if tensor.axis is None else tensor.shape[tensor.axis]
    for key in ("scale", "zero_point"):
        found = len(getattr(tensor, key) or (0,))
        if found not in (1, count):
            where = "without an axis" if tensor.axis is None else f"along axis {tensor.axis} of {list(tensor.shape)}"
            raise misplaced(f"expected {count} number{'s' * (count > 1)} {where}, found {found}", key)
    check_zero_points(tensor.dtype, tensor.zero_point or ())


def check_zero_points(dtype: Dtype, zero_points: tuple[int, ...]) -> None:
    """Raise where a zero point is no integer of the type."""
    low, high = _LIMITS[dtype] if zero_points else (0, 0)
    for point in zero_points:
        if not low <= point <= high:
            raise misplaced(f"expected a zero point in [{low}, {high}] for {dtype}, found {point}", "zero_point")


def _check_keys(draw: Draw | TensorSpec | GraphTensor) -> None:
    wanted = _KEYS[draw.distribution]
    for key in sorted(draw.model_fields_set & _DRAWN - wanted):
        fitting = " or ".join(str(kind) for kind, keys in _KEYS.items() if key in keys)
        raise misplaced(f"{key!r} doesn't fit distribution {draw.distribution}: it belongs to {fitting}", key, KEY)
    for key in sorted(wanted - {"range"}):
        if getattr(draw, key) is None:
            raise ValueError(f"distribution {draw.distribution} needs the key {key!r}: add it")
    low, high = draw.range
    if "range" in wanted and low >= high:
        raise misplaced(f"expected [lowest, highest], found [{low:g}, {high:g}]", "range")


def _check_shape(spec: TensorSpec | GraphTensor) -> None:
    elements = math.prod(spec.shape)
    if elements > MAX_ELEMENTS:
        raise misplaced(f"expected at most {MAX_ELEMENTS} elements, found {elements}: make it smaller", "shape")
    if spec.values is not None and spec.shape != (found := shape_of(spec.values)):
        raise misplaced(f"expected values of shape {list(spec.shape)}, found {list(found)}", "values")
    if spec.outliers is not None and spec.outliers.count > elements:
        message = f"expected at most {elements} outliers, found {spec.outliers.count}"
        raise misplaced(message, "outliers", "count")


def _check_type(spec: TensorSpec | GraphTensor) -> None:
    if spec.dtype in _INTEGERS and spec.distribution in {Distribution.UNIFORM, Distribution.NORMAL}:
        message = f"distribution {spec.distribution} gives no {spec.dtype}: use integers, constant or values"
        raise misplaced(message, "distribution")
    low, high = _LIMITS.get(spec.dtype, (-3e38, 3e38))
    given = {"value": spec.value, "outliers": spec.outliers and spec.outliers.value, "values": spec.values}
    stated = {key: number for key, number in given.items() if number is not None}
    stated |= {"range": spec.range} if "range" in _KEYS[spec.distribution] else {}
    for key, numbers in stated.items():
        for number in _flat(numbers):
            if not low <= number <= high or (spec.dtype in _INTEGERS and not number.is_integer()):
                raise misplaced(f"{number:g} is no value of {spec.dtype}, which has {low:g} to {high:g}", key)


def _flat(numbers: Any) -> list[float]:
    return [part for each in numbers for part in _flat(each)] if isinstance(numbers, tuple) else [numbers]
