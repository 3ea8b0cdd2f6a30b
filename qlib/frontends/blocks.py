"""Conditions and loops of a TorchScript program: resolved where they can be, else written down as decisions."""

from __future__ import annotations

from typing import Any

import torch

from qlib.errors import CaptureError
from qlib.frontends.decisions import Place, Rounds, branch, loop
from qlib.frontends.frame import Frame, RaisesError, check_containers, inside, place_of, source_of
from qlib.frontends.numbers import ON_NUMBERS, dtype_of
from qlib.frontends.scope import Number, Scope, Unset

MAX_ROUNDS = 10_000
# What TorchScript writes for the number of rounds of a loop that only its condition ends is greater than this.
_ENDLESS = 2**62


def run_if(frame: Frame, node: Any) -> None:
    """A condition: its block where it is known, a branch of the graph where the data decides.

    A block that raises is left out.
    """
    (condition,) = frame.inputs(node)
    blocks = list(node.blocks())
    if not isinstance(condition, Number):
        frame.put(node, *frame.body(frame, blocks[0 if condition else 1], []))
        return
    likely = 0 if condition.value else 1
    if _raises(blocks[1 - likely]) or _raises(blocks[likely]):
        frame.put(node, *frame.body(frame, blocks[likely], []))
    elif all(_only_numbers(block) for block in blocks):
        frame.put(node, *(_select(frame, condition, *pair) for pair in zip(*_both(frame, blocks), strict=True)))
    else:
        _branch(frame, node, condition)


def _raises(block: Any) -> bool:
    return any(node.kind() == "prim::RaiseException" for node in block.nodes())


def _only_numbers(block: Any) -> bool:
    """Whether a block has nothing but arithmetic of numbers in it, and may as well be run when it isn't taken."""
    numbers = ("BoolType", "IntType", "FloatType")
    plain_nodes = all(
        node.kind() == "prim::Constant" or (node.kind() in ON_NUMBERS and _kinds(node.outputs()) <= set(numbers))
        for node in block.nodes()
    )
    return plain_nodes and _kinds(block.outputs()) <= set(numbers)


def _kinds(values: Any) -> set[str]:
    return {value.type().kind() for value in values}


def _both(frame: Frame, blocks: list[Any]) -> list[list[Any]]:
    return [frame.body(frame, block, []) for block in blocks]


def _select(frame: Frame, condition: Number, holds: Any, fails: Any) -> Any:
    """One of two numbers."""
    if type(holds) is type(fails) and not isinstance(holds, Number | Unset) and holds == fails:
        return holds
    if isinstance(holds, Unset) or isinstance(fails, Unset):
        return fails if isinstance(holds, Unset) else holds
    if (holds, fails) == (True, False):
        return condition
    dtype = torch.promote_types(dtype_of(holds), dtype_of(fails))
    pair = (frame.scope.number(value, dtype) for value in (holds, fails))
    made = frame.scope.call(torch.ops.aten.where.self, condition, *pair)
    return Number(made.node, made.value)


def _branch(frame: Frame, node: Any, condition: Number) -> None:
    blocks, place = list(node.blocks()), Place(frame.path, source_of(node))
    likely = 0 if condition.value else 1
    inner_frames = [inside(frame, frame.scope.inner()) for _ in blocks]
    results: list[Any] = []
    for number, (inner, block) in enumerate(zip(inner_frames, blocks, strict=True)):
        try:
            results.append(frame.body(inner, block, []))
        except RaisesError:
            if number == likely:
                raise
            frame.put(node, *frame.body(frame, blocks[likely], []))
            return
    for inner in inner_frames:
        check_containers(frame, inner, place)
    keys = list(dict.fromkeys(key for inner in inner_frames for key in inner.assigned))
    before = {key: next(i.assigned[key][0] for i in inner_frames if key in i.assigned) for key in keys}
    pairs = [
        (result, [i.assigned.get(k, (None, before[k]))[1] for k in keys])
        for i, result in zip(inner_frames, results, strict=True)
    ]
    scopes = (inner_frames[0].scope, inner_frames[1].scope)
    made, attributes = branch(frame.scope, condition, (pairs[0], pairs[1]), scopes, place)
    frame.assigned.update({key: (before[key], value) for key, value in zip(keys, attributes, strict=True)})
    frame.put(node, *made)


def run_loop(frame: Frame, node: Any) -> None:
    """A loop: its rounds one after the other until the data decides whether there is another one."""
    rounds, going, *carried = frame.inputs(node)
    (block,) = node.blocks()
    number = 0
    while not isinstance(going, Number) and not isinstance(rounds, Number):
        if not (going and number < rounds):
            frame.put(node, *carried)
            return
        if number >= MAX_ROUNDS:
            raise CaptureError(f"expected a loop of at most {MAX_ROUNDS} rounds at {place_of(node)}, found more")
        going, *carried = frame.body(frame, block, [number, *carried])
        number += 1
    place = Place(frame.path, source_of(node))

    def run(scope: Scope, given: list[Any]) -> list[Any]:
        inner = inside(frame, scope)
        results = frame.body(inner, block, given)
        check_containers(frame, inner, place)
        if any(frame.assigned.get(key) is not value for key, value in inner.assigned.items()):
            raise CaptureError(f"the loop at {place}, which the data ends, sets an attribute; use a local name for it")
        return results

    most = rounds if isinstance(rounds, Number) or rounds < _ENDLESS else None
    counted = most is not None or bool(next(block.inputs()).uses())
    frame.put(node, *loop(frame.scope, Rounds(going, most, number, counted), carried, run, place))
