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
    return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value


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


def _masked_arguments(site: Site) -> tuple[object, ...]:
    source, (head, tail) = site.sources[0], site.match.nodes
    operands = (source.node, source.scale, source.zero_point)
    return (*operands, *head.args[1:], tail.args[1], *site.bounded_result.arguments)


def _masked_schema(op: Op) -> str:
    mask = without_defaults(rest_of_schema(op))
    return f"(Tensor x, float x_scale, int x_zero_point{mask}, int dim, {RESULT}) -> Tensor"


def _masked(op: Op) -> Implementation:
    """``y = softmax(f((x - x_zero_point) * x_scale, mask))``, requantized."""
    hide, softmax = overload_of(op), getattr(torch.ops.aten, op.chain[1].partition("::")[2])

    def run(x: Tensor, x_scale: float, x_zero_point: int, *rest: Any) -> Tensor:
        mask, dim, (y_scale, *result) = rest[: -_RESULTS - 1], rest[-_RESULTS - 1], rest[-_RESULTS:]
        scores = hide((x.to(torch.float64) - x_zero_point) * x_scale, *map(_double, mask))
        return requantize(softmax(scores, dim) / y_scale, 1.0, *result)

    return run


def _masked_fake(op: Op) -> Implementation:
    def fake(x: Tensor, x_scale: float, x_zero_point: int, mask: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape), dtype=rest[-1])

    return fake


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
MASKED = Kernel(
    "softmax in float64 of scores that a mask goes before, rounded once",
    _masked_arguments,
    _masked_schema,
    _masked,
    _masked,
    _masked_fake,
)
