"""Operators that work element by element, as ONNX's operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.onnx.borders import Emit
from qlib.onnx.draft import TYPES, Draft, refuse, shape_of


def _same(kind: str) -> Emit:
    """An operator of one tensor that ONNX has under another name."""
    return lambda draft, node: draft.add(kind, [draft.value(node.args[0], node)], node.name)


def _two(kind: str) -> Emit:
    """An operator of two tensors, or of a tensor and a number; `alpha` multiplies the second."""

    def emit(draft: Draft, node: fx.Node) -> str:
        if node.kwargs.get("rounding_mode") is not None:
            raise refuse(node, f"division with the rounding mode {node.kwargs['rounding_mode']!r}")
        second: Any = node.args[1]
        alpha = node.kwargs.get("alpha", 1)
        if alpha != 1 and not isinstance(second, fx.Node):
            second, alpha = second * alpha, 1
        name = draft.promoted(second, node)
        if alpha != 1:
            factor = draft.constant(alpha, f"{node.name}_alpha", node.meta["dtype"])  # type: ignore[arg-type]
            name = draft.add("Mul", [name, factor], f"{node.name}_scaled")
        return draft.add(kind, [draft.promoted(node.args[0], node), name], node.name)

    return emit


def _from_number(draft: Draft, node: fx.Node) -> str:
    """``number - x``."""
    arguments: tuple[Any, ...] = node.args
    x, number = draft.value(arguments[0], node), draft.value(arguments[1], node)
    if len(arguments) > 2 and arguments[2] != 1:
        factor = draft.constant(arguments[2], f"{node.name}_alpha", node.meta["dtype"])
        x = draft.add("Mul", [x, factor], f"{node.name}_scaled")
    return draft.add("Sub", [number, x], node.name)


def _clip(draft: Draft, node: fx.Node) -> str:
    """``Clip`` between two numbers, either of which may be missing."""
    bounds: tuple[Any, ...] = (0, 6) if "relu6" in str(node.target) else (*node.args[1:], None, None)[:2]
    return _between(draft, node, bounds)


def _between(draft: Draft, node: fx.Node, bounds: tuple[Any, ...]) -> str:
    if any(isinstance(bound, fx.Node) for bound in bounds):
        raise refuse(node, "bounds that are tensors")
    given = ["" if bound is None else draft.value(bound, node) for bound in bounds]
    return draft.add("Clip", [draft.value(node.args[0], node), *given], node.name)


def _in_double(kind: str, before: float, after: float) -> Emit:
    """``f(x + before) + after`` in float64, where what cancels near zero is far below float32."""

    def emit(draft: Draft, node: fx.Node) -> str:
        numbers = [draft.constant(value, f"{node.name}_number", torch.float64) for value in (before, after)]
        x = draft.add("Cast", [draft.value(node.args[0], node)], f"{node.name}_double", to=TYPES[torch.float64])
        y = draft.add(kind, [draft.add("Add", [x, numbers[0]], f"{node.name}_moved")], f"{node.name}_{kind.lower()}")
        y = draft.add("Add", [y, numbers[1]], f"{node.name}_result")
        return draft.add("Cast", [y], node.name, to=TYPES[node.meta["dtype"]])

    return emit


def _shrink(moved: float) -> Emit:
    """Zero near zero; the rest moved towards zero by `moved` times the bound."""

    def emit(draft: Draft, node: fx.Node) -> str:
        bound = float(node.args[1])  # type: ignore[arg-type]
        return draft.add("Shrink", [draft.value(node.args[0], node)], node.name, lambd=bound, bias=moved * bound)

    return emit


def _log_sigmoid(draft: Draft, node: fx.Node) -> str:
    """``-softplus(-x)``."""
    minus = draft.add("Neg", [draft.value(node.args[0], node)], f"{node.name}_minus")
    return draft.add("Neg", [draft.add("Softplus", [minus], f"{node.name}_plus")], node.name)


def _rsqrt(draft: Draft, node: fx.Node) -> str:
    root = draft.add("Sqrt", [draft.value(node.args[0], node)], f"{node.name}_root")
    return draft.add("Reciprocal", [root], node.name)


def _square(draft: Draft, node: fx.Node) -> str:
    x = draft.value(node.args[0], node)
    return draft.add("Mul", [x, x], node.name)


def _safe_softmax(draft: Draft, node: fx.Node) -> str:
    """``Softmax``, and zeros where all is minus infinity."""
    x, axis = draft.value(node.args[0], node), node.args[1]
    y = draft.add("Softmax", [x], f"{node.name}_softmax", axis=axis)
    over = draft.integers([axis], f"{node.name}_axis")  # type: ignore[list-item]
    most = draft.add("ReduceMax", [x, over], f"{node.name}_largest", keepdims=1)
    nothing, zero = (draft.constant(v, f"{node.name}_number", node.meta["dtype"]) for v in (-math.inf, 0.0))
    return draft.add("Where", [draft.add("Equal", [most, nothing], f"{node.name}_hidden"), zero, y], node.name)


def _masked_fill(draft: Draft, node: fx.Node) -> str:
    x, mask, number = (draft.value(a, node) for a in node.args)
    return draft.add("Where", [mask, number, x], node.name)


def _elu(draft: Draft, node: fx.Node) -> str:
    arguments: tuple[Any, ...] = node.args
    alpha, scale, input_scale = arguments[1:4]
    if (scale, input_scale) != (1, 1):
        raise refuse(node, "scales other than 1")
    return draft.add("Elu", [draft.value(arguments[0], node)], node.name, alpha=float(alpha))


def _with_number(kind: str, attribute: str) -> Emit:
    """An operator with one number, which is an attribute in ONNX."""

    def emit(draft: Draft, node: fx.Node) -> str:
        number = float(node.args[1])  # type: ignore[arg-type]
        return draft.add(kind, [draft.value(node.args[0], node)], node.name, **{attribute: number})

    return emit


def _gelu(draft: Draft, node: fx.Node) -> str:
    return draft.add("Gelu", [draft.value(node.args[0], node)], node.name, approximate=node.kwargs.get("approximate"))


def _hardsigmoid(draft: Draft, node: fx.Node) -> str:
    return draft.add("HardSigmoid", [draft.value(node.args[0], node)], node.name, alpha=1 / 6, beta=0.5)


def _silu(draft: Draft, node: fx.Node) -> str:
    x = draft.value(node.args[0], node)
    return draft.add("Mul", [x, draft.add("Sigmoid", [x], f"{node.name}_gate")], node.name)


def _softplus(draft: Draft, node: fx.Node) -> str:
    """``log(1 + exp(beta x)) / beta``, and x itself where ``beta x`` is above the threshold."""
    arguments: tuple[Any, ...] = node.args
    x, beta, threshold = draft.value(arguments[0], node), *arguments[1:3]
    factor, bound = (draft.constant(float(v), f"{node.name}_number", torch.float32) for v in (beta, threshold))
    scaled = draft.add("Mul", [x, factor], f"{node.name}_scaled")
    y = draft.add("Div", [draft.add("Softplus", [scaled], f"{node.name}_plus"), factor], f"{node.name}_curve")
    return draft.add("Where", [draft.add("Greater", [scaled, bound], f"{node.name}_above"), x, y], node.name)


def _threshold(draft: Draft, node: fx.Node) -> str:
    x, bound, value = (draft.value(a, node) for a in node.args[:3])
    return draft.add("Where", [draft.add("Greater", [x, bound], f"{node.name}_above"), x, value], node.name)


def _prelu(draft: Draft, node: fx.Node) -> str:
    x, slope = node.args[:2]
    name, dims = draft.value(slope, node), len(shape_of(x))
    if shape_of(slope) != [1] and dims > 2:
        shape = draft.integers([-1, *[1] * (dims - 2)], f"{node.name}_shape")
        name = draft.add("Reshape", [name, shape], f"{node.name}_slope")
    return draft.add("PRelu", [draft.value(x, node), name], node.name)


def _along(kind: str) -> Emit:
    """An operator along one axis."""
    return lambda draft, node: draft.add(kind, [draft.value(node.args[0], node)], node.name, axis=node.args[1])


def _cumsum(draft: Draft, node: fx.Node) -> str:
    axis = draft.constant(node.args[1], f"{node.name}_axis", torch.int64)  # type: ignore[arg-type]
    return draft.add("CumSum", [draft.value(node.args[0], node), axis], node.name)


def _triangle(upper: int) -> Emit:
    """``Trilu``."""

    def emit(draft: Draft, node: fx.Node) -> str:
        diagonal = draft.constant(node.args[1], f"{node.name}_diagonal", torch.int64)  # type: ignore[arg-type]
        return draft.add("Trilu", [draft.value(node.args[0], node), diagonal], node.name, upper=upper)

    return emit


def _compare(kind: str) -> Emit:
    """A comparison of two tensors, or of a tensor and a number, which gets the tensor's type."""

    def emit(draft: Draft, node: fx.Node) -> str:
        x, other = node.args
        assert isinstance(x, fx.Node)
        return draft.add(kind, [draft.value(x, x), draft.value(other, x)], node.name)

    return emit


def _where(draft: Draft, node: fx.Node) -> str:
    condition, *values = node.args
    return draft.add("Where", [draft.value(condition, node), *(draft.value(v, node) for v in values)], node.name)


def _filled(draft: Draft, node: fx.Node) -> str:
    """A tensor of one number, of the captured shape."""
    number = node.args[1] if "full" in str(node.target) else int("ones" in str(node.target))
    return draft.constant(torch.full(shape_of(node), number, dtype=node.meta["dtype"]), node.name)  # type: ignore[arg-type]


def _cast(draft: Draft, node: fx.Node) -> str:
    return draft.add("Cast", [draft.value(node.args[0], node)], node.name, to=TYPES[node.meta["dtype"]])


POINTWISE: Mapping[str, Emit] = MappingProxyType(
    {
        **{f"aten::{name}": _two(name.capitalize()) for name in ("add", "sub", "mul", "div")},
        "aten::minimum": _two("Min"),
        "aten::maximum": _two("Max"),
        "aten::rsub": _from_number,
        **{f"aten::{name}": _same(name.capitalize()) for name in ("relu", "sigmoid", "tanh", "neg", "abs", "mish")},
        **{
            f"aten::{name}": _same(name.capitalize())
            for name in ("selu", "exp", "log", "sqrt", "reciprocal", "erf", "sin", "cos")
        },
        "aten::atan": _same("Atan"),
        "aten::logical_not": _same("Not"),
        "aten::triu": _triangle(1),
        "aten::tril": _triangle(0),
        "aten::relu6": _clip,
        "aten::clamp": _clip,
        "aten::hardtanh": _clip,
        "aten::clamp_min": lambda draft, node: _between(draft, node, (node.args[1], None)),
        "aten::clamp_max": lambda draft, node: _between(draft, node, (None, node.args[1])),
        "aten::expm1": _in_double("Exp", 0.0, -1.0),
        "aten::log1p": _in_double("Log", 1.0, 0.0),
        "aten::hardshrink": _shrink(0.0),
        "aten::softshrink": _shrink(1.0),
        "aten::log_sigmoid": _log_sigmoid,
        "aten::rsqrt": _rsqrt,
        "aten::square": _square,
        "aten::_safe_softmax": _safe_softmax,
        "aten::masked_fill": _masked_fill,
        "aten::elu": _elu,
        "aten::celu": _with_number("Celu", "alpha"),
        "aten::leaky_relu": _with_number("LeakyRelu", "alpha"),
        "aten::gelu": _gelu,
        "aten::hardsigmoid": _hardsigmoid,
        "aten::hardswish": _same("HardSwish"),
        "aten::silu": _silu,
        "aten::softplus": _softplus,
        "aten::threshold": _threshold,
        "aten::prelu": _prelu,
        "aten::softmax": _along("Softmax"),
        "aten::log_softmax": _along("LogSoftmax"),
        "aten::cumsum": _cumsum,
        "aten::pow": _two("Pow"),
        "aten::gt": _compare("Greater"),
        "aten::ge": _compare("GreaterOrEqual"),
        "aten::lt": _compare("Less"),
        "aten::le": _compare("LessOrEqual"),
        "aten::eq": _compare("Equal"),
        "aten::where": _where,
        **{f"aten::{name}_like": _filled for name in ("full", "zeros", "ones")},
        "aten::to": _cast,
    }
)
