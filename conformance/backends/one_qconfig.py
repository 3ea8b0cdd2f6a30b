"""What a quantization tool that takes one QConfig for a whole model can be told of a spec's QConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conformance.backend import Task
from conformance.backends.qlib import mapping_of
from conformance.errors import Unsupported

# What such a tool lacks, whichever it is.
LACKS = frozenset({"QConfigs by module", "activations or weights in float", "results of a type of their own", "groups"})


@dataclass(frozen=True)
class OneQConfig:
    """The specs of activations and weights, both quantized, for all modules."""

    activation: Any
    weight: Any


def one_qconfig(task: Task) -> OneQConfig:
    """A task's QConfig; raises Unsupported, with a feature of `LACKS`, for one that is not for all modules alike."""
    mapping = mapping_of(task.qconfig)
    if mapping.modules or mapping.types or mapping.default is None:
        raise lacking("QConfigs by module")
    activation, weight = mapping.default.activation, mapping.default.weight
    if activation is None or weight is None:
        raise lacking("activations or weights in float")
    if mapping.default.output not in (None, activation):
        raise lacking("results of a type of their own")
    if activation.group_size is not None or weight.group_size is not None:
        raise lacking("groups")
    return OneQConfig(activation, weight)


def lacking(feature: str) -> Unsupported:
    """The refusal of a feature that is declared to be lacking."""
    return Unsupported(f"its quantization tools know no {feature}", feature)


def unknown(feature: str) -> Unsupported:
    """The refusal of a feature for which a quantizer, told in words of its own, has none."""
    return Unsupported(f"its quantizer knows no {feature}", feature)
