"""Quantize, dequantize and the choice of parameters at run time, as ONNX's operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.arith import MIN_SCALE
from qlib.onnx.draft import TYPES, Draft, shape_of

Emit = Callable[[Draft, fx.Node], Any]


def _parameters(draft: Draft, node: fx.Node, dtype: torch.dtype) -> tuple[str, str]:
    """Scale and zero point: numbers as constants without dimensions, tensors as they are."""
    scale, zero_point = node.args[1:3]
    if isinstance(scale, fx.Node):
        assert isinstance(zero_point, fx.Node)
        if scale.op == "get_attr":
            points = draft.stored(zero_point).to(dtype)
            return draft.value(scale, node), draft.constant(points, f"{zero_point.name}_{_short(dtype)}")
        point = draft.value(zero_point, node)
        return draft.value(scale, node), draft.add("Cast", [point], f"{node.name}_zero_point", to=TYPES[dtype])
    return (
        draft.constant(scale, f"{node.name}_scale", torch.float32),  # type: ignore[arg-type]
        draft.constant(zero_point, f"{node.name}_zero_point", dtype),  # type: ignore[arg-type]
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def quantize(draft: Draft, node: fx.Node) -> str:
    """``QuantizeLinear``, which saturates at its type's range; a narrower range is a ``Clip`` before it."""
    qmin, qmax, dtype = node.args[-3:]
    assert isinstance(dtype, torch.dtype) and isinstance(qmin, int) and isinstance(qmax, int)
    x = draft.value(node.args[0], node)
    limits = torch.iinfo(dtype)
    if (qmin, qmax) != (limits.min, limits.max):
        if isinstance(node.args[1], fx.Node):
            return quantize_by_row(draft, node)
        scale, zero_point = float(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
        bounds = [
            draft.constant((q - zero_point) * scale, f"{node.name}_{name}", torch.float32)
            for name, q in (("low", qmin), ("high", qmax))
        ]
        x = draft.add("Clip", [x, *bounds], f"{node.name}_clipped")
    axis = int(node.args[3]) if "per_channel" in str(node.target) else None  # type: ignore[arg-type]
    return draft.add("QuantizeLinear", [x, *_parameters(draft, node, dtype)], node.name, axis=axis)


def dequantize(draft: Draft, node: fx.Node) -> str:
    """``DequantizeLinear``, per tensor, per channel, or in blocks of the last dimension."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dtype = source.meta["dtype"]
    if not dtype.is_floating_point:
        axis = block = None
        if "per_channel" in str(node.target):
            axis = int(node.args[3])  # type: ignore[arg-type]
        if "per_group" in str(node.target):
            axis, block = len(shape_of(node)) - 1, int(node.args[3])  # type: ignore[arg-type]
            if shape_of(node)[-1] % block:
                return _dequantize_uneven_groups(draft, node)
        given = [draft.value(source, node), *_parameters(draft, node, dtype)]
        return draft.add("DequantizeLinear", given, node.name, axis=axis, block_size=block)
    return draft.add("Cast", [draft.value(source, node)], node.name, to=TYPES[torch.float32])


def _dequantize_uneven_groups(draft: Draft, node: fx.Node) -> str:
    """The equation with parameters beside each element, where the last group is shorter than the others."""
    source, scale, zero_point, size = node.args
    assert isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node) and isinstance(size, int)
    beside = [
        draft.constant(
            draft.stored(value).float().repeat_interleave(size, -1)[..., : shape_of(node)[-1]], f"{node.name}_{name}"
        )
        for value, name in ((scale, "scale"), (zero_point, "zero_point"))
    ]
    single = draft.add("Cast", [draft.value(source, node)], f"{node.name}_float", to=TYPES[torch.float32])
    return draft.add("Mul", [draft.add("Sub", [single, beside[1]], f"{node.name}_shifted"), beside[0]], node.name)


def choose(draft: Draft, node: fx.Node) -> tuple[str, str]:
    """``DynamicQuantizeLinear``, which has one meaning, uint8 with a zero point; any other range is spelled out."""
    if node.args[1:] != (0, 255, False, torch.uint8):
        return _spelled_choice(draft, node, [])
    names = [f"{node.name}_integers", f"{node.name}_scale", f"{node.name}_zero_point"]
    _, scale, zero_point = draft.add_many("DynamicQuantizeLinear", [draft.value(node.args[0], node)], names)
    return scale, zero_point


def choose_by_row(draft: Draft, node: fx.Node) -> tuple[str, str]:
    """Scale and zero point of each row."""
    return _spelled_choice(draft, node, [-1])


def _spelled_choice(draft: Draft, node: fx.Node, axes: list[int]) -> tuple[str, str]:
    """The equations of `qlib.arith.qparams_from_range`, in float64 as there; no axes stand for the whole tensor."""
    arguments: tuple[Any, ...] = node.args
    x, qmin, qmax, symmetric = draft.value(arguments[0], node), *arguments[1:4]

    def add(kind: str, *given: str, **attributes: Any) -> str:
        return draft.add(kind, given, f"{node.name}_{kind.lower()}", **attributes)

    def number(value: float) -> str:
        return draft.constant(value, f"{node.name}_number", torch.float64)

    over = [draft.integers(axes, f"{node.name}_axes")] if axes else []
    bounds = (add(kind, x, *over, keepdims=int(bool(axes))) for kind in ("ReduceMin", "ReduceMax"))
    low, high = (add("Cast", bound, to=TYPES[torch.float64]) for bound in bounds)
    low, high = add("Min", low, number(0.0)), add("Max", high, number(0.0))
    middle = (qmin + qmax + 1) // 2
    if symmetric:
        steps = number(float(min(qmax - middle, middle - qmin)))
        scale = add("Div", add("Max", add("Neg", low), high), steps)
    else:
        scale = add("Div", add("Sub", high, low), number(float(qmax - qmin)))
    empty = add("Equal", scale, number(0.0))
    scale = add("Where", empty, number(1.0), add("Max", scale, number(MIN_SCALE)))
    single = draft.add("Cast", [scale], f"{node.name}_scale", to=TYPES[torch.float32])
    if symmetric:
        point = add("Add", add("Sub", low, low), number(float(middle)))
    else:
        below = add("Round", add("Div", low, add("Cast", single, to=TYPES[torch.float64])))
        point = add("Clip", add("Sub", number(float(qmin)), below), number(float(qmin)), number(float(qmax)))
    return single, draft.add("Cast", [point], f"{node.name}_zero_point", to=TYPES[torch.int32])


def quantize_by_row(draft: Draft, node: fx.Node) -> str:
    """The equation of `quantize`, spelled out: ``QuantizeLinear`` has no parameters for each row."""
    arguments: tuple[Any, ...] = node.args
    x, scale, zero_point = (draft.value(a, node) for a in arguments[:3])
    qmin, qmax, dtype = arguments[3:]
    steps = draft.add("Round", [draft.add("Div", [x, scale], f"{node.name}_steps")], f"{node.name}_rounded")
    point = draft.add("Cast", [zero_point], f"{node.name}_zero_point", to=TYPES[torch.float32])
    bounds = [draft.constant(float(q), f"{node.name}_bound", torch.float32) for q in (qmin, qmax)]
    moved = draft.add("Clip", [draft.add("Add", [steps, point], f"{node.name}_moved"), *bounds], f"{node.name}_clipped")
    return draft.add("Cast", [moved], node.name, to=TYPES[dtype])


def dequantize_by_row(draft: Draft, node: fx.Node) -> str:
    """The equation of `dequantize`, spelled out."""
    q, scale, zero_point = (draft.value(a, node) for a in node.args)
    single = TYPES[torch.float32]
    pair = [draft.add("Cast", [value], f"{node.name}_float", to=single) for value in (q, zero_point)]
    return draft.add("Mul", [draft.add("Sub", pair, f"{node.name}_shifted"), scale], node.name)


BORDERS: Mapping[str, Emit] = MappingProxyType(
    {
        "qlib::quantize_per_tensor": quantize,
        "qlib::quantize_per_channel": quantize,
        "qlib::dequantize_per_tensor": dequantize,
        "qlib::dequantize_per_channel": dequantize,
        "qlib::dequantize_per_group": dequantize,
        "qlib::choose_qparams": choose,
        "qlib::choose_qparams_per_token": choose_by_row,
        "qlib::quantize_per_token": quantize_by_row,
        "qlib::dequantize_per_token": dequantize_by_row,
    }
)
