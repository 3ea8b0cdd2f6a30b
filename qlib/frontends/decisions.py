"""Branches and loops that the data decides, as the script front-end writes them down.

Both blocks of a branch are run on the example, each into a graph of its own, and so is the body of a loop. Tensors of
outside that a block uses become its operands, with memory of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qlib.errors import CaptureError
from qlib.frontends.inside import evaluate
from qlib.frontends.numbers import dtype_of, is_number, zeros_like
from qlib.frontends.scope import Number, Scope, Traced, Unset
from qlib.regions import COND, LOOP

_aten = torch.ops.aten
# Runs a block in a scope of its own, on the values of its inputs, and returns its results.
Block = Callable[[Scope, list[Any]], list[Any]]


@dataclass(frozen=True)
class Place:
    """Where a decision stands: the path of its module and the user's line."""

    path: str
    line: str

    @property
    def meta(self) -> dict[str, Any]:
        """What the nodes of the decision say about themselves."""
        return {"module_path": self.path, "source": self.line}

    def __str__(self) -> str:
        """The line as errors name it."""
        return self.line or "an unknown line"


def branch(outer: Scope, condition: Number, results: tuple[Any, Any], scopes: tuple[Scope, Scope], place: Place) -> Any:
    """Write a branch down, whose blocks gave `results` in `scopes`; returns the results outside.

    Tensors must have the same shape and type in both, and numbers become tensors where they differ.
    Raises CaptureError where the blocks give different kinds of things.
    """
    (ours, structure), (theirs, other) = (pytree.tree_flatten(result) for result in results)
    if structure != other:
        raise CaptureError(
            f"expected the same kind of result from both branches at {place}, found {_kind(results[0])} and "
            f"{_kind(results[1])}; make them alike"
        )
    pairs = [_agree(scopes, pair, place) for pair in zip(ours, theirs, strict=True)]
    rows = [pair for pair in pairs if isinstance(pair, tuple)]
    for number, scope in enumerate(scopes):
        scope.graph.output(tuple(row[number].node for row in rows))
    operands = list(dict.fromkeys(node for scope in scopes for node in scope.operands))
    given = [next(s.operands[node][0] for s in scopes if node in s.operands) for node in operands]
    for scope in scopes:
        entries = [scope.operands[n][1].node if n in scope.operands else scope.entry(n.name) for n in operands]
        _in_order(scope.graph, entries)
    predicate = outer.local(condition)
    values = evaluate(scopes[0 if predicate.value else 1].graph, [value.value for value in given])
    references = (_reference(outer, scope.graph, name) for scope, name in zip(scopes, ("true", "false"), strict=True))
    arguments = (predicate.node, *references, tuple(operands))
    made = iter(_results(outer, outer.graph.call_function(COND, arguments), values, place))
    leaves = [_like(pair[0], next(made)) if isinstance(pair, tuple) else pair for pair in pairs]
    return pytree.tree_unflatten(leaves, structure)


def _agree(scopes: tuple[Scope, Scope], pair: tuple[Any, Any], place: Place) -> Any:
    """One value where both blocks give the same, else what each gives as a tensor of its graph."""
    ours, theirs = pair
    if ours is theirs or (type(ours) is type(theirs) and not isinstance(ours, Tensor) and ours == theirs):
        return ours
    if isinstance(ours, Unset) or isinstance(theirs, Unset):
        return _with_unset(scopes, pair)
    if is_number(ours) and is_number(theirs):
        dtype = torch.promote_types(dtype_of(ours), dtype_of(theirs))
        return tuple(scope.number(value, dtype) for scope, value in zip(scopes, pair, strict=True))
    if not all(isinstance(value, Traced | Tensor) for value in pair):
        raise CaptureError(
            f"expected the same kind of result from both branches at {place}, found {_kind(ours)} and {_kind(theirs)}; "
            "make them alike"
        )
    first, second = (scope.local(value) for scope, value in zip(scopes, pair, strict=True))
    if (first.value.shape, first.value.dtype) != (second.value.shape, second.value.dtype):
        raise CaptureError(
            f"expected tensors of one shape and type from both branches at {place}, found {_kind(first)} and "
            f"{_kind(second)}; make them alike"
        )
    return first, second


def _with_unset(scopes: tuple[Scope, Scope], pair: tuple[Any, Any]) -> Any:
    """What is never read may be anything: zeros where the other block gives a tensor."""
    known = next(value for value in pair if not isinstance(value, Unset))
    if not isinstance(known, Traced | Number | Tensor):
        return known
    example = known if isinstance(known, Tensor) else known.value
    return tuple(
        _like(known, zeros_like(scope, example)) if isinstance(value, Unset) else scope.local(value)
        for scope, value in zip(scopes, pair, strict=True)
    )


def _like(model: Any, made: Traced) -> Traced | Number:
    return Number(made.node, made.value) if isinstance(model, Number) else made


def _kind(value: Any) -> str:
    if isinstance(value, Traced | Number):
        value = value.value
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)


def _in_order(graph: fx.Graph, entries: Sequence[fx.Node]) -> None:
    """Put the placeholders first, in this order."""
    for entry in reversed(entries):
        if (first := next(iter(graph.nodes))) is not entry:
            first.prepend(entry)


def _reference(outer: Scope, graph: fx.Graph, name: str) -> fx.Node:
    node = outer.graph.create_node("get_attr", f"{name}_graph")
    node.meta = {"module_path": "", "graph": graph}
    return node


def _results(outer: Scope, node: fx.Node, values: Sequence[Tensor], place: Place) -> list[Traced]:
    node.meta = place.meta
    made = []
    for position, value in enumerate(values):
        item = outer.graph.call_function(operator.getitem, (node, position))
        item.meta = place.meta
        made.append(Traced(item, value))
    return made


# ------------------------------------------------------------------------------------------------------------- loops


@dataclass(frozen=True)
class Rounds:
    """How a loop goes on: while `going` holds, and for at most `most` rounds, if any, of which `done` are over.

    `counted` is whether the body asks for the number of the round.
    """

    going: Any
    most: Any
    done: int
    counted: bool


def loop(outer: Scope, rounds: Rounds, carried: list[Any], block: Block, place: Place) -> list[Any]:
    """Write a loop down: its body with a flag that says whether there is another round, and the round's number.

    `block` takes the number of the round and the carried values, and gives the flag and the values for the next round.
    Plain numbers that change from round to round become tensors. Returns the carried values after the last round.
    Raises CaptureError where a round changes the shape or kind of what it is given.
    """
    leaves, structure = pytree.tree_flatten(carried)
    while True:
        body, given, number = _begin(outer, rounds, leaves)
        flag, *results = block(body, [number, *pytree.tree_unflatten(given, structure)])
        ends, other = pytree.tree_flatten(results)
        if other != structure:
            raise CaptureError(f"the loop at {place} changes the number of values in a list or dict; keep it as it is")
        changed = [
            n
            for n, leaf in enumerate(leaves)
            if not isinstance(leaf, Traced | Number | Tensor) and not _same(leaf, ends[n])
        ]
        if not changed:
            break
        for position in changed:
            leaves[position] = _raised(outer, leaves[position], ends[position], place)
    varying = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Traced | Number | Tensor)]
    state = [_yielded(body, leaves[n], ends[n], place) for n in varying]
    made = _write_loop(outer, (body, rounds, number), flag, [leaves[n] for n in varying], state, place)
    for position, value in zip(varying, made, strict=True):
        leaves[position] = _like(leaves[position], value)
    found: list[Any] = pytree.tree_unflatten(leaves, structure)
    return found


def _begin(outer: Scope, rounds: Rounds, leaves: list[Any]) -> tuple[Scope, list[Any], Any]:
    """A scope for the body, with placeholders for the flag, the number of the round and all that varies."""
    body = outer.inner()
    body.entry("going")
    number = Number(body.entry("number"), torch.tensor(rounds.done)) if rounds.counted else rounds.done
    given = []
    for leaf in leaves:
        if isinstance(leaf, Traced | Number | Tensor):
            example = outer.local(leaf).value.clone()
            given.append(_like(leaf, Traced(body.entry("carried"), example)))
        else:
            given.append(leaf)
    return body, given, number


def _same(before: Any, after: Any) -> bool:
    return before is after or (type(before) is type(after) and not isinstance(after, Traced) and before == after)


def _raised(outer: Scope, before: Any, after: Any, place: Place) -> Any:
    """A value that changes from round to round as a tensor of the graph."""
    if isinstance(before, Unset) and isinstance(after, Traced | Number):
        return _like(after, zeros_like(outer, after.value))
    if isinstance(before, Unset) and is_number(after):
        return outer.number(type(after)(0), dtype_of(after))
    if is_number(before) and is_number(after):
        return outer.number(before, torch.promote_types(dtype_of(before), dtype_of(after)))
    raise CaptureError(
        f"the loop at {place} makes {_kind(after)} of {_kind(before)} in a round; let it keep the kind of its values"
    )


def _yielded(body: Scope, before: Any, after: Any, place: Place) -> Any:
    """What a round gives for the next one, of the same shape and type."""
    example = before if isinstance(before, Tensor) else before.value
    if isinstance(after, Unset):
        return zeros_like(body, example)
    if isinstance(before, Number) and is_number(after):
        return body.number(after, example.dtype)
    found = body.local(after)
    if not isinstance(found, Traced) or (found.value.shape, found.value.dtype) != (example.shape, example.dtype):
        raise CaptureError(
            f"the loop at {place} makes {_kind(found)} of {_kind(before)} in a round; let it keep shape and type"
        )
    return found


def _write_loop(
    outer: Scope, begun: tuple[Scope, Rounds, Any], flag: Any, initial: list[Any], state: list[Any], place: Place
) -> list[Traced]:
    body, rounds, number = begun
    first = [outer.number(rounds.going, torch.bool)]
    last = [body.number(flag, torch.bool)]
    if rounds.counted:
        first.append(outer.number(rounds.done, torch.int64))
        one = body.call(_aten.add.Scalar, number, 1)
        last.append(Number(one.node, one.value))
    most = body.local(rounds.most)
    carried = [*first, *(outer.local(value) for value in initial)]
    body.graph.output(tuple(value.node for value in (*last, *state)))
    entries = list(body.graph.find_nodes(op="placeholder"))
    going = _condition(entries, most)
    operands = [pair[0] for pair in body.operands.values()]
    values = [value.value for value in carried]
    further = [value.value for value in operands]
    while evaluate(going, [*values, *further]):
        values = evaluate(body.graph, [*values, *further])
    references = (_reference(outer, graph, name) for graph, name in ((going, "cond"), (body.graph, "body")))
    pair = (tuple(value.node for value in carried), tuple(value.node for value in operands))
    node = outer.graph.call_function(LOOP, (*references, *pair))
    return _results(outer, node, values, place)[len(first) :]


def _condition(entries: Sequence[fx.Node], most: Any) -> fx.Graph:
    """The graph that says whether there is another round, with the placeholders of the body's."""
    graph = fx.Graph()
    mine = [graph.placeholder(entry.name) for entry in entries]
    result = mine[0]
    if most is not None:
        if isinstance(most, Number):
            left = graph.call_function(_aten.lt.Tensor, (mine[1], mine[list(entries).index(most.node)]))
        else:
            left = graph.call_function(_aten.lt.Scalar, (mine[1], most))
        result = graph.call_function(_aten.logical_and.default, (mine[0], left))
        for node in (left, result):
            node.meta = {"module_path": "", "source": ""}
    graph.output(result)
    return graph
