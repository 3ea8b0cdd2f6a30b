"""What a graph holds while it trains and not afterwards: batch norms, dropouts, and layers with their fold simulated.

In training mode a layer with a batch norm computes

    factor = gamma / sqrt(running_var + eps)                                the product of these, for several in a row
    y = batch_norm(layer(x, fake_quantize(W * factor)) / factor + b)        by the statistics of the batch

(Jacob et al. 2018, section 3.2, with the running variance in the factor). In evaluation mode the weight is the same and
the batch norm lies in the bias, so that nothing is left to do after the layer: the model that `settle` leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from qlib.arith import widen_weight_scale
from qlib.fake_quantize import FakeQuantize, LearnableFakeQuantize, RuntimeFakeQuantize
from qlib.fold import Channels, Norm, scaled_weight
from qlib.graph import attribute, hold
from qlib.regions import all_models
from qlib.straight_through import fake_quantize_bias


@dataclass(frozen=True)
class NormSettings:
    """A batch normalisation's numbers: how fast running statistics move, and what is added to the variance."""

    momentum: float
    eps: float


@dataclass(frozen=True)
class Fold:
    """How a layer's weight meets the batch normalisations after it, one or several in a row."""

    channels: Channels
    settings: tuple[NormSettings, ...]


class TrainedLayer(nn.Module):
    """A layer's weight and bias as the layer is to use them: folded with its batch norms and fake-quantized.

    `weight` fake-quantizes the weight; `source` stands at the layer's input and knows its scale, by which the bias is
    fake-quantized, except where the input is quantized at run time; `fold` is None for a layer without a batch norm.
    """

    def __init__(
        self, weight: FakeQuantize | LearnableFakeQuantize, source: nn.Module | None, fold: Fold | None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.source = None if isinstance(source, RuntimeFakeQuantize) else source
        self.fold = fold

    def forward(self, weight: Tensor, bias: Tensor | None, *norms: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for the layer; `norms` is gamma, beta, running mean and variance of each batch norm.

        In training the bias of a layer with a batch norm is None, since it is added after the division.
        """
        if self.fold is not None and self.training:
            factor = _simulated_factor(norms, self.fold.settings)
            weight, bias = scaled_weight(weight, factor, self.fold.channels), None
        else:
            weight, bias = self.folded(weight, bias, *norms)
        self.weight.observe(weight)
        if bias is None or self.source is None or not self.weight.fake_quant_enabled:
            return self.weight.fake_quantize(weight), bias
        input_scale: Tensor = self.source.qparams().scale  # type: ignore[operator]
        scale = widen_weight_scale(self.weight.qparams().scale, input_scale, bias)
        return self.weight.fake_quantize(weight, scale), fake_quantize_bias(bias, input_scale, scale)

    def folded(self, weight: Tensor, bias: Tensor | None, *norms: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the batch norms folded by their running statistics, not quantized."""
        if self.fold is None:
            return weight, bias
        for tensors, settings in zip(_by_norm(norms), self.fold.settings, strict=True):
            statistics = _norm(tensors, settings)
            weight = scaled_weight(weight, statistics.factor, self.fold.channels)
            bias = statistics.bias(bias)
        return weight, bias


class FoldedBatchNorm(nn.Module):
    """The batch norms after a layer whose weight carries their factor; in evaluation mode the layer has done it all."""

    def __init__(self, settings: tuple[NormSettings, ...]) -> None:
        super().__init__()
        self.settings = settings
        self.frozen = False

    def forward(self, y: Tensor, bias: Tensor | None, *norms: Tensor | None) -> Tensor:
        """Take the factor off the layer's result `y`, add the layer's bias, and normalise; moves the statistics."""
        if not self.training:
            return y
        x = y / _along_channels(_simulated_factor(norms, self.settings).to(y.dtype), y)
        x = x if bias is None else x + _along_channels(bias, y)
        for norm, settings in zip(_by_norm(norms), self.settings, strict=True):
            x = _normalised(x, norm, settings, not self.frozen)
        return x


class BatchNorm(nn.Module):
    """A batch norm that no layer carries: by the statistics of the batch in training, else by the running ones."""

    def __init__(self, settings: NormSettings) -> None:
        super().__init__()
        self.settings = settings
        self.frozen = False

    def forward(self, x: Tensor, *norm: Tensor | None) -> Tensor:
        """Normalise `x` by gamma, beta, running mean and variance; moves the latter in training unless frozen."""
        return _normalised(x, norm, self.settings, self.training and not self.frozen)


class Dropout(nn.Module):
    """One of torch's dropouts by the name of its function, `dropout` or `feature_alpha_dropout`, in training only."""

    def __init__(self, function: str, probability: float) -> None:
        super().__init__()
        self.function = function
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """`x` with some of its elements dropped in training."""
        result: Tensor = getattr(torch, self.function)(x, self.probability, self.training)
        return result


def freeze_bn_stats(module: nn.Module) -> None:
    """For ``model.apply``: batch norms use their running statistics in training too, and leave them as they are."""
    if isinstance(module, FoldedBatchNorm | BatchNorm):
        module.frozen = True


def update_bn_stats(module: nn.Module) -> None:
    """For ``model.apply``: batch norms use the statistics of the batch in training again, and move the running ones."""
    if isinstance(module, FoldedBatchNorm | BatchNorm):
        module.frozen = False


def _norm(tensors: tuple[Tensor | None, ...], settings: NormSettings) -> Norm:
    gamma, beta, mean, variance = tensors
    assert mean is not None and variance is not None
    return Norm(gamma, beta, mean, variance, settings.eps)


def _normalised(x: Tensor, norm: tuple[Tensor | None, ...], settings: NormSettings, training: bool) -> Tensor:
    gamma, beta, mean, variance = norm
    return nn.functional.batch_norm(x, mean, variance, gamma, beta, training, settings.momentum, settings.eps)


def _by_norm(tensors: tuple[Tensor | None, ...]) -> Iterator[tuple[Tensor | None, ...]]:
    """The tensors of several batch norms, those of each together."""
    return (tensors[start : start + 4] for start in range(0, len(tensors), 4))


def _simulated_factor(tensors: tuple[Tensor | None, ...], settings: tuple[NormSettings, ...]) -> Tensor:
    """The product of the factors, which a weight carries in training and which the result is divided by.

    A channel with a factor of zero is trained unscaled, as dividing by zero would leave nothing of it.
    """
    norms = [_norm(norm, numbers) for norm, numbers in zip(_by_norm(tensors), settings, strict=True)]
    factor = torch.stack([norm.factor for norm in norms]).prod(0)
    return torch.where(factor == 0.0, 1.0, factor)


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 2))


# ------------------------------------------------------------------------------------------------ after the training


def settle(model: fx.GraphModule) -> None:
    """Leave of a trained graph what runs in evaluation mode, in place: layers with constants, batch norms, observers.

    Branches and loops are settled too. A graph that was not prepared for training stays as it is.
    """
    for part in all_models(model):
        for node in list(part.graph.nodes):
            module = part.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, TrainedLayer):
                _settle_layer(part, node, module)
            elif isinstance(module, FoldedBatchNorm | Dropout):
                node.replace_all_uses_with(node.args[0])
                part.graph.erase_node(node)
            elif isinstance(module, BatchNorm):
                _settle_norm(part, node, module.settings)


def _settle_layer(model: fx.GraphModule, node: fx.Node, layer: TrainedLayer) -> None:
    """Weight and bias become constants, and the weight's fake-quantize stands at the weight as an observer does."""
    constants = list(node.args[:2])
    if layer.fold is not None:
        values = (None if a is None else attribute(model, str(a.target)).detach() for a in node.args)  # type: ignore[union-attr]
        path = str(node.meta["module_path"])
        for position, value in enumerate(layer.folded(*values)):  # type: ignore[arg-type]
            assert value is not None
            name = ("weight_folded", "bias_folded")[position]
            with model.graph.inserting_before(node):
                constants[position] = hold(model, path, name, value)
    weight, bias = constants
    assert isinstance(weight, fx.Node)
    with model.graph.inserting_before(node):
        watched = model.graph.call_module(f"{node.target}.weight", (weight,))
    watched.meta = dict(weight.meta)
    for item in list(node.users):
        (user,) = item.users
        user.args = tuple((watched, bias)[item.args[1]] if a is item else a for a in user.args)  # type: ignore[index]
        model.graph.erase_node(item)
    model.graph.erase_node(node)


def _settle_norm(model: fx.GraphModule, node: fx.Node, settings: NormSettings) -> None:
    x, *norm = node.args
    numbers = (False, settings.momentum, settings.eps, False)
    with model.graph.inserting_before(node):
        settled = model.graph.call_function(torch.ops.aten.batch_norm.default, (x, *norm, *numbers))
    settled.meta = dict(node.meta)
    node.replace_all_uses_with(settled)
    model.graph.erase_node(node)
