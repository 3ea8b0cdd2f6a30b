"""Operators without an integer formula: the float operator itself in float64, rounded once.

Both implementations are the same. Single precision is not enough here: the terms that cancel in a normalisation, or
the position of an interpolated element, may be far larger than the result, and their errors with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlib.arith import requantize
from qlib.kernels.float_operator import overload_of, rest_of_schema, without_defaults
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op

RESULT = "float y_scale, int y_zero_point, int qmin, int qmax, ScalarType y_dtype"
_RESULTS = 5


def _arguments(site: Site) -> tuple[object, ...]:
    source = site.sources[0]
    return (source.node, source.scale, source.zero_point, *site.match.head.args[1:], *site.bounded_result.arguments)


def _schema(op: Op) -> str:
    return f"(Tensor x, float x_scale, int x_zero_point{without_defaults(rest_of_schema(op))}, {RESULT}) -> Tensor"


def _double(value: Any) -> Any:
    return value.to(torch.float64) if isinstance(value, Tensor) else value


def _computed(op: Op) -> Implementation:
    """``y = f((x - x_zero_point) * x_scale)``, requantized."""
    aten = overload_of(op)

    def run(x: Tensor, x_scale: float, x_zero_point: int, *rest: Any) -> Tensor:
        others, (y_scale, *result) = rest[:-_RESULTS], rest[-_RESULTS:]
        real = aten((x.to(torch.float64) - x_zero_point) * x_scale, *map(_double, others))
        return requantize(real / y_scale, 1.0, *result)

    return run


def _homogeneous(op: Op) -> Implementation:
    """``y = f(x - x_zero_point) * (x_scale / y_scale)`` for an f with ``f(k * x) = k * f(x)``, requantized.

    Sums of integers are exact in float64, and where the scale is kept so are ties.
    """
    aten = overload_of(op)

    def run(x: Tensor, x_scale: float, x_zero_point: int, *rest: Any) -> Tensor:
        others, (y_scale, *result) = rest[:-_RESULTS], rest[-_RESULTS:]
        return requantize(aten(x.to(torch.float64) - x_zero_point, *others), x_scale / y_scale, *result)

    return run


def _fake(op: Op) -> Implementation:
    aten = overload_of(op)

    def fake(x: Tensor, x_scale: float, x_zero_point: int, *rest: Any) -> Tensor:
        y: Tensor = aten(x.to(torch.float64), *map(_double, rest[:-_RESULTS])).to(rest[-1])
        return y

    return fake


COMPUTED = Kernel("the float operator in float64, rounded once", _arguments, _schema, _computed, _computed, _fake)
HOMOGENEOUS = Kernel(
    "the float operator in float64 on integers less their zero point, rounded once",
    _arguments,
    _schema,
    _homogeneous,
    _homogeneous,
    _fake,
)
