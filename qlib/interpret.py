"""Running a graph node by node: for graphs that are run too seldom to be worth their generated code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from qlib.graph import attribute

Look = Callable[[fx.Node], Any]


def walk(graph: fx.Graph, inputs: Sequence[Any], visit: Callable[[fx.Node, Look], Any]) -> Any:
    """Visit the nodes in order, each with a look-up of what the earlier ones gave; returns the output's values."""
    values: dict[fx.Node, Any] = {}
    arguments = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(arguments)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        else:
            values[node] = visit(node, values.__getitem__)
    raise ValueError("the graph has no output")


def call(node: fx.Node, look: Look) -> Any:
    """The result of a node that calls a function."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), look)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def value_of(model: fx.GraphModule, node: fx.Node, look: Look) -> Any:
    """The result of any node but inputs and output."""
    if node.op == "get_attr":
        return attribute(model, str(node.target)).detach()
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*fx.node.map_arg(node.args, look))
    return call(node, look)


def run(model: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    """What ``model(*inputs)`` returns."""
    return walk(model.graph, inputs, lambda node, look: value_of(model, node, look))
