"""oneDNN's int8 primitives as torch exposes them, on plain tensors; weights are packed once and kept while they live.

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

from qlib.kernels.kernel import Result
from qlib.kernels.layer import Layer, Weight, Window

# One weight is packed anew for each input scale and each change in place; more forms than this are not kept.
MOST_FORMS = 8
ACTIVATIONS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


@dataclass(frozen=True)
class _Packed:
    """What the primitives take; `sources` keeps the tensors alive whose identities are part of the key."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None
    sources: tuple[Tensor | None, ...]


_PACKED: WeakIdKeyDictionary = WeakIdKeyDictionary()
_SYMMETRIC: WeakIdKeyDictionary = WeakIdKeyDictionary()


def suits(layer: Layer, dtype: torch.dtype) -> bool:
    """Whether the primitives compute this layer rightly: 8-bit activations, int8 weights with zero points of zero."""
    if layer.x.dtype not in ACTIVATIONS or dtype not in ACTIVATIONS or layer.weight.w.dtype != torch.int8:
        return False
    if layer.x.numel() == 0 or layer.weight.w.numel() == 0:
        return False
    return exact_products() and not _wrong(layer) and _symmetric(layer.weight.zero_point)


def _wrong(layer: Layer) -> bool:
    """Whether oneDNN 3.12 gets sums of this convolution wrong, as measured: see reports/FINDINGS.md.

    So it does where some window lies on padding with all its taps, at borders where each input channel has a group
    of its own and several output channels, and where a volume's last dimension gives one output and has a stride.
    """
    if layer.window is None:
        return False
    outputs, inputs_per_group = layer.weight.w.shape[:2]
    if inputs_per_group == 1 and outputs > layer.window.groups > 1:
        return True
    window, sizes, kernel = layer.window, layer.x.shape[2:], layer.weight.w.shape[2:]
    axes = list(zip(sizes, kernel, window.stride, window.padding, window.dilation, strict=True))
    if len(axes) == 3 and window.stride[-1] > 1 and _outputs_along(*axes[-1]) == 1:
        return True
    return any(_misses_along(*axis) for axis in axes)


def _outputs_along(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@cache
def _misses_along(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    outputs = _outputs_along(size, kernel, stride, padding, dilation)
    starts = (output * stride - padding for output in range(outputs))
    return any(all(not 0 <= start + tap * dilation < size for tap in range(kernel)) for start in starts)


def _symmetric(zero_point: Tensor) -> bool:
    """Whether all zero points are zero; asked once for each version of the tensor."""
    seen, answer = _SYMMETRIC.get(zero_point, (None, False))
    if seen != (version := _version(zero_point)):
        answer = not bool(zero_point.any())
        _SYMMETRIC[zero_point] = (version, answer)
    return bool(answer)


def _version(tensor: Tensor) -> int:
    """A number that changes when the tensor is changed in place; tensors made for inference can't tell."""
    return 0 if tensor.is_inference() else tensor._version


@cache
def exact_products() -> bool:
    """Multiply the extreme values once: without VNNI instructions the sums of two products saturate at 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.full((32, 64), 255, dtype=torch.uint8)
    w = torch.full((32, 64), -128, dtype=torch.int8)
    weight = Weight(w, torch.ones(32), torch.zeros(32, dtype=torch.int32), None)
    linear = run_to_float(Layer(x, 1.0, 0, weight))
    image, kernel = x.reshape(1, 32, 8, 8), w[:, :32].reshape(32, 32, 1, 1).contiguous()
    window = Window((1, 1), (0, 0), (1, 1), 1)
    convolution = Layer(image, 1.0, 0, Weight(kernel, weight.scale, weight.zero_point, None), window)
    halves = run(convolution, Result(255.0 * 128 * 32 / 127, 0, -128, 127, torch.int8))
    return bool((linear == -255.0 * 128 * 64).all() and (halves == -127).all())


def _unsigned(layer: Layer) -> tuple[Tensor, int]:
    """Signed activations reach a slow reference primitive: they are moved up by 128 together with their zero point."""
    if layer.x.dtype == torch.uint8:
        return layer.x.contiguous(), layer.zero_point
    return layer.x.contiguous().view(torch.uint8).bitwise_xor(128), layer.zero_point + 128


def _geometry(window: Window, w: Tensor) -> tuple[list[int], list[int], list[int], int]:
    """The window as the primitives take it. A dilation means nothing where the kernel has one element, and makes them
    read outside of their memory.
    """
    dilation = [1 if size == 1 else d for d, size in zip(window.dilation, w.shape[2:], strict=True)]
    return list(window.stride), list(window.padding), dilation, window.groups


def _pack(layer: Layer, bias_scale: float) -> _Packed:
    """The packed form of a layer's weights, made on first use; the plain integers stay the state."""
    weight = layer.weight
    sources = (weight.w, weight.scale, weight.bias)
    key = (tuple((id(t), _version(t)) if t is not None else None for t in sources), bias_scale, layer.window)
    store: dict[Any, _Packed] = _PACKED.setdefault(weight.w, {})
    if key not in store:
        if len(store) >= MOST_FORMS:
            store.clear()
        if layer.window is None:
            packed = torch.ops.onednn.qlinear_prepack(weight.w.contiguous(), None)  # it does not see strides
        else:
            packed = torch.ops.onednn.qconv_prepack(weight.w, weight.scale, 1.0, 0, *_geometry(layer.window, weight.w))
        outputs = weight.w.shape[0]
        bias = weight.bias
        if bias is not None and bias.dtype == torch.int32:
            bias = (bias.double() * (bias_scale * weight.scale.double())).to(torch.float32)
        zero_point = torch.zeros(outputs, dtype=torch.int64)
        store[key] = _Packed(packed, weight.scale.expand(outputs).contiguous(), zero_point, bias, sources[1:])
    return store[key]


def run(layer: Layer, result: Result) -> Tensor:
    """A linear layer, or a convolution of 1 to 3 dimensions padded with real zeros, from 8 bits to 8 bits."""
    packed = _pack(layer, layer.scale)
    x, zero_point = _unsigned(layer)
    operands = (x, layer.scale, zero_point, packed.weight, packed.scale, packed.zero_point, packed.bias)
    target: tuple[Any, ...] = (result.scale, result.zero_point, result.dtype, "none", [], "")
    if layer.window is None:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(*operands, *target)
    else:
        y = torch.ops.onednn.qconv_pointwise(*operands, *_geometry(layer.window, layer.weight.w), *target).contiguous()
    full = (result.qmin, result.qmax) == ACTIVATIONS[result.dtype]
    return y if full else y.clamp(result.qmin, result.qmax)


def run_to_float(layer: Layer) -> Tensor:
    """A linear layer or a convolution, as `run` takes them, from 8 bits to float32, its bias in float32."""
    packed = _pack(layer, 1.0)
    x, zero_point = _unsigned(layer)
    operands = (x, layer.scale, zero_point, packed.weight, packed.scale, packed.zero_point, packed.bias)
    target: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
    if layer.window is None:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(*operands, *target)
        return y
    geometry = _geometry(layer.window, layer.weight.w)
    y = torch.ops.onednn.qconv_pointwise(*operands, *geometry, *target)
    return y.contiguous()
