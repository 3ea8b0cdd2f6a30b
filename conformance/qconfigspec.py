"""How a model is to be quantized, as a spec says it: the value of `qconfig:`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, model_validator

from conformance.errors import nearest
from conformance.frozenmap import FrozenMap
from conformance.source_tables import CONSTRUCTORS
from conformance.tensorspec import Integer, Number, misplaced
from conformance.vocabulary import Vocabulary

MODE_DEFAULT = "default"
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class StoredDtype(StrEnum):
    """Types that quantized values are stored in."""

    UINT8 = "uint8"
    INT8 = "int8"
    INT16 = "int16"
    UINT4 = "uint4"
    INT4 = "int4"


_STORED_RANGE = {
    StoredDtype.UINT8: (0, 255),
    StoredDtype.INT8: (-128, 127),
    StoredDtype.INT16: (-32768, 32767),
    StoredDtype.UINT4: (0, 15),
    StoredDtype.INT4: (-8, 7),
}


def _observer(name: str, info: ValidationInfo) -> str:
    vocabulary = info.context
    if isinstance(vocabulary, Vocabulary) and name not in vocabulary.observers:
        raise ValueError(_unknown("observer", name, vocabulary.observers))
    return name


def _qconfig_name(name: str, info: ValidationInfo) -> str:
    vocabulary = info.context
    if isinstance(vocabulary, Vocabulary) and name not in vocabulary.qconfigs | {MODE_DEFAULT}:
        raise ValueError(_unknown("qconfig", name, vocabulary.qconfigs | {MODE_DEFAULT}))
    return name


def _layer_type(name: str) -> str:
    if name.removeprefix("nn.") not in CONSTRUCTORS or not name.startswith("nn."):
        raise ValueError(_unknown("layer type", name, [f"nn.{known}" for known in CONSTRUCTORS]))
    return name


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    hint = nearest(name, known) or f" Expected one of {', '.join(sorted(known)[:12])}."
    return f"unknown {what} {name!r}.{hint}"


class QSpecModel(BaseModel):
    """How one kind of tensor is quantized; `qmin` and `qmax` default to the type's whole range."""

    model_config = _FROZEN

    dtype: StoredDtype = Field(description="Type of the stored integers.")
    qmin: Integer | None = Field(None, description="Smallest stored integer; default the type's smallest.")
    qmax: Integer | None = Field(None, description="Largest stored integer; default the type's largest.")
    symmetric: bool = Field(False, strict=True, description="True where the zero point is fixed in the middle.")
    axis: Integer | None = Field(None, ge=-8, le=7, description="Axis with a scale each; null for one scale.")
    observer: Annotated[str, AfterValidator(_observer)] = Field(
        "min_max", description="What sees the values and chooses the scale."
    )
    scale: Number | None = Field(None, gt=0, description="The step between integers; only with `observer: fixed`.")
    zero_point: Integer | None = Field(None, description="The integer for 0.0; only with `observer: fixed`.")
    group_size: Integer | None = Field(
        None, ge=0, description="Elements of a row that share a scale; 0 for whole rows, with `observer: runtime` only."
    )

    @model_validator(mode="after")
    def _fits(self) -> QSpecModel:
        low, high = _STORED_RANGE[self.dtype]
        qmin, qmax = low if self.qmin is None else self.qmin, high if self.qmax is None else self.qmax
        if not low <= qmin < qmax <= high:
            key = "qmin" if self.qmin is not None else "qmax"
            raise misplaced(f"expected {low} <= qmin < qmax <= {high} for {self.dtype}, found {qmin} and {qmax}", key)
        for key in ("scale", "zero_point"):
            if (getattr(self, key) is not None) != (self.observer == "fixed"):
                raise misplaced(f"{key!r} goes with `observer: fixed` and only with it, found {self.observer!r}", key)
        if self.zero_point is not None and not qmin <= self.zero_point <= qmax:
            raise misplaced(f"expected a zero point in [{qmin}, {qmax}], found {self.zero_point}", "zero_point")
        if self.group_size is not None and self.axis is not None:
            raise misplaced("'group_size' and 'axis' exclude each other: keep one", "group_size")
        if self.group_size is not None and (self.group_size == 0) != (self.observer == "runtime"):
            raise misplaced("group size 0 goes with `observer: runtime`, others with other observers", "group_size")
        return self


class QConfigBody(BaseModel):
    """How activations, weights and outputs are quantized; null leaves them in float."""

    model_config = _FROZEN

    activation: QSpecModel | None = Field(description="Inputs of operators; null for float.")
    weight: QSpecModel | None = Field(description="Weights; null for float.")
    output: QSpecModel | None = Field(None, description="Outputs where they differ from inputs.")


def _rule_kind(written: object) -> str:
    if written is None:
        return "none"
    return "name" if isinstance(written, str) else "body"


Rule = Annotated[
    Annotated[str, AfterValidator(_qconfig_name), Tag("name")]
    | Annotated[QConfigBody, Tag("body")]
    | Annotated[None, Tag("none")],
    Discriminator(_rule_kind),
]
Rules = Annotated[Mapping[str, Rule], AfterValidator(FrozenMap)]


class QConfigModel(BaseModel):
    """Which rule holds for which module: a qconfig's name, its body, or null for float.

    `default` is the name "default" for the mode's own. A name or a body alone is the short form of `default`.
    """

    model_config = _FROZEN

    default: Rule = Field(MODE_DEFAULT, description="For every module that no other rule names.")
    modules: Rules = Field(default_factory=FrozenMap, description="By module path, such as block.conv.")
    types: Annotated[Mapping[Annotated[str, AfterValidator(_layer_type)], Rule], AfterValidator(FrozenMap)] = Field(
        default_factory=FrozenMap, description="By layer type, such as nn.Linear."
    )

    @property
    def is_modes_own(self) -> bool:
        """Whether it says no more than that every module has the mode's own."""
        return self.default == MODE_DEFAULT and not self.modules and not self.types

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, written: Any) -> Any:
        short = isinstance(written, str) or (isinstance(written, dict) and written.keys() & QConfigBody.model_fields)
        return {"default": written} if short else written
