"""Canonical names for the operators of a .tflite model, by their kinds and the types of their tensors.

An operator is quantized only where all numbers that it computes on are integers, or where its kernel takes real numbers
and integer weights, which it multiplies as integers. A kind that may stand for several operators has the name of the
next one of the module that it can be. What the converter adds to change layouts and types is no operator of the module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from conformance.backends.qlib import vocabulary

INTEGERS = frozenset({"int4", "int8", "uint8", "int16"})
REAL = frozenset({"float32", "float16", "float64"})


@dataclass(frozen=True)
class Value:
    """One tensor of a model: its type, whether it is a constant, the elements it has, and the operator that makes it.

    `step` is the scale of a tensor of integers with one scale for all.
    """

    name: str
    dtype: str
    constant: bool = False
    elements: int = 0
    made_by: str = ""
    step: float | None = None


@dataclass(frozen=True)
class Node:
    """One operator of a model: its kind, what it takes and makes, and the activation that is part of it."""

    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    activation: str = ""


@dataclass
class _Module:
    """The operators of the float module that nothing stands for yet, in order, without their namespace."""

    left: list[str] = field(default_factory=list)

    def take(self, candidates: Iterable[str]) -> str:
        """The first of the operators left that is one of the candidates, which is left no more; else nothing."""
        wanted = frozenset(candidates)
        name = next((name for name in self.left if name in wanted), "")
        if name:
            self.left.remove(name)
        return name


def sequence(nodes: Sequence[Node], module: Sequence[str]) -> tuple[str, ...]:
    """The operators that a model runs, in order, by canonical name; `module` has those of the float module."""
    waiting = _Module([name.removeprefix("aten::") for name in module])
    return tuple(name for node in nodes for name in _names(node, waiting))


def _names(node: Node, module: _Module) -> tuple[str, ...]:
    if node.kind in BORDERS:
        return _border(node)
    kind = STANDS_FOR.get(node.kind)
    if kind is None:
        return (f"unmapped:{node.kind}",)
    name = module.take(kind)
    if not name:
        if node.kind in ADDED:
            return ()
        name = kind[0]
    activation = module.take(ACTIVATIONS[node.activation]) if node.activation else ""
    precision = _precision(node)
    if precision == "float":
        return tuple(f"aten::{part}" for part in (name, activation) if part)
    known = vocabulary().operators
    scalar = precision == "static" and _scalar(node) and f"quantized::{name}_scalar" in known
    fused = activation == "relu" and f"quantized::{name}_relu" in known
    first = f"quantized::{name}{'_scalar' if scalar else ''}{'_relu' if fused else ''}{_SUFFIXES[precision](name)}"
    rest = (f"quantized::{activation}",) if activation and not fused else ()
    return (first, *rest)


def _border(node: Node) -> tuple[str, ...]:
    """Operators that change how numbers are stored."""
    given, made = node.inputs[0], node.outputs[0]
    if node.kind == "QUANTIZE" and given.dtype in REAL:
        return ("quantized::quantize_per_tensor",)
    if node.kind == "DEQUANTIZE" and given.dtype in INTEGERS:
        return () if given.constant else ("quantized::dequantize_per_tensor",)
    # Integers to integers of another scale: a rounding that no operator of the vocabulary stands for.
    return (f"unmapped:{node.kind}",) if made.dtype in INTEGERS else ()


def _precision(node: Node) -> str:
    """How an operator computes: static, dynamic, weight_only, or float."""
    numbers = [value for value in node.inputs if value.dtype in INTEGERS | REAL]
    made = [value for value in node.outputs if value.dtype in INTEGERS | REAL]
    if numbers and all(value.dtype in INTEGERS for value in (*numbers, *made)):
        return "static"
    weights = numbers[1:] if len(numbers) > 1 else ()
    if any(value.constant and value.dtype in INTEGERS for value in weights):
        return "dynamic"
    # A constant is made by an operator only where it is stored in few bits.
    if any(value.made_by == "DEQUANTIZE" and value.constant for value in weights):
        return "weight_only"
    return "float"


def _scalar(node: Node) -> bool:
    return any(value.constant and value.elements == 1 for value in node.inputs)


def _dynamic(name: str) -> str:
    # The kernels have a scale for each row of a matrix, and for each example of a batch of images.
    return "_per_token_dynamic" if name == "linear" else "_dynamic"


_SUFFIXES = MappingProxyType(
    {"static": lambda name: "", "dynamic": _dynamic, "weight_only": lambda name: "_weight_only"}
)
BORDERS = frozenset({"QUANTIZE", "DEQUANTIZE"})
# What a kernel may do to its result before it stores it.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "RELU": ("relu", "clamp_min", "clamp"),
        "RELU6": ("relu6", "hardtanh", "clamp"),
        "RELU_N1_TO_1": ("hardtanh", "clamp"),
        "TANH": ("tanh",),
        "SIGN_BIT": (),
    }
)
_POOLS = {
    kind: tuple(f"{adaptive}{kind}_pool{d}d" for d in (2, 1, 3) for adaptive in ("", "adaptive_"))
    for kind in ("avg", "max")
}
_CUTS = ("slice", "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem")
_SHAPES = ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze")
# The operators of a module that each kind may stand for; the first is what the kind computes by itself.
STANDS_FOR: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "FULLY_CONNECTED": ("linear", "matmul", "bmm", "addmm", "mm"),
        "BATCH_MATMUL": ("matmul", "bmm", "linear", "baddbmm", "einsum"),
        "CONV_2D": ("conv2d", "conv1d"),
        "DEPTHWISE_CONV_2D": ("conv2d", "conv1d"),
        "CONV_3D": ("conv3d",),
        "TRANSPOSE_CONV": ("conv_transpose2d", "conv_transpose1d"),
        "CONV_3D_TRANSPOSE": ("conv_transpose3d",),
        "ADD": ("add",),
        "SUB": ("sub", "rsub"),
        "MUL": ("mul",),
        "DIV": ("div", "reciprocal"),
        "AVERAGE_POOL_2D": _POOLS["avg"],
        "MAX_POOL_2D": _POOLS["max"],
        "MEAN": ("mean", *_POOLS["avg"]),
        "SUM": ("sum",),
        "REDUCE_MAX": ("amax", "max"),
        "REDUCE_MIN": ("amin", "min"),
        "REDUCE_PROD": ("prod",),
        "SOFTMAX": ("softmax",),
        "LOG_SOFTMAX": ("log_softmax",),
        "LOGISTIC": ("sigmoid",),
        "TANH": ("tanh",),
        "RELU": ("relu", "clamp_min", "clamp"),
        "RELU6": ("relu6", "hardtanh", "clamp"),
        "RELU_N1_TO_1": ("hardtanh", "clamp"),
        "RELU_0_TO_1": ("hardtanh", "clamp"),
        "HARD_SWISH": ("hardswish",),
        "GELU": ("gelu",),
        "ELU": ("elu",),
        "LEAKY_RELU": ("leaky_relu",),
        "PRELU": ("prelu",),
        "MAXIMUM": ("maximum", "clamp_min", "max"),
        "MINIMUM": ("minimum", "clamp_max", "min"),
        "ABS": ("abs",),
        "NEG": ("neg",),
        "EXP": ("exp",),
        "LOG": ("log",),
        "SQRT": ("sqrt",),
        "RSQRT": ("rsqrt",),
        "SQUARE": ("square",),
        "SQUARED_DIFFERENCE": ("squared_difference",),
        "POW": ("pow",),
        "SIN": ("sin",),
        "COS": ("cos",),
        "FLOOR": ("floor",),
        "CEIL": ("ceil",),
        "ROUND": ("round",),
        "SIGN": ("sign",),
        "CONCATENATION": ("cat", "stack"),
        "PACK": ("stack",),
        "SPLIT": _CUTS,
        "SPLIT_V": _CUTS,
        "UNPACK": ("unbind", *_CUTS),
        "SLICE": _CUTS,
        "STRIDED_SLICE": _CUTS,
        "GATHER": ("index_select", "embedding", "index", "gather", "select"),
        "GATHER_ND": ("index", "gather", "embedding"),
        "EMBEDDING_LOOKUP": ("embedding",),
        "PAD": ("constant_pad_nd", "pad"),
        "PADV2": ("constant_pad_nd", "pad"),
        "MIRROR_PAD": ("reflection_pad2d", "reflection_pad1d"),
        "RESIZE_NEAREST_NEIGHBOR": tuple(f"upsample_nearest{d}d" for d in (2, 1, 3)),
        "RESIZE_BILINEAR": ("upsample_bilinear2d", "upsample_linear1d"),
        "SELECT": ("where", "masked_fill"),
        "SELECT_V2": ("where", "masked_fill"),
        "TRANSPOSE": ("permute", "transpose", "channel_shuffle"),
        "RESHAPE": _SHAPES,
        "SQUEEZE": _SHAPES,
        "EXPAND_DIMS": _SHAPES,
        "TILE": ("repeat", "tile", "expand"),
        "BROADCAST_TO": ("expand",),
        "SPACE_TO_DEPTH": ("pixel_unshuffle",),
        "DEPTH_TO_SPACE": ("pixel_shuffle",),
        "REVERSE_V2": ("flip",),
        "TOPK_V2": ("topk", "sort"),
        "ARG_MAX": ("argmax",),
        "ARG_MIN": ("argmin",),
        "CUMSUM": ("cumsum",),
        "CAST": ("to",),
        "ATAN2": ("atan2", "atan"),
        "FLOOR_DIV": ("div", "floor_divide"),
        "EQUAL": ("eq",),
        "NOT_EQUAL": ("ne",),
        "GREATER": ("gt",),
        "GREATER_EQUAL": ("ge",),
        "LESS": ("lt",),
        "LESS_EQUAL": ("le",),
        "LOGICAL_NOT": ("logical_not",),
        "LOGICAL_AND": ("logical_and",),
        "LOGICAL_OR": ("logical_or",),
    }
)
# Kinds that the converter puts in of its own: layouts, borders, types.
ADDED = frozenset(
    {"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST", "PAD", "PADV2", "BROADCAST_TO", "SLICE", "STRIDED_SLICE"}
    | {
        "LOGICAL_NOT",
        "LOGICAL_AND",
        "LOGICAL_OR",
        "LESS",
        "NOT_EQUAL",
        "EQUAL",
        "GREATER",
        "GREATER_EQUAL",
        "LESS_EQUAL",
    }
)
