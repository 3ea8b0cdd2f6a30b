"""How a quantizer says what is to be quantized: the types that it writes into a graph, and reading them.

The names of classes and fields are those of torchao's quantizers, and what is read is read by these names, so that a
quantizer that was written for torchao is understood as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import torch
from torch import fx

from qlib.borrowed import dtype_of, is_per_channel, is_symmetric, observer_name
from qlib.errors import QuantizerError
from qlib.qparams import DType, QSpec

# An output is named by its node, an edge by the node whose value it carries and the node that takes it.
EdgeOrNode: TypeAlias = fx.Node | tuple[fx.Node, fx.Node]
ANNOTATION = "quantization_annotation"
_FLOATS = frozenset({torch.float32, torch.float64, torch.bfloat16})


# ------------------------------------------------------------------------------------------------ what quantizers write


@dataclass(frozen=True)
class QuantizationSpec:
    """How one tensor is quantized.

    `dtype` is a plain type of integers, such as `torch.int8`. `observer_or_fake_quant_ctr` is the name of an observer
    (`qlib.OBSERVERS`), or a class of observers or a partial call of one, read by its name. `qscheme` is one of
    `torch.per_tensor_affine`, `per_tensor_symmetric`, `per_channel_affine`, `per_channel_symmetric`; with the latter
    two there is one scale for each index along `ch_axis`. With `is_dynamic` the range is that of each call's data.
    """

    dtype: torch.dtype
    observer_or_fake_quant_ctr: Any = "min_max"
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False


@dataclass(frozen=True)
class FixedQParamsQuantizationSpec:
    """A tensor whose scale and zero point are known beforehand."""

    dtype: torch.dtype
    scale: float
    zero_point: int
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    is_dynamic: bool = False


@dataclass(frozen=True)
class SharedQuantizationSpec:
    """A tensor that has the parameters of another: of the value of a node, or of an edge, ``(producer, user)``."""

    edge_or_node: EdgeOrNode


@dataclass(frozen=True)
class DerivedQuantizationSpec:
    """A bias whose scale is the product of those of its operator's input and weight, which `derived_from` names.

    `derive_qparams_fn` takes their observers, in the same order, and gives scale and zero point.
    """

    derived_from: Sequence[EdgeOrNode]
    derive_qparams_fn: Callable[[list[Any]], tuple[Any, Any]]
    dtype: torch.dtype
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False


@dataclass
class QuantizationAnnotation:
    """What a quantizer writes into ``node.meta["quantization_annotation"]``.

    `input_qspec_map` has a spec, or None, for nodes whose values this node takes, `output_qspec` one for its own value.
    A value's edges with equal specs, and its own, share one quantize unless `allow_implicit_sharing` is false.
    `_annotated` is for quantizers to know which nodes they have seen.
    """

    input_qspec_map: dict[fx.Node, Any] = field(default_factory=dict)
    output_qspec: Any = None
    allow_implicit_sharing: bool = True
    _annotated: bool = False


class Quantizer(Protocol):
    """What decides which tensors of a graph are quantized, and how.

    A quantizer may also have ``transform_for_annotation(model)``, which gives the graph that is then annotated.
    """

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write annotations into the nodes of `model`, and return it."""

    def validate(self, model: fx.GraphModule) -> None:
        """Raise where the annotated graph is not what the backend can run."""


# --------------------------------------------------------------------------------------------------- what is read there


@dataclass(frozen=True)
class Shared:
    """The parameters of another output or edge."""

    point: EdgeOrNode


@dataclass(frozen=True)
class Derived:
    """Parameters that follow from those of other outputs or edges, by a function of their observers."""

    sources: tuple[EdgeOrNode, ...]
    dtype: DType
    rule: Callable[[list[Any]], tuple[Any, Any]]


Wanted: TypeAlias = QSpec | Shared | Derived


@dataclass(frozen=True)
class Note:
    """What a quantizer asks of one node: of the edges to it, of its value, and whether its edges share unasked."""

    inputs: Mapping[fx.Node, Wanted]
    output: Wanted | None
    shares: bool


def read_annotation(node: fx.Node) -> Note | None:
    """What a quantizer wrote into the metadata of `node`, None where it asks for nothing there.

    Raises QConfigError for a type, a range or an observer that does not exist here.
    """
    annotation = node.meta.get(ANNOTATION)
    if annotation is None:
        return None
    read = {value: read_spec(spec) for value, spec in annotation.input_qspec_map.items()}
    inputs = {value: spec for value, spec in read.items() if spec is not None}
    output = read_spec(annotation.output_qspec)
    if not inputs and output is None:
        return None
    return Note(inputs, output, bool(getattr(annotation, "allow_implicit_sharing", True)))


def quantizes_input(node: fx.Node) -> bool:
    """Whether a quantizer wants a value quantized for `node`; raises as `read_annotation` does."""
    note = read_annotation(node)
    return note is not None and bool(note.inputs)


def read_spec(spec: Any) -> Wanted | None:
    """One of the four specs, known by the names of its class, as this library's own type; None for what stays in float.

    Raises QuantizerError for other classes and for ranges that do not fit.
    """
    if spec is None:
        return None
    reader = next((_READERS[kind.__name__] for kind in type(spec).__mro__ if kind.__name__ in _READERS), None)
    if reader is None:
        raise QuantizerError(f"expected one of {', '.join(_READERS)} in an annotation, found {type(spec).__name__}")
    try:
        return reader(spec)
    except ValueError as error:
        raise QuantizerError(f"{type(spec).__name__}: {error}") from error


def _measured(spec: Any) -> QSpec | None:
    if spec.dtype in _FLOATS:
        return None
    if spec.dtype == torch.float16:
        return QSpec(DType.FLOAT16, observer="fixed", scale=1.0)
    constructor = spec.observer_or_fake_quant_ctr
    observer = constructor if isinstance(constructor, str) else observer_name(constructor)
    return QSpec(
        dtype_of(spec.dtype),
        spec.quant_min,
        spec.quant_max,
        is_symmetric(spec.qscheme),
        (spec.ch_axis or 0) if is_per_channel(spec.qscheme) else None,
        "runtime" if spec.is_dynamic else observer,
    )


def _fixed(spec: Any) -> QSpec:
    return QSpec(
        dtype_of(spec.dtype),
        spec.quant_min,
        spec.quant_max,
        observer="fixed",
        scale=float(spec.scale),
        zero_point=int(spec.zero_point),
    )


def _shared(spec: Any) -> Shared:
    return Shared(_point(spec.edge_or_node))


def _derived(spec: Any) -> Derived:
    return Derived(tuple(map(_point, spec.derived_from)), dtype_of(spec.dtype), spec.derive_qparams_fn)


def _point(point: Any) -> EdgeOrNode:
    if isinstance(point, fx.Node):
        return point
    producer, user = point
    return producer, user


_READERS: Mapping[str, Callable[[Any], Wanted | None]] = MappingProxyType(
    {
        "QuantizationSpec": _measured,
        "FixedQParamsQuantizationSpec": _fixed,
        "SharedQuantizationSpec": _shared,
        "DerivedQuantizationSpec": _derived,
    }
)
