"""Batch normalisation folded into the convolution or linear layer before it."""

from __future__ import annotations

from torch import Tensor, fx

from qlib.fold import Norm, channels_of, layer_before, scaled_weight
from qlib.graph import attribute, finish, hold, op_name
from qlib.regions import all_models


def fold_batch_norm(model: fx.GraphModule) -> fx.GraphModule:
    """Fold every batch normalisation in evaluation mode into the layer before it, in place; returns `model`.

    This is done in each graph by itself, those of branches and loops included. The equation is that of `qlib.fold`, in
    float64. A layer whose result is used elsewhere too, or whose weight is computed, is left alone.
    """
    for part in all_models(model):
        for norm in list(part.graph.nodes):
            layer = layer_before(norm) if op_name(norm) == "aten::batch_norm" else None
            if layer is not None:
                _fold(part, layer, norm)
    finish(model)
    return model


def _fold(model: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    def value(node: object) -> Tensor:
        return attribute(model, str(node.target)).detach()  # type: ignore[attr-defined]

    gamma, beta = (None if node is None else value(node) for node in norm.args[1:3])
    statistics = Norm(gamma, beta, value(norm.args[3]), value(norm.args[4]), float(norm.args[7]))  # type: ignore[arg-type]
    weight, bias = value(layer.args[1]), None if layer.args[2] is None else value(layer.args[2])
    folded = scaled_weight(weight, statistics.factor, channels_of(layer))

    path = str(layer.meta.get("module_path", ""))
    with model.graph.inserting_before(layer):
        pair = (("weight_folded", folded), ("bias_folded", statistics.bias(bias).to(weight.dtype)))
        new = [hold(model, path, name, tensor) for name, tensor in pair]
    layer.args = (layer.args[0], *new, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    model.graph.erase_node(norm)
