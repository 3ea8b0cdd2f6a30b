"""Operators that keep their input's parameters: pooling, and those that only move data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlib.arith import requantize
from qlib.kernels.float_operator import overload_of, rest_of_schema
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op


def _first(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _monotone(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """An operator that selects values by order does the same to integers as to the numbers they stand for.

    The maximum of a window that lies in the padding alone is infinite, and stored as the least integer.
    """

    def build(op: Op) -> Implementation:
        aten = overload_of(op)

        def run(x, *rest):  # type: ignore[no-untyped-def]
            return _first(aten(x.to(dtype), *rest)).clamp_min(torch.iinfo(x.dtype).min).to(x.dtype)

        return run

    return build


def _averaging(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """A mean commutes with the scale: ``y = round(mean(x - zero_point)) + zero_point``."""

    def build(op: Op) -> Implementation:
        aten = overload_of(op)

        def run(x, zero_point, qmin, qmax, *rest):  # type: ignore[no-untyped-def]
            return requantize(aten(x.to(dtype) - zero_point, *rest), 1.0, zero_point, qmin, qmax, x.dtype)

        return run

    return build


def _monotone_arguments(site: Site) -> tuple[object, ...]:
    return (site.sources[0].node, *site.match.head.args[1:])


def _averaging_arguments(site: Site) -> tuple[object, ...]:
    assert site.result is not None
    bounds = (site.sources[0].zero_point, site.result.qmin, site.result.qmax)
    return (site.sources[0].node, *bounds, *site.match.head.args[1:])


def _pad_arguments(site: Site) -> tuple[object, ...]:
    return (site.sources[0].node, site.match.head.args[1], site.sources[0].zero_point)


def _monotone_fake(op: Op) -> Implementation:
    return lambda x, *rest: _first(overload_of(op)(x.to(torch.float32), *rest)).to(x.dtype)


def _averaging_fake(op: Op) -> Implementation:
    return lambda x, zero_point, qmin, qmax, *rest: overload_of(op)(x.to(torch.float32), *rest).to(x.dtype)


MONOTONE = Kernel(
    "selection by order, on the integers as they are",
    _monotone_arguments,
    lambda op: f"(Tensor x{rest_of_schema(op)}) -> Tensor",
    _monotone(torch.float64),
    _monotone(torch.float32),
    _monotone_fake,
)
AVERAGING = Kernel(
    "mean of integers, rounded once",
    _averaging_arguments,
    lambda op: f"(Tensor x, int zero_point, int qmin, int qmax{rest_of_schema(op)}) -> Tensor",
    _averaging(torch.float64),
    _averaging(torch.float32),
    _averaging_fake,
)
MOVE = Kernel("the float operator itself, on the integers as they are", _monotone_arguments)
PAD = Kernel("padding with the zero point", _pad_arguments)
