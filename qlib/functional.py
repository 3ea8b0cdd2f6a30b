"""Quantizing single tensors by hand; integers are plain tensors, and scale and zero point stand beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlib import arith
from qlib.borrowed import dtype_of
from qlib.errors import QConfigError
from qlib.observers import range_of
from qlib.qparams import RANGES, DType, QParams, QSpec


def quantize_per_tensor(x: Tensor, scale: Any, zero_point: Any, dtype: Any = DType.UINT8) -> Tensor:
    """Quantize `x` with one scale: ``clamp(round_half_even(x / scale) + zero_point, qmin, qmax)``.

    `scale` and `zero_point` are numbers or tensors of one element; `dtype` is a type of integers (`torch.uint8`,
    "int8", `DType.INT4`) and its whole range is used. Returns integers in the shape of `x`. Raises QConfigError for
    parameters that the type can't have.
    """
    return arith.quantize(x, _params(scale, zero_point, dtype_of(dtype), None, x))


def quantize_per_channel(x: Tensor, scales: Any, zero_points: Any, axis: int, dtype: Any = DType.INT8) -> Tensor:
    """As `quantize_per_tensor`, with one scale and one zero point for each index along `axis` of `x`."""
    return arith.quantize(x, _params(scales, zero_points, dtype_of(dtype), axis, x))


def dequantize(q: Tensor, scale: Any, zero_point: Any, axis: int | None = None) -> Tensor:
    """The real numbers that integers stand for, ``scale * (q - zero_point)``, as float32; `axis` as they were made."""
    return arith.dequantize(q, _params(scale, zero_point, DType.INT32, axis, q))


def choose_qparams(x: Tensor, dtype: Any = DType.UINT8, symmetric: bool = False, axis: int | None = None) -> QParams:
    """The scale and zero point that cover the range of `x`, zero included; with `axis` one for each index along it.

    Raises CalibrationError where `x` holds infinity or NaN.
    """
    spec = QSpec(dtype_of(dtype), symmetric=symmetric, axis=axis)
    if axis is None:
        return arith.qparams_of_tensor(x, spec)
    return arith.qparams_from_range(*range_of(x.detach(), spec), spec)


def _check_axis(axis: int, x: Tensor) -> None:
    if not -x.dim() <= axis < x.dim():
        raise QConfigError(f"expected an axis of a tensor of {x.dim()} dimensions, found {axis}")


def _params(scale: Any, zero_point: Any, dtype: DType, axis: int | None, x: Tensor) -> QParams:
    shape = [] if axis is None else [-1]
    scales = torch.as_tensor(scale, dtype=torch.float32).reshape(shape)
    zero_points = torch.as_tensor(zero_point).to(torch.int32).reshape(shape)
    qmin, qmax = RANGES[dtype]
    if axis is not None:
        _check_axis(axis, x)
        if not scales.numel() == zero_points.numel() == x.shape[axis]:
            raise QConfigError(
                f"expected {x.shape[axis]} scales and zero points, one for each index along axis {axis}, "
                f"found {scales.numel()} and {zero_points.numel()}"
            )
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise QConfigError(f"expected positive finite scales, found {scale}")
    if not bool(((zero_points >= qmin) & (zero_points <= qmax)).all()):
        raise QConfigError(f"expected zero points in [{qmin}, {qmax}], as {dtype} has, found {zero_point}")
    return QParams(scales, zero_points, qmin, qmax, dtype, axis)
