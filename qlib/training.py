"""Switching a captured graph between training and evaluation, which torch decides when it captures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import fx

from qlib.graph import Model
from qlib.regions import all_models

_aten = torch.ops.aten

# The position of the argument that says whether the operator is in training.
_FLAGS: Mapping[object, int] = MappingProxyType(
    {
        _aten.dropout.default: 2,
        _aten.feature_dropout.default: 2,
        _aten.alpha_dropout.default: 2,
        _aten.feature_alpha_dropout.default: 2,
        _aten.batch_norm.default: 5,
    }
)
_ADDITIONS = (_aten.add.Tensor, _aten.add_.Tensor)


def move_exported_model_to_eval(model: fx.GraphModule) -> fx.GraphModule:
    """Put the dropouts and batch norms of a captured graph into evaluation mode, in place; returns `model`.

    Works on this library's graphs, prepared ones too, and on those of ``torch.export.export(...).module()``.
    """
    return _switch(model, training=False)


def move_exported_model_to_train(model: fx.GraphModule) -> fx.GraphModule:
    """Put the dropouts and batch norms of a captured graph into training mode, in place; returns `model`.

    What the graph lacks does not come back: to train with dropout, capture the module in training mode.
    """
    return _switch(model, training=True)


def _switch(model: fx.GraphModule, *, training: bool) -> fx.GraphModule:
    for part in all_models(model):
        for node in part.graph.nodes:
            if (position := _FLAGS.get(node.target)) is not None:
                node.update_arg(position, training)
            elif _counts_batches(node):
                node.update_arg(1, int(training))
        part.recompile()
    return model.train(training) if isinstance(model, Model) else model  # torch's refuse that


def _counts_batches(node: fx.Node) -> bool:
    """Whether a node is a batch norm's count of the batches that it was trained on."""
    counter = node.args[0] if node.target in _ADDITIONS else None
    return (
        isinstance(counter, fx.Node)
        and counter.op == "get_attr"
        and str(counter.target).rpartition(".")[2] == "num_batches_tracked"
        and node.args[1] in (0, 1)
    )
