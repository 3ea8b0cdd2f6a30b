"""A spec's QConfigs in the words of torch's own flows and of torchao's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from conformance.errors import Unsupported

if TYPE_CHECKING:
    from conformance.backends.qlib import QConfig, QConfigMapping, QSpec

# Observers by whether there is one scale, or one for each channel.
_OBSERVERS: Mapping[tuple[str, bool], str] = MappingProxyType(
    {
        ("min_max", False): "MinMaxObserver",
        ("min_max", True): "PerChannelMinMaxObserver",
        ("moving_average_min_max", False): "MovingAverageMinMaxObserver",
        ("moving_average_min_max", True): "MovingAveragePerChannelMinMaxObserver",
        ("histogram", False): "HistogramObserver",
        ("fixed", False): "FixedQParamsObserver",
        ("runtime", False): "PlaceholderObserver",
    }
)
# Types by the names that they have in torch; those of 4 bits are stored in bytes of a narrower range.
QUANTIZED_TENSORS: Mapping[str, str] = MappingProxyType(
    {"uint8": "quint8", "int8": "qint8", "uint4": "quint8", "int4": "qint8"}
)
PLAIN_TENSORS: Mapping[str, str] = MappingProxyType(
    {"uint8": "uint8", "int8": "int8", "uint4": "uint8", "int4": "int8", "int16": "int16"}
)
# What none of the flows has a word for.
LACKS = frozenset(
    {
        "results of a type of their own",
        "weights alone in few bits",
        "activations alone",
        "groups",
        "histograms for each channel",
        "ranges at run time in another mode than dynamic",
        "the observer learnable",
        "int16",
        "float16",
    }
)

# What is asked of kernels that don't have it.
OTHER_ACTIVATIONS = "activations of other types than uint8"
OTHER_WEIGHTS = "weights of other types than int8"
WEIGHTS_WITH_ZERO_POINT = "weights with a zero point on the engine onednn"


@dataclass(frozen=True)
class Words:
    """How one library says it: its module of observers, and its names of types."""

    observers: Any
    types: Mapping[str, str]


def lacking(feature: str) -> Unsupported:
    """The refusal of what a flow has no word for."""
    return Unsupported(f"its QConfigs have no word for {feature}", feature)


def in_mode(qconfig: QConfig, mode: str) -> tuple[QSpec, QSpec]:
    """How a mode quantizes activations and weights; raises Unsupported for what the flows have no word for."""
    activation, weight = qconfig.activation, qconfig.weight
    if activation is None:
        raise lacking("float16" if weight is not None and weight.dtype == "float16" else "weights alone in few bits")
    if weight is None:
        raise lacking("activations alone")
    if qconfig.output not in (None, activation):
        raise lacking("results of a type of their own")
    if activation.group_size is not None or weight.group_size is not None:
        raise lacking("groups")
    if mode == "dynamic":
        activation = replace(activation, observer="runtime", scale=None, zero_point=None)
    elif "runtime" in (activation.observer, weight.observer):
        raise lacking("ranges at run time in another mode than dynamic")
    return activation, weight


def arguments(spec: QSpec, words: Words) -> dict[str, Any]:
    """The arguments that observers and specs of tensors share: type, range and scheme."""
    import torch

    if str(spec.dtype) not in words.types:
        raise lacking(str(spec.dtype))
    spread = "symmetric" if spec.symmetric else "affine"
    scheme = f"per_{'tensor' if spec.axis is None else 'channel'}_{spread}"
    qmin, qmax = spec.range
    return {
        "dtype": getattr(torch, words.types[str(spec.dtype)]),
        "qscheme": getattr(torch, scheme),
        "quant_min": qmin,
        "quant_max": qmax,
    }


def observer(spec: QSpec, words: Words) -> Any:
    """The class of observers of a library for a spec; raises Unsupported for one that it does not have."""
    if spec.observer == "learnable":
        raise lacking("the observer learnable")
    key = (spec.observer, spec.axis is not None)
    if key not in _OBSERVERS:
        raise lacking("histograms for each channel")
    return getattr(words.observers, _OBSERVERS[key])


def constructor(spec: QSpec, words: Words) -> Any:
    """What makes the observer of one tensor."""
    given = arguments(spec, words)
    if spec.axis is not None:
        given["ch_axis"] = spec.axis
    if spec.observer == "fixed":
        given |= {"scale": spec.scale, "zero_point": spec.zero_point or 0}
    if spec.observer == "runtime":
        given["is_dynamic"] = True
    return observer(spec, words).with_args(**given)


def trainable(spec: QSpec, words: Words) -> Any:
    """What makes the fake-quantize module of one tensor, whose observer is the spec's."""
    from torch.ao.quantization import FakeQuantize

    given = arguments(spec, words)
    if spec.axis is not None:
        given["ch_axis"] = spec.axis
    return FakeQuantize.with_args(observer=observer(spec, words), **given)


def torch_words() -> Words:
    """The words of torch's own flows."""
    from torch.ao.quantization import observer as observers

    return Words(observers, QUANTIZED_TENSORS)


def torch_qconfig(rule: QConfig | None, mode: str) -> Any:
    """A QConfig of torch's own flows; None for one that leaves a module in float."""
    from torch.ao.quantization import QConfig as TorchQConfig

    if rule is None:
        return None
    (activation, weight), words = in_mode(rule, mode), torch_words()
    make = trainable if mode == "qat" else constructor
    return TorchQConfig(activation=make(activation, words), weight=make(weight, words))


def refuse_zero_points(mapping: QConfigMapping, engine: str) -> None:
    """Raise Unsupported where weights have a zero point that the engine's kernels don't know."""
    for rule in _rules(mapping):
        if engine == "onednn" and rule.activation is not None and rule.weight is not None and not rule.weight.symmetric:
            raise Unsupported("its kernels know no weights with a zero point", WEIGHTS_WITH_ZERO_POINT)


def refuse_types_of_integers(mapping: QConfigMapping) -> None:
    """Raise Unsupported where integers are of types that the kernels don't know."""
    for rule in _rules(mapping):
        if rule.activation is not None and rule.activation.dtype != "uint8":
            raise Unsupported("its kernels know no activations but those of uint8", OTHER_ACTIVATIONS)
        if rule.activation is not None and rule.weight is not None and rule.weight.dtype not in ("int8", "int4"):
            raise Unsupported("its kernels know no weights but those of int8", OTHER_WEIGHTS)


def _rules(mapping: QConfigMapping) -> list[QConfig]:
    return [rule for rule in (mapping.default, *mapping.types.values(), *mapping.modules.values()) if rule is not None]


def refuse_types(mapping: QConfigMapping) -> None:
    """Raise Unsupported where QConfigs go by the types of modules."""
    if mapping.types:
        raise lacking("QConfigs by type")
