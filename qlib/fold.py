"""The arithmetic of folding a batch normalisation into the layer before it, and which layers it may follow.

factor = gamma / sqrt(variance + eps)
W' = W * factor,  b' = (b - mean) * factor + beta        (Jacob et al. 2018, section 3.2)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qlib.arith import broadcast
from qlib.graph import op_name
from qlib.ops import BY_HEAD

# The operators that a batch normalisation may follow, as the rows that are tried first for them say where their weight,
# its axis of output channels and their groups are.
FOLDABLE = {
    name: BY_HEAD[name][0]
    for name in ("aten::linear", *(f"aten::conv{kind}{dim}d" for kind in ("", "_transpose") for dim in (1, 2, 3)))
}


@dataclass(frozen=True)
class Channels:
    """Where a weight has its output channels: along `axis`, or in `groups` with the input channels first."""

    axis: int
    groups: int | None = None


@dataclass(frozen=True)
class Norm:
    """A batch normalisation's tensors, one entry per channel; a missing `gamma` is 1 and a missing `beta` 0."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float

    @property
    def factor(self) -> Tensor:
        """``gamma / sqrt(variance + eps)`` in float64."""
        root = torch.sqrt(self.variance.to(torch.float64) + self.eps)
        return root.reciprocal() if self.gamma is None else self.gamma.to(torch.float64) / root

    def bias(self, bias: Tensor | None) -> Tensor:
        """The folded bias, in the type of the mean; a missing `bias` is 0."""
        shift = (0.0 if bias is None else bias.to(torch.float64)) - self.mean.to(torch.float64)
        beta = 0.0 if self.beta is None else self.beta.to(torch.float64)
        return (shift * self.factor + beta).to(self.mean.dtype)


def scaled_weight(weight: Tensor, factor: Tensor, channels: Channels) -> Tensor:
    """``weight * factor`` with each factor at the elements that make its channel; the product is taken in float64."""
    return (weight.to(torch.float64) * _along_weight(factor, channels, weight)).to(weight.dtype)


def _along_weight(factor: Tensor, channels: Channels, weight: Tensor) -> Tensor:
    if channels.groups is None:
        return broadcast(factor, channels.axis, weight.dim())
    # Input channels stand first, those of one group side by side; each group has output channels of its own.
    by_input = factor.reshape(channels.groups, -1).repeat_interleave(weight.shape[0] // channels.groups, 0)
    return by_input.reshape(*by_input.shape, *[1] * (weight.dim() - 2))


def channels_of(layer: fx.Node) -> Channels:
    """Where the weight of a layer in `FOLDABLE` has its output channels."""
    row = FOLDABLE[op_name(layer)]
    return Channels(row.weight_axis, None if row.groups is None else int(layer.args[row.groups]))  # type: ignore[arg-type]


def layer_before(norm: fx.Node) -> fx.Node | None:
    """The layer that a batch normalisation in evaluation mode can be folded into, None where there is none.

    The layer's result must be used by the normalisation alone, have its channels along dimension 1, as the
    normalisation has, and the weights and statistics must be constants.
    """
    layer, training = norm.args[0], norm.args[5]
    if training or not isinstance(layer, fx.Node) or op_name(layer) not in FOLDABLE or len(layer.users) != 1:
        return None
    weight, bias = layer.args[1:3]
    # The weight has two dimensions for channels, the result one for the batch and one for channels.
    batched = isinstance(weight, fx.Node) and len(norm.meta["shape"]) == len(weight.meta["shape"])
    required, optional = (weight, *norm.args[3:5]), (bias, *norm.args[1:3])
    constant = all(map(_is_constant, required)) and all(node is None or _is_constant(node) for node in optional)
    return layer if batched and constant else None


def _is_constant(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"
