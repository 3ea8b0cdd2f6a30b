"""Branches and loops that the data decides: nodes that run graphs of their own, and how values get in and out.

    branch   cond(predicate, true_graph, false_graph, (operand, ...))
    loop     while_loop(cond_graph, body_graph, (carried, ...), (further operand, ...))

Operand i is placeholder i of both graphs. Result j is item j of what each branch, or a loop's body, returns, and
``getitem(node, j)`` outside. The first operands of a loop are its carried values: result j is operand j of the next
round. A loop's first graph returns one truth value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

COND = torch.ops.higher_order.cond
LOOP = torch.ops.higher_order.while_loop


def take(predicate: Any, holds: Callable[..., Any], fails: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """What ``cond`` does, in plain Python: nothing is traced and observers in the branches may keep state."""
    return (holds if predicate else fails)(*operands)


def repeat(
    going: Callable[..., Any], body: Callable[..., Any], carried: Sequence[Any], further: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """What ``while_loop`` does, in plain Python."""
    while going(*carried, *further):
        carried = body(*carried, *further)
    return tuple(carried)


# The operators with graphs of their own, with what runs them.
IN_PYTHON: Mapping[Any, Callable[..., Any]] = MappingProxyType({COND: take, LOOP: repeat})


@dataclass(frozen=True)
class Region:
    """A node with two graphs of its own.

    `references` are the nodes that stand for the graphs; `carried` counts the operands that come back as results, none
    for a branch; `returning` are the graphs whose outputs are the results.
    """

    node: fx.Node
    references: tuple[fx.Node, fx.Node]
    graphs: tuple[fx.Graph, fx.Graph]
    operands: tuple[fx.Node, ...]
    carried: int
    returning: tuple[fx.Graph, ...]

    def entries(self, position: int) -> tuple[fx.Node, fx.Node]:
        """What operand `position` is called in each graph."""
        first, second = (graph.find_nodes(op="placeholder")[position] for graph in self.graphs)
        return first, second

    def yielded(self, position: int) -> tuple[fx.Node, ...]:
        """What is returned as result `position`, in each graph that returns."""
        return tuple(graph.output_node().args[0][position] for graph in self.returning)  # type: ignore[index, misc]

    def taken(self, position: int) -> tuple[fx.Node, ...]:
        """The nodes that fetch result `position`."""
        return tuple(user for user in self.node.users if user.args[1] == position)

    @property
    def results(self) -> range:
        """The positions of the results."""
        return range(len(self.returning[0].output_node().args[0]))  # type: ignore[arg-type]


def region_of(node: fx.Node, graph_of: Callable[[fx.Node], fx.Graph]) -> Region | None:
    """The region that `node` runs, None for other nodes; `graph_of` finds the graph that a reference stands for."""
    if node.target is COND:
        _, *references, operands = node.args
        carried = 0
    elif node.target is LOOP:
        *references, initial, further = node.args
        operands, carried = (*initial, *further), len(initial)  # type: ignore[misc, arg-type]
    else:
        return None
    first, second = references
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node)
    graphs = (graph_of(first), graph_of(second))
    return Region(node, (first, second), graphs, tuple(operands), carried, graphs if not carried else graphs[1:])  # type: ignore[arg-type]


def references(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that stand for a graph within `graph`, before a model is made of it."""
    return (node for node in graph.find_nodes(op="get_attr") if "graph" in node.meta)


def has_regions(graph: fx.Graph) -> bool:
    """Whether a graph has branches or loops."""
    return any(graph.find_nodes(op="call_function", target=target) for target in IN_PYTHON)


def set_operands(node: fx.Node, operands: Sequence[fx.Node]) -> None:
    """Hand a branch or loop other operands, the carried ones first; its graphs must have as many placeholders."""
    if node.target is COND:
        node.args = (*node.args[:3], tuple(operands))
    else:
        carried = len(node.args[2])  # type: ignore[arg-type]
        node.args = (*node.args[:2], tuple(operands[:carried]), tuple(operands[carried:]))


def set_operand(node: fx.Node, position: int, value: fx.Node) -> None:
    """Hand a branch or loop another operand in the place of one."""
    operands: list[Any] = [item for group in node.args[3 if node.target is COND else 2 :] for item in group]  # type: ignore[union-attr]
    operands[position] = value
    set_operands(node, operands)


def set_results(region: Region, kept: Sequence[int]) -> None:
    """Let a branch give only some of its results; nobody may take the others."""
    for graph in region.returning:
        output = graph.output_node()
        output.args = (tuple(output.args[0][position] for position in kept),)  # type: ignore[index]
    for user in list(region.node.users):
        user.args = (region.node, kept.index(user.args[1]))


def set_yielded(graph: fx.Graph, position: int, value: fx.Node) -> None:
    """Return another value as result `position` of a graph within a region."""
    output = graph.output_node()
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    results[position] = value
    output.args = (tuple(results),)


def region_in(model: nn.Module, node: fx.Node) -> Region | None:
    """As `region_of`, for a node of a model's graph."""
    return region_of(node, lambda reference: inner_model(model, reference).graph)


def inner_model(model: nn.Module, reference: fx.Node) -> fx.GraphModule:
    """The model that a reference stands for."""
    found = model.get_submodule(str(reference.target))
    assert isinstance(found, fx.GraphModule)
    return found


def regions_in(model: fx.GraphModule) -> Iterator[Region]:
    """The branches and loops of a model's own graph, in order."""
    if has_regions(model.graph):
        for node in list(model.graph.nodes):
            region = region_in(model, node)
            if region is not None:
                yield region


def inner_models(model: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The names and models of the regions of a model's own graph, in order."""
    for region in regions_in(model):
        for reference in region.references:
            yield str(reference.target), inner_model(model, reference)


def all_models(model: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """A model and all the models within it."""
    yield model
    for _, inner in inner_models(model):
        yield from all_models(inner)


def add_operand(region: Region, value: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Hand a value to a region, if it isn't handed to it yet, and return what each graph calls it."""
    for position in range(region.carried, len(region.operands)):
        if region.operands[position] is value:
            return region.entries(position)
    entries = []
    for graph in region.graphs:
        held = graph.find_nodes(op="placeholder")
        with graph.inserting_before(held[-1].next if held else next(iter(graph.nodes))):
            entry = graph.placeholder(value.name)
        entry.target = entry.name
        entry.meta = dict(value.meta)
        entries.append(entry)
    set_operands(region.node, (*region.operands, value))
    first, second = entries
    return first, second


def drop_unused_operands(region: Region) -> None:
    """Take from a region what none of its graphs uses; what a loop carries stays."""
    kept = [n for n in range(len(region.operands)) if n < region.carried or any(e.users for e in region.entries(n))]
    dropped = [region.entries(n) for n in range(len(region.operands)) if n not in kept]
    for entries in dropped:
        for entry in entries:
            entry.graph.erase_node(entry)
    set_operands(region.node, [region.operands[n] for n in kept])


def where_of(region: Region) -> tuple[str, str]:
    """Each graph of a region as an error names it."""
    place = region.node.meta.get("source") or "an unknown line"
    if region.carried:
        return f"the condition of the loop at {place}", f"the loop at {place}"
    return (
        f"the branch that is taken where the condition at {place} holds",
        f"the branch that is taken where the condition at {place} fails",
    )
