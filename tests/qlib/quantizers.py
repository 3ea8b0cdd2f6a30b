"""Quantizers for tests, whose annotations are written by the names of nodes, and small graphs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from graphs import Draft, aten
from torch import fx

from qlib.pt2e import prepare_pt2e
from qlib.quantizer import QuantizationAnnotation, QuantizationSpec

INT8 = QuantizationSpec(torch.int8)
UINT8 = QuantizationSpec(torch.uint8)
WEIGHT = QuantizationSpec(torch.int8, "min_max", -127, 127, torch.per_channel_symmetric, 0)
AT_RUN_TIME = QuantizationSpec(torch.uint8, is_dynamic=True)

Nodes = Mapping[str, fx.Node]
Note = QuantizationAnnotation


@dataclass(frozen=True)
class ByName:
    """Writes what `notes` gives for a graph's nodes, both by their names."""

    notes: Callable[[Nodes], Mapping[str, QuantizationAnnotation]]

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        for name, note in self.notes(nodes).items():
            nodes[name].meta["quantization_annotation"] = note
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass


@dataclass(frozen=True)
class ByOperator:
    """Quantizes the inputs, the weights and the results of every operator of one kind; biases as `bias` says."""

    target: Any = torch.ops.aten.linear.default
    activation: Any = INT8
    weight: Any = WEIGHT
    result: Any = INT8
    bias: Callable[[fx.Node], Any] = lambda node: None

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.target is self.target:
                x, weight, bias = node.args[:3]
                edges = {x: self.activation, weight: self.weight}
                if isinstance(bias, fx.Node):
                    edges[bias] = self.bias(node)
                node.meta["quantization_annotation"] = QuantizationAnnotation(edges, self.result)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass


def chain() -> fx.GraphModule:
    """x → relu → neg → output."""
    draft = Draft()
    return draft.done(draft.call(aten.neg.default, draft.relu(draft.input(2, 3))))


def fork() -> fx.GraphModule:
    """x → relu → (neg, abs)."""
    draft = Draft()
    x = draft.relu(draft.input(2, 3))
    return draft.done(draft.call(aten.neg.default, x), draft.call(aten.abs.default, x))


def layer(bias: str | None = "bias", relu: bool = True) -> fx.GraphModule:
    draft = Draft()
    y = draft.linear(draft.input(2, 3), 4, bias=bias)
    return draft.done(draft.relu(y) if relu else y)


def prepared(model: fx.GraphModule, notes: Any) -> fx.GraphModule:
    return prepare_pt2e(model, ByName(notes))


def operators(model: fx.GraphModule) -> set[str]:
    return {str(node.meta["operator"]) for node in model.graph.nodes if "operator" in node.meta}
