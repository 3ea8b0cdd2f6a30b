"""Quantize, dequantize and the choice of parameters at run time, as library operators."""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.arith import dequantize, qparams_of_rows, qparams_of_tensor, quantize
from qlib.qparams import DType, QParams, QSpec

STATIC = "float scale, int zero_point"
TENSOR = "Tensor scale, Tensor zero_point"
RANGE = "int qmin, int qmax, ScalarType dtype"

_BY_STORAGE = {
    torch.uint8: DType.UINT8,
    torch.int8: DType.INT8,
    torch.int16: DType.INT16,
    torch.int32: DType.INT32,
    torch.float16: DType.FLOAT16,
}


def _qparams(
    scale: float | Tensor, zero_point: int | Tensor, q: tuple[int, int, torch.dtype], axis: int | None = None
) -> QParams:
    scale = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float32)
    zero_point = zero_point if isinstance(zero_point, Tensor) else torch.tensor(zero_point, dtype=torch.int32)
    return QParams(scale, zero_point, q[0], q[1], _BY_STORAGE[q[2]], axis)


def quantize_per_tensor(
    x: Tensor, scale: float | Tensor, zero_point: int | Tensor, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Quantize `x` with one scale and zero point."""
    return quantize(x, _qparams(scale, zero_point, (qmin, qmax, dtype)))


def quantize_per_channel(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Quantize `x` with one scale and zero point for each index along `axis`."""
    return quantize(x, _qparams(scale, zero_point, (qmin, qmax, dtype), axis))


def dequantize_per_tensor(q: Tensor, scale: float | Tensor, zero_point: int | Tensor) -> Tensor:
    """The float32 numbers that `q` stands for."""
    return dequantize(q, _qparams(scale, zero_point, (0, 0, q.dtype)))


def dequantize_per_channel(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """The float32 numbers that `q` stands for, with one scale and zero point for each index along `axis`."""
    return dequantize(q, _qparams(scale, zero_point, (0, 0, q.dtype), axis))


def choose_qparams(x: Tensor, qmin: int, qmax: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover the range of `x`."""
    params = qparams_of_tensor(x, storage_spec(qmin, qmax, symmetric, dtype))
    return params.scale, params.zero_point


def choose_qparams_per_token(
    x: Tensor, qmin: int, qmax: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scales and zero points that cover the range of each row of `x`, shaped (..., 1)."""
    params = qparams_of_rows(x, storage_spec(qmin, qmax, symmetric, dtype))
    return params.scale, params.zero_point


def dequantize_per_group(q: Tensor, scale: Tensor, zero_point: Tensor, group_size: int) -> Tensor:
    """The float32 numbers that `q` stands for, with one scale for each `group_size` elements of the last dimension."""
    return dequantize(q, QParams(scale, zero_point, 0, 0, _BY_STORAGE[q.dtype], group_size=group_size))


def storage_spec(qmin: int, qmax: int, symmetric: bool, dtype: torch.dtype) -> QSpec:
    """The QSpec of a tensor that is quantized at run time, from the arguments of a library operator."""
    return QSpec(_BY_STORAGE[dtype], qmin, qmax, symmetric, observer="runtime")


def fake_quantize_result(x: Tensor, *arguments: object) -> Tensor:
    """Shape and dtype of a quantize operator's result."""
    dtype = arguments[-1]
    assert isinstance(dtype, torch.dtype)
    return torch.empty_like(x, dtype=dtype)


def fake_dequantize_result(q: Tensor, *arguments: object) -> Tensor:
    """Shape and dtype of a dequantize operator's result."""
    return torch.empty_like(q, dtype=torch.float32)


def fake_choice(x: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    """Shape and dtype of the chosen parameters."""
    return x.new_empty((), dtype=torch.float32), x.new_empty((), dtype=torch.int32)


def fake_choice_per_token(x: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    """Shape and dtype of the parameters that are chosen for each row."""
    shape = (*x.shape[:-1], 1)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


# name with overload, schema, implementation, fake implementation
OPERATORS = (
    ("quantize_per_tensor", f"(Tensor x, {STATIC}, {RANGE}) -> Tensor", quantize_per_tensor, fake_quantize_result),
    (
        "quantize_per_tensor.tensor",
        f"(Tensor x, {TENSOR}, {RANGE}) -> Tensor",
        quantize_per_tensor,
        fake_quantize_result,
    ),
    (
        "quantize_per_channel",
        f"(Tensor x, {TENSOR}, int axis, {RANGE}) -> Tensor",
        quantize_per_channel,
        fake_quantize_result,
    ),
    ("dequantize_per_tensor", f"(Tensor q, {STATIC}) -> Tensor", dequantize_per_tensor, fake_dequantize_result),
    ("dequantize_per_tensor.tensor", f"(Tensor q, {TENSOR}) -> Tensor", dequantize_per_tensor, fake_dequantize_result),
    (
        "dequantize_per_channel",
        f"(Tensor q, {TENSOR}, int axis) -> Tensor",
        dequantize_per_channel,
        fake_dequantize_result,
    ),
    (
        "choose_qparams",
        "(Tensor x, int qmin, int qmax, bool symmetric, ScalarType dtype) -> (Tensor, Tensor)",
        choose_qparams,
        fake_choice,
    ),
    (
        "choose_qparams_per_token",
        "(Tensor x, int qmin, int qmax, bool symmetric, ScalarType dtype) -> (Tensor, Tensor)",
        choose_qparams_per_token,
        fake_choice_per_token,
    ),
    ("quantize_per_token", f"(Tensor x, {TENSOR}, {RANGE}) -> Tensor", quantize_per_tensor, fake_quantize_result),
    ("dequantize_per_token", f"(Tensor q, {TENSOR}) -> Tensor", dequantize_per_tensor, fake_dequantize_result),
    (
        "dequantize_per_group",
        f"(Tensor q, {TENSOR}, int group_size) -> Tensor",
        dequantize_per_group,
        fake_dequantize_result,
    ),
)
