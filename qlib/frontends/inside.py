"""Removing in-place operators from branches and loops: what they change becomes one more result."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from qlib.frontends.memory import Program, Storage, Value, Walk, Yielded, refusal, write
from qlib.frontends.untouched import private_copy
from qlib.frontends.views import View
from qlib.interpret import call, walk
from qlib.regions import COND, Region

_COPY = torch.ops.aten.copy_.default
Run = Callable[[Program, tuple[Tensor, ...]], Walk]


@dataclass(frozen=True)
class _Inner:
    """One graph of a region without in-place operators.

    `held` are the values of its placeholders, `yielded` of its results; `written` has the new values of the
    placeholders that it changes, by position.
    """

    graph: fx.Graph
    held: tuple[Value, ...]
    yielded: tuple[Value, ...]
    written: dict[int, fx.Node]

    @property
    def placeholders(self) -> list[fx.Node]:
        """The placeholders of the new graph."""
        return list(self.graph.find_nodes(op="placeholder"))


def evaluate(graph: fx.Graph, inputs: Sequence[Any]) -> Any:
    """What a graph without state gives; its in-place operators change `inputs`."""

    def visit(node: fx.Node, look: Callable[[fx.Node], Any]) -> Any:
        return partial(_evaluate, node.meta["graph"]) if node.op == "get_attr" else call(node, look)

    return walk(graph, inputs, visit)


def _evaluate(graph: fx.Graph, *inputs: Any) -> Any:
    return evaluate(graph, inputs)


def run_region(outer: Walk, region: Region, run: Run) -> None:
    """Write a branch or loop down anew, its graphs by `run`, and note what it gives and what it changes."""
    examples = tuple(outer.tensors[node] for node in region.operands)
    first, second = (_inner(graph, examples, run) for graph in region.graphs)
    written = sorted({*first.written, *second.written})
    _check_writes(outer, region, (first, second), written)
    returning = [first, second] if region.node.target is COND else [second]
    lifted = [position for position in written if position >= region.carried]
    for inner in returning:
        _return_written(inner, lifted)
    carried = [*range(region.carried), *lifted] if region.carried else []
    order = [*carried, *(position for position in range(len(region.operands)) if position not in carried)]
    node = _write_down(outer, region, (first, second), order, len(carried))
    tensors = [private_copy(tensor) for tensor in _results(outer, node, region, [examples[p] for p in order])]
    nodes = []
    for position, tensor in enumerate(tensors):
        meta = {**node.meta, "shape": tuple(tensor.shape), "dtype": tensor.dtype}
        nodes.append(outer.call(operator.getitem, (node, position), {}, meta))
    for position in written:
        result = len(second.yielded) + lifted.index(position) if position in lifted else position
        outer.tensors[region.operands[position]].copy_(tensors[result])
        write(outer, outer.value(region.operands[position]), nodes[result], region.node)
    _note_results(outer, region, returning, (nodes, tensors))


def _inner(graph: fx.Graph, examples: tuple[Tensor, ...], run: Run) -> _Inner:
    walked = run(Program(graph, {}, frozenset()), examples)
    placeholders = walked.graph.find_nodes(op="placeholder")
    written: dict[int, fx.Node] = {}
    for node in walked.graph.find_nodes(op="call_function", target=_COPY):
        root, value = node.args[:2]
        assert isinstance(value, fx.Node)
        written[placeholders.index(root)] = value
        walked.graph.erase_node(node)
    results = graph.output_node().args[0]
    yielded = results if isinstance(results, tuple | list) else (results,)
    held = graph.find_nodes(op="placeholder")
    return _Inner(
        walked.graph,
        tuple(walked.value(node) for node in held),
        tuple(walked.value(node) for node in yielded),  # type: ignore[arg-type]
        written,
    )


def _check_writes(outer: Walk, region: Region, inner: tuple[_Inner, _Inner], written: list[int]) -> None:
    """Refuse changes whose effect on other tensors can't be told."""
    if region.carried and inner[0].written:
        raise refusal(region.node, "the condition of a loop changes a tensor; let the loop's body do that")
    memory = [outer.tensors[node].untyped_storage()._cdata for node in region.operands]
    for position in written:
        if position < region.carried and inner[1].yielded[position] is not inner[1].held[position]:
            raise refusal(
                region.node,
                "a loop changes a tensor in place that it also gives another value; make new tensors instead",
            )
        if memory.count(memory[position]) > 1:
            raise refusal(
                region.node,
                "a branch or loop changes a tensor in place while it uses another view of it; clone one of them first",
            )


def _return_written(inner: _Inner, positions: list[int]) -> None:
    output = inner.graph.output_node()
    results: Any = output.args[0]
    placeholders = inner.placeholders
    output.args = ((*results, *(inner.written.get(position, placeholders[position]) for position in positions)),)


def _write_down(outer: Walk, region: Region, inner: tuple[_Inner, _Inner], order: list[int], carried: int) -> fx.Node:
    """The region in the new graph, its operands in another order."""
    references = []
    for reference, part in zip(region.references, inner, strict=True):
        placeholders = part.placeholders
        for position in reversed(order):
            if (first := next(iter(part.graph.nodes))) is not placeholders[position]:
                first.prepend(placeholders[position])
        references.append(outer.graph.create_node("get_attr", str(reference.target)))
        references[-1].meta = {"module_path": "", "graph": part.graph}
    operands = tuple(outer.current(region.operands[position]) for position in order)
    if region.node.target is COND:
        arguments: tuple[Any, ...] = (outer.current(region.node.args[0]), *references, operands)
    else:
        arguments = (*references, operands[:carried], operands[carried:])
    return outer.call(region.node.target, arguments, {}, region.node.meta)


def _results(outer: Walk, node: fx.Node, region: Region, examples: list[Tensor]) -> Sequence[Tensor]:
    """What the region gives on the example."""
    values: dict[fx.Node, Any] = {}
    if region.node.target is COND:
        predicate, *_, operands = node.args
        values[predicate] = outer.tensors[region.node.args[0]]  # type: ignore[index]
    else:
        operands = (*node.args[2], *node.args[3])  # type: ignore[misc]
    values |= dict(zip(operands, examples, strict=True))  # type: ignore[arg-type]

    def look(used: fx.Node) -> Any:
        return partial(_evaluate, used.meta["graph"]) if "graph" in used.meta else values[used]

    results: Sequence[Tensor] = call(node, look)
    return results


def _note_results(
    outer: Walk, region: Region, returning: list[_Inner], found: tuple[list[fx.Node], list[Tensor]]
) -> None:
    """Results that are an operand stay that value; those that may share an operand's memory can't be changed."""
    nodes, tensors = found
    values: list[Value] = []
    given: list[Tensor] = []
    for position, yielded in enumerate(zip(*(inner.yielded for inner in returning), strict=True)):
        same = _same_operand(region, returning, position)
        if same is not None:
            values.append(outer.value(region.operands[same]))
            given.append(outer.tensors[region.operands[same]])
            continue
        shared = _shared_operand(region, zip(returning, yielded, strict=True), position)
        node = nodes[position]
        if shared is None or _unused_after(outer, region, shared):
            values.append(Value(Storage(), node))
        else:
            parent = outer.value(region.operands[shared])
            step = View("", region.node.target, (), {}, node.meta)  # type: ignore[arg-type]
            values.append(Value(parent.storage, node, parent.storage.version, parent, step))
        given.append(tensors[position])
    outer.values[region.node] = Yielded(tuple(values), tuple(given))


def _shared_operand(region: Region, yielded: Iterable[tuple[_Inner, Value]], position: int) -> int | None:
    """The operand whose memory a result may share; that of a loop's first round, which may be its last."""
    if region.carried:
        return position
    return next(
        (n for inner, value in yielded for n, held in enumerate(inner.held) if held.storage is value.storage), None
    )


def _unused_after(outer: Walk, region: Region, operand: int) -> bool:
    """Whether nothing that shares an operand's memory is used after the region, so that a change to it goes unseen."""
    storage = outer.value(region.operands[operand]).storage
    sharing = [node for node, value in outer.values.items() if isinstance(value, Value) and value.storage is storage]
    return storage.root is None and not any(
        user is not region.node and region.node < user for node in sharing for user in node.users
    )


def _same_operand(region: Region, returning: list[_Inner], position: int) -> int | None:
    """The operand that every graph returns as it is, a loop as what it carries in that place."""
    found = {
        next((n for n, held in enumerate(inner.held) if held is inner.yielded[position]), None) for inner in returning
    }
    same = found.pop() if len(found) == 1 else None
    return None if region.carried and same != position else same
