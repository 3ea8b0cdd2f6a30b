"""What must hold, as a spec says it: the value of `expect:`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from conformance.frozenmap import FrozenMap
from conformance.tensorspec import KEY, Dtype, Integer, Number, WrittenAlone, listed, misplaced
from conformance.vocabulary import Mode, Vocabulary, resolve_operator

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_QUANTA = re.compile(r"(\d+(?:\.\d+)?) quanta", re.ASCII)

T = TypeVar("T")


def _vocabulary(info: ValidationInfo) -> Vocabulary | None:
    return info.context if isinstance(info.context, Vocabulary) else None


def _operator(name: str, info: ValidationInfo) -> str:
    vocabulary = _vocabulary(info)
    return resolve_operator(name, vocabulary) if vocabulary else name


Operator = Annotated[str, AfterValidator(_operator)]


class Accuracy(BaseModel):
    """How near the quantized output must be to the float one; at least one bound."""

    model_config = _FROZEN

    sqnr_db: Number | None = Field(
        None, gt=0, description="Least signal to quantization noise in dB; an output of zeros has 0 dB."
    )
    max_quanta: Number | None = Field(None, ge=0, description="Largest difference in steps of the output scale.")
    max_abs: Number | None = Field(None, ge=0, description="Largest absolute difference.")
    below_reference_db: Number | None = Field(
        None, ge=0, description="How many dB of sqnr_db less than the bundled library has on the same case are allowed."
    )

    @model_validator(mode="after")
    def _states_something(self) -> Accuracy:
        if self.sqnr_db is self.max_quanta is self.max_abs is self.below_reference_db is None:
            raise ValueError("expected at least one of sqnr_db, max_quanta, max_abs and below_reference_db")
        return self


class LayerBounds(BaseModel):
    """How near to the float model every tensor within the quantized one must be."""

    model_config = _FROZEN

    sqnr_db: Number = Field(gt=0, description="Least signal to quantization noise of any layer in dB.")


class Output(BaseModel):
    """Type and shape of one output; at least one of them."""

    model_config = _FROZEN

    dtype: Dtype | None = Field(None, description="Type of the elements.")
    shape: tuple[Annotated[Integer, Field(ge=0)], ...] | None = Field(None, description="Sizes.")

    @model_validator(mode="after")
    def _states_something(self) -> Output:
        if self.dtype is None and self.shape is None:
            raise ValueError("expected at least one of dtype and shape")
        return self


@dataclass(frozen=True)
class _WrittenPerMode:
    """Tells the JSON Schema that a value may stand for all modes or under each."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        each = handler(core)["additionalProperties"]
        modes = {str(mode): each for mode in Mode}
        return {"anyOf": [each, {"type": "object", "properties": modes, "additionalProperties": False}]}


def _per_mode(written: Any) -> Any:
    """`{static: a, dynamic: b}` as it is, anything else for every mode alike."""
    if isinstance(written, dict) and written.keys() & set(Mode):
        return written
    return dict.fromkeys(Mode, written)


def _each_operator_once(written: Any, info: ValidationInfo) -> Any:
    vocabulary, seen = _vocabulary(info), dict[str, str]()
    for name in written if isinstance(written, dict) and vocabulary else ():
        canonical = vocabulary.aliases.get(name, name) if vocabulary else name
        if canonical in seen:
            raise misplaced(f"{name!r} and {seen[canonical]!r} are the same operator: keep one", name, KEY)
        seen[canonical] = name
    return written


def _quanta(written: object) -> float | None:
    if written == "none":
        return None
    found = _QUANTA.fullmatch(written) if isinstance(written, str) else None
    if not found:
        raise ValueError(f"expected a distance such as '0 quanta', or 'none', found {written!r}")
    return float(found[1])


PerMode = Annotated[Mapping[Mode, T], BeforeValidator(_per_mode), AfterValidator(FrozenMap), _WrittenPerMode()]
Ops = Annotated[
    Mapping[Operator, Annotated[Integer, Field(ge=0)]], BeforeValidator(_each_operator_once), AfterValidator(FrozenMap)
]
Quanta = Annotated[
    float | None,
    BeforeValidator(_quanta),
    WithJsonSchema({"type": "string", "pattern": rf"^({_QUANTA.pattern}|none)$"}),
]
OutputList = Annotated[tuple[Output, ...], BeforeValidator(listed), Field(min_length=1), WrittenAlone()]


@dataclass(frozen=True)
class ModeExpect:
    """What must hold in one mode; operators by canonical name.

    `debug_equal` is the largest distance between the debug and the final form, in quanta; None for no such check.
    `unstated` names the checks that are made though the spec does not ask for them.
    """

    ops: Mapping[str, int] = FrozenMap()
    absent: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    debug_equal: float | None = 0.0
    accuracy: Accuracy | None = None
    output: tuple[Output, ...] = ()
    layers: LayerBounds | None = None
    unstated: frozenset[str] = frozenset()


class Expect(BaseModel):
    """What must hold, each key for all modes alike or by mode."""

    model_config = _FROZEN

    ops: PerMode[Ops] = Field(
        default_factory=FrozenMap, description="Exact count of each operator that runs, by canonical name."
    )
    absent: PerMode[tuple[Operator, ...]] = Field(
        default_factory=FrozenMap, description="Operators of the float graph that are gone."
    )
    order: PerMode[tuple[Operator, ...]] = Field(
        default_factory=FrozenMap, description="Operators that run one after the other."
    )
    debug_equal: PerMode[Quanta] = Field(
        default_factory=FrozenMap, description="How far the debug and the final form may be apart; default '0 quanta'."
    )
    accuracy: PerMode[Accuracy] = Field(default_factory=FrozenMap, description="How near to the float output.")
    output: PerMode[OutputList] = Field(
        default_factory=FrozenMap, description="Type and shape of the output, or of each of them."
    )
    layers: PerMode[LayerBounds] = Field(
        default_factory=FrozenMap, description="How near to float every layer; also puts the layers into the record."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Expect:
        if not self.model_fields_set:
            raise ValueError(f"expected at least one of {', '.join(Expect.model_fields)}")
        for mode in Mode:
            here = narrow(self, mode)
            for name in here.absent:
                if here.ops.get(name, 0) or name in here.order:
                    raise misplaced(f"{name!r} can't be absent and run too: keep one", "absent")
        return self


def narrow(expect: Expect, mode: Mode) -> ModeExpect:
    """Return what is expected in one mode; of a graph that is given, what static quantization is asked, if no more."""

    def stated(key: Mapping[Mode, T], default: T) -> T:
        return key.get(mode, key.get(Mode.STATIC, default) if mode is Mode.NUMERICS else default)

    return ModeExpect(
        stated(expect.ops, FrozenMap()),
        stated(expect.absent, ()),
        stated(expect.order, ()),
        stated(expect.debug_equal, 0.0),
        stated(expect.accuracy, None),
        stated(expect.output, ()),
        stated(expect.layers, None),
        frozenset() if mode in expect.debug_equal else frozenset({"debug_equal"}),
    )
