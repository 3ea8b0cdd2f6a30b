"""A linear layer or a convolution on integers, as its kernels take it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """Integer weights with output channels along `axis`, one scale and zero point or one per channel, and the bias.

    The bias is int32 in steps of the input's scale times the weight's, or float32 in real units where the input's scale
    is known at run time only.
    """

    w: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None
    axis: int = 0


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution, one entry per spatial dimension; `output_padding` of a transposed one only."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A quantized input with its parameters, and what it is multiplied with; without a window the layer is linear."""

    x: Tensor
    scale: float
    zero_point: int
    weight: Weight
    window: Window | None = None

    def along_channels(self, values: Tensor) -> Tensor:
        """One value per output channel, shaped to lie along the output's channel axis."""
        if self.window is None or values.dim() == 0:
            return values
        return values.reshape(-1, *[1] * len(self.window.stride))
