"""The arithmetic of quantization; rounding happens in this file and nowhere else.

Equations (section "Arithmetic" of ARCHITECTURE.md):

    quantize     q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
    dequantize   x = scale * (q - zero_point)
    requantize   q = clamp(round_half_even(acc * multiplier) + zero_point, qmin, qmax)
    range        scale = (max - min) / (qmax - qmin),  zero_point = qmin - round_half_even(min / scale)
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.errors import CalibrationError
from qlib.qparams import RANGES, DType, QParams, QSpec

STORAGE: dict[DType, torch.dtype] = {
    DType.UINT8: torch.uint8,
    DType.INT8: torch.int8,
    DType.INT16: torch.int16,
    DType.INT32: torch.int32,
    DType.UINT4: torch.uint8,
    DType.INT4: torch.int8,
    DType.FLOAT16: torch.float16,
}

# The least scale: a product of two scales and its quotient by a third must stay a normal float32.
MIN_SCALE = 2.0**-60
# The largest power of two in float32.
MAX_MULTIPLIER = 2.0**127
# Half of int32: leaves room for the products that are added to a bias.
MAX_BIAS = 2**30


def round_half_even(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties to the even one (IEEE 754 roundTiesToEven); same shape and dtype."""
    return torch.round(x)


def saturate(rounded: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    """Clamp rounded floats to ``[qmin, qmax]`` and store them as `dtype`; NaN is stored as `qmin`."""
    if dtype == torch.int32:  # whose bounds are no float32 numbers
        rounded = rounded.to(torch.float64)
    return rounded.clamp(qmin, qmax).nan_to_num(nan=float(qmin)).to(dtype)


def broadcast(values: Tensor, axis: int | None, ndim: int) -> Tensor:
    """Shape the 1-dimensional `values` so that they lie along `axis` of a tensor with `ndim` dimensions."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def along(values: Tensor, qparams: QParams, like: Tensor) -> Tensor:
    """Shape scales or zero points of `qparams` so that each meets the elements of `like` that it belongs to."""
    if qparams.group_size is None:
        return broadcast(values, qparams.axis, like.dim())
    return values.repeat_interleave(qparams.group_size, -1)[..., : like.shape[-1]]


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantize a float tensor: ``clamp(round_half_even(x / scale) + zero_point, qmin, qmax)``.

    Returns integers of the storage type of ``qparams.dtype`` in the shape of `x`. Infinities saturate, NaN becomes
    `qmin`. For float16 the conversion itself rounds, to the nearest even number that the type has.
    """
    return saturate(unclamped(x, qparams), qparams.qmin, qparams.qmax, STORAGE[qparams.dtype])


def unclamped(x: Tensor, qparams: QParams) -> Tensor:
    """``round_half_even(x / scale) + zero_point`` as floats: what `quantize` clamps, and where it saturates."""
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    steps = x / along(qparams.scale, qparams, x).to(x.dtype)
    rounded = steps if qparams.dtype is DType.FLOAT16 else round_half_even(steps)
    return rounded + along(qparams.zero_point, qparams, x)


def dequantize(q: Tensor, qparams: QParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """The real numbers that integers stand for, ``scale * (q - zero_point)``, computed in the float type `dtype`."""
    scale = along(qparams.scale, qparams, q).to(dtype)
    zero_point = along(qparams.zero_point, qparams, q).to(dtype)
    return (q.to(dtype) - zero_point) * scale


def requantize(
    real: Tensor, multiplier: Tensor | float, zero_point: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Round ``real * multiplier`` half to even, add the zero point and saturate; `real` is float64 or float32."""
    if isinstance(multiplier, float):  # one beyond float32 would make NaN of zero; all else saturates either way
        multiplier = min(multiplier, MAX_MULTIPLIER)
    return saturate(round_half_even(real * multiplier) + zero_point, qmin, qmax, dtype)


def qparams_from_range(low: Tensor, high: Tensor, spec: QSpec) -> QParams:
    """The `QParams` that cover the real numbers from `low` to `high`, zero always included.

    `low` and `high` are 0-dimensional, 1-dimensional for one range per channel, or have one entry per group. A range
    that is only zero gets scale 1, so that it is stored exactly. Symmetric specs cover ``[-a, a]`` with
    ``a = max(|low|, |high|)`` and keep the zero point at the middle of the range. Raises CalibrationError where a bound
    is infinite or not a number.
    """
    low, high = low.detach().to(torch.float64), high.detach().to(torch.float64)
    if not bool(torch.isfinite(high - low).all()):
        raise CalibrationError(
            "expected finite data, found infinity or NaN in an observed tensor: "
            "check the model's inputs, or leave this module in float by a QConfig of None"
        )
    qmin, qmax = spec.range
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if spec.symmetric:
        middle = (qmin + qmax + 1) // 2
        scale = torch.maximum(-low, high) / min(qmax - middle, middle - qmin)
        zero_point = torch.full_like(scale, middle)
    else:
        scale = (high - low) / (qmax - qmin)
        zero_point = torch.full_like(scale, qmin)
    scale = torch.where(scale == 0.0, 1.0, scale.clamp(MIN_SCALE)).to(torch.float32)
    if not spec.symmetric:
        zero_point = (zero_point - round_half_even(low / scale.to(torch.float64))).clamp(qmin, qmax)
    return QParams(scale, zero_point.to(torch.int32), qmin, qmax, spec.dtype, spec.axis, spec.group_size)


def qparams_of_tensor(x: Tensor, spec: QSpec) -> QParams:
    """The `QParams` of the range that `x` has now, as run-time quantization uses; empty data has the range {0}."""
    if x.numel() == 0:
        zero = torch.zeros((), dtype=torch.float32)
        return qparams_from_range(zero, zero, spec)
    low, high = torch.aminmax(x.detach())
    return qparams_from_range(low, high, spec)


def qparams_of_rows(x: Tensor, spec: QSpec) -> QParams:
    """The `QParams` of each row of `x` (its last dimension), in the shape of `x` with a last dimension of one.

    They lie beside the elements that they belong to, so that the result has neither axis nor group size.
    """
    x = x.detach()
    if x.shape[-1] == 0:
        x = x.new_zeros((*x.shape[:-1], 1))
    found = qparams_from_range(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), spec)
    return QParams(found.scale, found.zero_point, found.qmin, found.qmax, found.dtype)


def widen_weight_scale(weight_scale: Tensor, input_scale: Tensor, bias: Tensor) -> Tensor:
    """The least weight scales, not below those given, that keep ``bias / (input_scale * weight_scale)`` within 2**30.

    The bias is stored as int32 in steps of the product of both scales; a tiny input scale would overflow it. Where that
    happens the products are far below one step of the output, so that nothing is lost by coarser weights.
    """
    least = bias.detach().abs().to(torch.float64) / (input_scale.to(torch.float64) * MAX_BIAS)
    if weight_scale.dim() == 0:
        least = least.amax() if least.numel() else torch.zeros(())
    return torch.maximum(weight_scale, least.to(torch.float32))


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """``round_half_even(bias / scale)`` as int32; `scale` is ``input_scale * weight_scale`` in float64."""
    steps = round_half_even(bias.detach().to(torch.float64) / scale)
    return saturate(steps, *RANGES[DType.INT32], torch.int32)


def bias_of_layer(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> tuple[Tensor, QParams]:
    """A bias as int32 in steps of ``input_scale * weight_scale``, and the `QParams` that say so in float32.

    `input_scale` is 0-dimensional; `weight_scale` too, or it has one entry for each channel, as `bias` has.
    """
    step = input_scale.to(torch.float64) * weight_scale.to(torch.float64)
    zero_point = torch.zeros_like(step, dtype=torch.int32)
    axis = None if step.dim() == 0 else 0
    return quantize_bias(bias, step), QParams(step.float(), zero_point, *RANGES[DType.INT32], DType.INT32, axis)
