"""oneDNN's int8 primitives as torch exposes them, on plain tensors, with the weights packed once and kept while they live.

oneDNN computes ``clamp(round_half_even(acc * x_scale * w_scale + bias) * (1 / y_scale) + y_zero_point)`` with float32
multiplications and the zero point added before rounding: it differs from one float64 multiplication at ties only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


ACTIVATIONS = frozenset({torch.uint8, torch.int8})
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
Result = tuple[float, int, int, int, torch.dtype]

_FULL = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


@dataclass(frozen=True)
class Weight:
    """Integer weights with output channels along axis 0, their parameters, and the bias (int32 steps, or float32 numbers)."""

    w: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class _Packed:
    """What the primitives take; `sources` keeps the tensors alive whose identities are part of the key."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None
    sources: tuple[Tensor | None, ...]


_PACKED: WeakIdKeyDictionary = WeakIdKeyDictionary()


def suits(x: Tensor, weight: Weight, dtype: torch.dtype) -> bool:
    """Whether the primitives compute this case rightly: 8-bit input and output, int8 weights with zero points of zero."""
    return x.dtype in ACTIVATIONS and dtype in ACTIVATIONS and x.numel() > 0 and suits_weight(weight)


def suits_weight(weight: Weight) -> bool:
    """Whether the primitives take these weights."""
    if weight.w.dtype != torch.int8 or not exact_products():
        return False
    known = _PACKED.setdefault(weight.zero_point, {})
    version = weight.zero_point._version
    if version not in known:
        known.clear()
        known[version] = not bool(weight.zero_point.any())
    return bool(known[version])


@cache
def exact_products() -> bool:
    """Multiply the extreme values once: without VNNI instructions the sums of two products saturate at 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.full((32, 64), 255, dtype=torch.uint8)
    w = torch.full((32, 64), -128, dtype=torch.int8)
    one, zero = torch.ones(32), torch.zeros(32, dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(w, None)
    y = torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], "")
    image, kernel = x.reshape(1, 32, 8, 8), w[:, :32].reshape(32, 32, 1, 1).contiguous()
    window: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(kernel, one, 1.0, 0, *window)
    z = torch.ops.onednn.qconv_pointwise(
        image, 1.0, 0, packed, one, zero, None, *window, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((y == -255.0 * 128 * 64).all() and (z == -255.0 * 128 * 32).all())


def _unsigned(x: Tensor, zero_point: int) -> tuple[Tensor, int]:
    """Signed activations reach a slow reference primitive, so they are moved up by 128 together with their zero point."""
    if x.dtype == torch.uint8:
        return x, zero_point
    return x.contiguous().view(torch.uint8).bitwise_xor(128), zero_point + 128


def _pack(weight: Weight, x_scale: float, geometry: Geometry | None) -> _Packed:
    """The packed form of `weight` for one input scale, made on first use; the plain integers stay the state."""
    sources = (weight.w, weight.scale, weight.bias)
    versions = tuple((id(t), t._version) if t is not None else None for t in sources)
    store = _PACKED.setdefault(weight.w, {})
    key = (versions, x_scale, geometry)
    if key not in store:
        if geometry is None:
            packed = torch.ops.onednn.qlinear_prepack(weight.w, None)
        else:
            packed = torch.ops.onednn.qconv_prepack(weight.w, weight.scale, 1.0, 0, *map(_listed, geometry))
        outputs = weight.w.shape[0]
        scale = weight.scale.expand(outputs).contiguous()
        bias = weight.bias
        if bias is not None and bias.dtype == torch.int32:
            bias = (bias.double() * (x_scale * weight.scale.double())).to(torch.float32)
        store[key] = _Packed(packed, scale, torch.zeros(outputs, dtype=torch.int64), bias, sources[1:])
    return store[key]  # type: ignore[no-any-return]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _bounded(y: Tensor, qmin: int, qmax: int) -> Tensor:
    return y if (qmin, qmax) == _FULL[y.dtype] else y.clamp(qmin, qmax)


def linear(x: Tensor, qparams: tuple[float, int], weight: Weight, result: Result) -> Tensor:
    """A linear layer from 8 bits to 8 bits."""
    packed = _pack(weight, qparams[0], None)
    y_scale, y_zero_point, qmin, qmax, dtype = result
    x, zero_point = _unsigned(x, qparams[1])
    y = torch.ops.onednn.qlinear_pointwise(
        x.contiguous(), qparams[0], zero_point, packed.weight, packed.scale, packed.zero_point, packed.bias,
        y_scale, y_zero_point, dtype, "none", [], "",
    )  # fmt: skip
    return _bounded(y, qmin, qmax)


def linear_to_float(x: Tensor, qparams: tuple[float, int], weight: Weight, post_op: str) -> Tensor:
    """A linear layer from 8 bits to float32, the bias in float32; `post_op` is "none" or "relu"."""
    packed = _pack(weight, 1.0, None)
    x, zero_point = _unsigned(x, qparams[1])
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        x.contiguous(), qparams[0], zero_point, packed.weight, packed.scale, packed.zero_point, packed.bias,
        1.0, 0, torch.float32, post_op, [], "",
    )  # fmt: skip
    return y


def conv(x: Tensor, qparams: tuple[float, int], weight: Weight, geometry: Geometry, result: Result) -> Tensor:
    """A convolution of 1 to 3 dimensions from 8 bits to 8 bits, padding with real zeros."""
    packed = _pack(weight, qparams[0], geometry)
    y_scale, y_zero_point, qmin, qmax, dtype = result
    x, zero_point = _unsigned(x, qparams[1])
    y = torch.ops.onednn.qconv_pointwise(
        x, qparams[0], zero_point, packed.weight, packed.scale, packed.zero_point, packed.bias,
        *map(_listed, geometry), y_scale, y_zero_point, dtype, "none", [], "",
    )  # fmt: skip
    return _bounded(y.contiguous(), qmin, qmax)
