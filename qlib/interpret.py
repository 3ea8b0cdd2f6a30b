"""Running a graph node by node: for graphs that are run too seldom to be worth their generated code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from torch import fx

from qlib.graph import attribute
from qlib.regions import IN_PYTHON, Region
from qlib.signature import checked_call

Look = Callable[[fx.Node], Any]
# Runs one of a region's graphs: which, under what name, on what.
Inside = Callable[[int, str, Sequence[Any]], Any]


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
    function = IN_PYTHON.get(node.target, node.target)
    assert callable(function)
    return function(*args, **kwargs)


def value_of(model: fx.GraphModule, node: fx.Node, look: Look) -> Any:
    """The result of any node but inputs and output."""
    if node.op == "get_attr":
        inner = getattr(model, str(node.target), None)
        if isinstance(inner, fx.GraphModule):
            return partial(_inner, inner)
        return attribute(model, str(node.target)).detach()
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*fx.node.map_arg(node.args, look))
    return call(node, look)


def _inner(model: fx.GraphModule, *inputs: Any) -> Any:
    return run(model, inputs)


def run(model: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """What ``model(*inputs)`` returns; raises CaptureError for inputs that the graph does not hold for."""
    with checked_call(model, inputs):
        return walk(model.graph, inputs, lambda node, look: value_of(model, node, look))


def run_region(region: Region, look: Look, truth: Callable[[Any], bool], inside: Inside) -> Any:
    """The results of a branch or loop, each graph being run by `inside` under the region's name, the round and its own.

    `truth` says what the result of a condition comes to.
    """
    operands = [look(node) for node in region.operands]
    name, references = region.node.name, region.references
    if not region.carried:
        which = 0 if truth(look(region.node.args[0])) else 1  # type: ignore[arg-type]
        return inside(which, f"{name}/{references[which].target}", operands)
    carried, further = operands[: region.carried], operands[region.carried :]
    for number in count():
        if not truth(inside(0, f"{name}/{number}/{references[0].target}", [*carried, *further])):
            break
        carried = list(inside(1, f"{name}/{number}/{references[1].target}", [*carried, *further]))
    return tuple(carried)
