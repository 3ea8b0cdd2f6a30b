"""What a case quantizes, in two short texts that reports group and filter by: the types, and what shares a scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from conformance.qconfigspec import MODE_DEFAULT, QConfigBody, QConfigModel, QSpecModel
from conformance.tensorspec import Dtype, TensorQParams

if TYPE_CHECKING:
    from conformance.case import Case


class Facets(NamedTuple):
    """`dtype` such as "uint8 × int8" is activations by weights; `granularity` such as "per channel" is the weights'."""

    dtype: str
    granularity: str


_USUAL: Final = Facets("uint8 × int8", "per channel")
# By the names of the bundled library's presets; those that are not here are shown by their name alone.
PRESETS: Final[Mapping[str, Facets]] = MappingProxyType(
    {
        MODE_DEFAULT: _USUAL,
        "histogram": _USUAL,
        "moving_average": _USUAL,
        "qat": _USUAL,
        "qat_learnable": _USUAL,
        "reduced_range": _USUAL,
        "per_tensor": Facets("uint8 × int8", "per tensor"),
        "int8": Facets("int8 × int8", "per channel"),
        "symmetric": Facets("int8 × int8", "per channel"),
        "asymmetric_weight": Facets("uint8 × uint8", "per channel"),
        "int4_weight": Facets("uint8 × int4", "per channel"),
        "int16": Facets("int16 × int8", "per channel"),
        "per_token": Facets("uint8 × int8", "per channel, per token"),
        "per_token_symmetric": Facets("int8 × int8", "per channel, per token"),
        "weight_only_int8": Facets("float × int8", "per channel"),
        "weight_only_int4": Facets("float × int4", "per group"),
        "embedding_byte": Facets("float × uint8", "per channel"),
        "embedding_4bit": Facets("float × uint4", "per channel"),
        "fp16": Facets("float × float16", "per tensor"),
    }
)
FLOAT: Final = Facets("float", "none")


def facets(case: Case) -> Facets:
    """What `case` asks to be quantized; several rules are named one after the other, those for float left out."""
    if case.qparams:
        return _of_graph(case)
    if case.qconfig is None:
        return PRESETS[MODE_DEFAULT]
    found = dict.fromkeys(_of_rule(rule) for rule in _rules(case.qconfig))
    quantized = [each for each in found if each != FLOAT] or [FLOAT]
    return Facets(*(" + ".join(dict.fromkeys(texts)) for texts in zip(*quantized, strict=True)))


def _of_graph(case: Case) -> Facets:
    """Of a graph that is written out, what is said of its inputs and constants; a bias follows from both."""
    inputs = _said(case, case.inputs)
    weights = [params for params in _said(case, case.weights) if params.dtype is not Dtype.INT32]
    types = (dict.fromkeys(params.dtype for params in each) for each in (inputs, weights))
    shared = dict.fromkeys("per tensor" if params.axis is None else "per channel" for params in weights or inputs)
    return Facets(" × ".join(" + ".join(each) for each in types if each) or "float", " + ".join(shared) or "none")


def _said(case: Case, names: Iterable[str]) -> list[TensorQParams]:
    return [params for name in names if (params := case.qparams.get(name)) is not None]


def _rules(qconfig: QConfigModel) -> list[str | QConfigBody | None]:
    return [qconfig.default, *qconfig.modules.values(), *qconfig.types.values()]


def _of_rule(rule: str | QConfigBody | None) -> Facets:
    if rule is None:
        return FLOAT
    if isinstance(rule, str):
        return PRESETS.get(rule, Facets(rule, rule))
    if rule.activation is None and rule.weight is None:
        return FLOAT
    types = (each.dtype if each is not None else "float" for each in (rule.activation, rule.weight))
    return Facets(" × ".join(types), ", ".join(_shared(rule.weight) + _by_row(rule.activation)))


def _shared(weight: QSpecModel | None) -> list[str]:
    if weight is None:
        return ["per tensor"]
    if weight.group_size is not None:
        return ["per group"]
    return ["per tensor" if weight.axis is None else "per channel"]


def _by_row(activation: QSpecModel | None) -> list[str]:
    return ["per token"] if activation is not None and activation.group_size == 0 else []
