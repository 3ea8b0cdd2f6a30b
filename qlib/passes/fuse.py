"""Batch normalisation folded into the convolution or linear layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qlib.arith import broadcast
from qlib.graph import add_buffer, attribute, finish, get_attr, op_name
from qlib.ops import BY_HEAD
from qlib.regions import all_models

# The operators that a batch normalisation may follow, as the rows that are tried first for them say where their weight,
# its axis of output channels and their groups are.
FOLDABLE = {
    name: BY_HEAD[name][0]
    for name in ("aten::linear", *(f"aten::conv{kind}{dim}d" for kind in ("", "_transpose") for dim in (1, 2, 3)))
}


def fold_batch_norm(model: fx.GraphModule) -> fx.GraphModule:
    """Fold every batch normalisation in evaluation mode into the layer before it, in place; returns `model`.

    This is done in each graph by itself, those of branches and loops included.

    ``W' = W * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta`` (Jacob et al. 2018,
    section 3.2), in float64. A layer whose result is used elsewhere too, or whose weight is computed, is left alone.
    """
    for part in all_models(model):
        for norm in list(part.graph.nodes):
            if op_name(norm) == "aten::batch_norm" and _can_fold(norm):
                _fold(part, norm.args[0], norm)
    finish(model)
    return model


def _can_fold(norm: fx.Node) -> bool:
    layer, training = norm.args[0], norm.args[5]
    if training or not isinstance(layer, fx.Node) or op_name(layer) not in FOLDABLE or len(layer.users) != 1:
        return False
    # A batch norm works along dimension 1, which is a linear layer's output only where there are two dimensions.
    if op_name(layer) == "aten::linear" and len(norm.meta["shape"]) != 2:
        return False
    constants = [layer.args[1], layer.args[2], *norm.args[1:5]]
    return all(
        node is None or (isinstance(node, fx.Node) and node.op == "get_attr") for node in constants
    ) and None not in (
        layer.args[1],
        norm.args[3],
        norm.args[4],
    )


def _along_weight(factor: Tensor, layer: fx.Node, weight: Tensor) -> Tensor:
    """One factor per output channel, shaped to meet the weight's elements that make that channel."""
    row = FOLDABLE[op_name(layer)]
    if row.groups is None:
        return broadcast(factor, row.weight_axis, weight.dim())
    # Input channels stand first, those of one group side by side; each group has output channels of its own.
    groups = int(layer.args[row.groups])  # type: ignore[arg-type]
    by_input = factor.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return by_input.reshape(*by_input.shape, *[1] * (weight.dim() - 2))


def _fold(model: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    def value(node: object, default: float, like: Tensor) -> Tensor:
        if isinstance(node, fx.Node):
            return attribute(model, str(node.target)).detach().double()
        return torch.full_like(like, default)

    weight = attribute(model, str(layer.args[1].target)).detach()  # type: ignore[union-attr]
    mean = attribute(model, str(norm.args[3].target)).detach().double()  # type: ignore[union-attr]
    variance = value(norm.args[4], 1.0, mean)
    gamma, beta = value(norm.args[1], 1.0, mean), value(norm.args[2], 0.0, mean)
    factor = gamma / torch.sqrt(variance + float(norm.args[7]))  # type: ignore[arg-type]
    folded = (weight.double() * _along_weight(factor, layer, weight)).to(weight.dtype)
    bias = ((value(layer.args[2], 0.0, mean) - mean) * factor + beta).to(weight.dtype)

    path = str(layer.meta.get("module_path", ""))
    with model.graph.inserting_before(layer):
        new = []
        for name, tensor in (("weight_folded", folded), ("bias_folded", bias)):
            node = get_attr(model.graph, add_buffer(model, f"{path}.{name}" if path else name, tensor))
            node.meta.update(shape=tuple(tensor.shape), dtype=tensor.dtype)
            new.append(node)
    layer.args = (layer.args[0], *new, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    model.graph.erase_node(norm)
