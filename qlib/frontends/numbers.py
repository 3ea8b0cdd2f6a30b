"""Numbers that come from the data: tensors without dimensions, and the operators that stand for Python's on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from qlib.errors import CaptureError
from qlib.frontends.scope import Number, Scope, Traced

_aten = torch.ops.aten
DTYPES: Mapping[type, torch.dtype] = MappingProxyType({bool: torch.bool, int: torch.int64, float: torch.float64})
Compute = Callable[..., Traced]


def dtype_of(value: Any) -> torch.dtype:
    """The type that a number has as a tensor."""
    dtype: torch.dtype = value.value.dtype if isinstance(value, Number) else DTYPES[type(value)]
    return dtype


def is_number(value: Any) -> bool:
    """Whether a value is a number, known or from the data."""
    return isinstance(value, Number) or type(value) in DTYPES


def take_out(scope: Scope, kind: str, tensor: Any) -> Number:
    """The number that a tensor of one element holds, as the TorchScript operator `kind` takes it out."""
    value = scope.local(tensor)
    if value.value.numel() != 1:
        raise CaptureError(f"expected a tensor of one element, found {value.value.numel()}")
    if value.value.dim():
        value = scope.call(_aten.reshape.default, value, [])
    return Number(*vars(_as(scope, kind, value)).values())


def _as(scope: Scope, kind: str, value: Traced) -> Traced:
    if kind in _TO_BOOL:
        return value if value.value.dtype is torch.bool else scope.call(_aten.ne.Scalar, value, 0)
    whole = not value.value.is_floating_point()
    dtype = value.value.dtype if value.value.dtype is torch.bool else torch.int64 if whole else torch.float64
    dtype = _CASTS.get(kind, dtype)
    return value if value.value.dtype is dtype else scope.call(_aten.to.dtype, value, dtype)


_TO_BOOL = frozenset({"aten::Bool", "aten::is_nonzero"})
_CASTS = {"aten::Int": torch.int64, "aten::IntImplicit": torch.int64}
_CASTS |= {"aten::Float": torch.float64, "aten::FloatImplicit": torch.float64}
# What takes the only element out of a tensor.
TAKES_OUT = frozenset({*_TO_BOOL, *_CASTS, "aten::item", "aten::ScalarImplicit"})


def compare(scope: Scope, kind: str, a: Any, b: Any) -> Number:
    """Whether two tensors are the same."""
    if scope.local(a).value.shape != scope.local(b).value.shape:
        return scope.number(False, torch.bool)
    found = scope.call(_aten.all.default, scope.call(_aten.eq.Tensor, a, b))
    return Number(found.node, found.value)


def calculate(scope: Scope, kind: str, given: list[Any]) -> Any:
    """A scalar operator of TorchScript on numbers some of which come from the data, None for one that isn't known."""
    known = _LOGIC.get(kind)
    if known is not None and len(given) == 2:
        number, other = given if isinstance(given[0], Number) else given[::-1]
        if not isinstance(other, Number):
            return number if bool(other) is known else other
    target = ON_NUMBERS.get(kind)
    if kind in TAKES_OUT:
        found = _as(scope, kind, Traced(*vars(scope.local(given[0])).values()))
    elif target is None or not all(is_number(value) for value in given):
        return None
    else:
        promoted = torch.float64 if kind in _IN_FLOAT else None
        found = scope.call(target, *(scope.number(value, promoted or dtype_of(value)) for value in given))
        if kind in _TO_INT:
            found = scope.call(_aten.to.dtype, found, torch.int64)
    return Number(found.node, found.value)


# Operators that one known value decides; with the other one the result is the second operand.
_LOGIC: Mapping[str, bool] = MappingProxyType({"aten::__and__": True, "aten::__or__": False})
_IN_FLOAT = frozenset({"aten::div", "aten::sqrt", "aten::exp", "aten::log", "aten::floor", "aten::ceil"})
_TO_INT = frozenset({"aten::floor", "aten::ceil"})
# Python's operators on numbers, as TorchScript names them, and what computes them on tensors.
ON_NUMBERS: Mapping[str, OpOverload] = MappingProxyType(
    {
        **{f"aten::{name}": getattr(_aten, name).Tensor for name in ("gt", "lt", "ge", "le", "eq", "ne")},
        **{f"aten::{name}": getattr(_aten, name).Tensor for name in ("add", "sub", "mul", "div", "remainder")},
        **{f"aten::{name}": getattr(_aten, name).default for name in ("neg", "sqrt", "exp", "log", "floor", "ceil")},
        "aten::floordiv": _aten.floor_divide.default,
        "aten::pow": _aten.pow.Tensor_Tensor,
        "prim::abs": _aten.abs.default,
        "aten::abs": _aten.abs.default,
        "prim::min": _aten.minimum.default,
        "prim::max": _aten.maximum.default,
        "aten::__not__": _aten.logical_not.default,
        "aten::__and__": _aten.logical_and.default,
        "aten::__or__": _aten.logical_or.default,
        "aten::__xor__": _aten.logical_xor.default,
    }
)


def overload_for(target: OpOverload, given: list[Any]) -> OpOverload | None:
    """The overload of an operator that takes tensors where `given` has numbers from the data, None without one."""
    names = [argument.name for argument in target._schema.arguments]
    packet = target.overloadpacket
    for overload in (getattr(packet, name) for name in packet.overloads()):
        arguments = overload._schema.arguments
        if [argument.name for argument in arguments] != names:
            continue
        if all("Tensor" in str(a.type) for a, v in zip(arguments, given, strict=True) if isinstance(v, Number)):
            found: OpOverload = overload
            return found
    return None


def lifted(scope: Scope, target: OpOverload, given: list[Any]) -> list[Any]:
    """The arguments for an overload that takes tensors: plain numbers become tensors too where it asks for them."""
    return [
        scope.number(value, dtype_of(value)) if str(argument.type) == "Tensor" and is_number(value) else value
        for argument, value in zip(target._schema.arguments, given, strict=True)
    ]


def of_dtype(scope: Scope, result: Traced, dtype: torch.dtype) -> Traced:
    """A result in the type that the operator gives for a plain number."""
    return result if result.value.dtype is dtype else scope.call(_aten.to.dtype, result, dtype)


def zeros_like(scope: Scope, like: Tensor) -> Traced:
    """A tensor for a value that is never read."""
    return scope.call(_aten.zeros.default, list(like.shape), dtype=like.dtype)
