"""Canonical names for the operators of an ExecuTorch program: those of XNNPACK's subgraphs, and those left outside.

Each carries the node of the quantized graph that it was made from. A node counts once, as quantized where everything
that computes for it takes and makes integers; what merely changes layouts stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from conformance.backends.qlib import vocabulary

REAL = "fp32"
STORED = frozenset({"qint8", "quint8", "qcint8", "qcint4", "qbint4"})
AT_RUN_TIME = "qdint8"


@dataclass(frozen=True)
class Source:
    """A node of the quantized graph: its name, its ATen operator, the nodes that take its value, and what it is given.

    `scalar` says that one of its operands is a constant of one element.
    """

    name: str
    operator: str
    readers: tuple[str, ...] = ()
    scalar: bool = False


@dataclass(frozen=True)
class Executed:
    """One operator that runs: its native name, the types of what it takes and makes, and its source, if it has one.

    `bounded` says that it clamps its results, for an activation that it took along.
    """

    native: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str = ""
    bounded: bool = False

    @property
    def label(self) -> str:
        """The native name with the types."""
        return f"{self.native}:{','.join(self.inputs)}>{','.join(self.outputs)}"


def sequence(ran: Sequence[Executed], sources: Mapping[str, Source], module: Sequence[str]) -> tuple[str, ...]:
    """The operators that a program runs, in order, by canonical name; `module` has those of the float module."""
    left = [name.removeprefix("aten::") for name in module]
    parts: dict[str, list[Executed]] = {}
    for part in ran:
        parts.setdefault(part.source, []).append(part)
    found: list[str] = []
    named: set[str] = set()
    for part in ran:
        if (border := _border(part)) is not None:
            found.extend(border)
        elif part.source not in sources:
            found.extend(() if part.native in MOVES else (f"unmapped:{part.native}",))
        elif part.source not in named:
            named.add(part.source)
            mine = [other for other in parts[part.source] if _border(other) is None]
            found.extend(_names(mine, sources[part.source], sources, parts.keys(), left))
    return tuple(found)


def _border(part: Executed) -> tuple[str, ...] | None:
    """The names of an operator that changes how numbers are stored; None for one that computes."""
    if part.native not in BORDERS:
        return None
    if part.native == "choose_qparams":
        return ("quantized::choose_qparams",)
    given, made = part.inputs[0], part.outputs[0]
    if made == AT_RUN_TIME:
        return ("quantized::choose_qparams_per_token", "quantized::quantize_per_token")
    if (given, made) == (REAL, "qint8"):
        return ("quantized::quantize_per_tensor",)
    if (given, made) == ("qint8", REAL):
        return ("quantized::dequantize_per_tensor",)
    return () if given == made else (f"unmapped:{part.label}",)


def _names(
    parts: list[Executed], source: Source, sources: Mapping[str, Source], ran: object, left: list[str]
) -> tuple[str, ...]:
    """What the operators that were made from one node are called together."""
    name = _take(source.operator, left)
    if not name:
        return ()
    activations = []
    if any(part.bounded for part in parts):
        activations = [
            _take(sources[reader].operator, left) for reader in source.readers if _absorbed(sources, reader, ran)
        ]
    precision = _precision(parts)
    if precision == "float":
        return tuple(f"aten::{part}" for part in (name, *activations))
    known = vocabulary().operators
    scalar = source.scalar and f"quantized::{name}_scalar" in known
    fused = activations == ["relu"] and f"quantized::{name}_relu" in known
    first = f"quantized::{name}{'_scalar' if scalar else ''}{'_relu' if fused else ''}{_suffix(precision, name)}"
    return (first, *(() if fused else (f"quantized::{activation}" for activation in activations)))


def _absorbed(sources: Mapping[str, Source], reader: str, ran: object) -> bool:
    return sources[reader].operator in BOUNDS and reader not in ran  # type: ignore[operator]


def _take(operator: str, left: list[str]) -> str:
    """The name of the module's operator that one of the graph stands for, which is left no more; nothing for none."""
    candidates = SPELLED.get(operator, (operator,))
    name = next((name for name in left if name in candidates), "")
    if name:
        left.remove(name)
        return name
    return "" if operator in NO_OPERATORS or operator in SPELLED else operator


def _precision(parts: list[Executed]) -> str:
    """How the operators compute: static, dynamic, weight_only, or float."""
    types = [kind for part in parts for kind in (*part.inputs, *part.outputs)]
    if types and all(kind in STORED for kind in types):
        return "static"
    if AT_RUN_TIME in types:
        return "dynamic"
    if any(kind in STORED for part in parts for kind in part.inputs[1:]):
        return "weight_only"
    return "float"


def _suffix(precision: str, name: str) -> str:
    return {"static": "", "weight_only": "_weight_only"}.get(
        precision, "_per_token_dynamic" if name == "linear" else "_dynamic"
    )


# Operators that change how numbers are stored, of XNNPACK and of ExecuTorch's own kernels.
BORDERS = frozenset(
    {"XNNConvert", "choose_qparams"}
    | {f"{way}_per_{scales}" for way in ("quantize", "dequantize") for scales in ("tensor", "channel")}
)
# What is put in to change layouts, and to join more tensors than one operator can.
MOVES = frozenset(
    {"XNNStaticTranspose", "XNNStaticReshape", "XNNCopy", "_to_dim_order", "_clone_dim_order", "_to_dim_order_copy"}
    | {f"XNNConcatenate{n}" for n in (2, 3, 4, 5)}
)
BOUNDS = frozenset({"relu", "relu6", "hardtanh", "clamp"})
_SHAPES = ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "contiguous")
_CUTS = ("slice", "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind")
# What the graph may call an operator of the module.
SPELLED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"), _SHAPES),
        **dict.fromkeys(("slice", "select", "narrow", "split_with_sizes", "unbind", "split", "chunk"), _CUTS),
        "hardtanh": ("hardtanh", "relu6"),
        "clamp": ("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6"),
        "permute": ("permute", "transpose", "channel_shuffle"),
        "transpose": ("transpose", "permute", "t"),
        "t": ("t", "transpose"),
        "expand": ("expand", "repeat", "tile"),
        "constant_pad_nd": ("constant_pad_nd", "pad"),
        "pad": ("constant_pad_nd", "pad"),
        "_softmax": ("softmax",),
        "_log_softmax": ("log_softmax",),
    }
)
# What a graph calls that is none of the module's operators.
NO_OPERATORS = frozenset(
    {"clone", "detach", "alias", "to", "_to_copy", "contiguous", "lift_fresh_copy", "getitem", "copy"}
)
