"""Sums, means and maxima of bags of rows, as ONNX's operators: a mask says which row lies in which bag."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.onnx.draft import TYPES, Draft, refuse, shape_of


@dataclass(frozen=True)
class _Bags:
    """The names of the rows (rows, columns), the mask (bags, rows) and the number of rows in each bag (bags, 1)."""

    rows: str
    mask: str
    count: str


def embedding_bag(draft: Draft, node: fx.Node) -> tuple[str]:
    """The reduction of the rows of each bag; ends of bags may be computed, rows that are left out may not be named."""
    arguments: tuple[Any, ...] = (*node.args, None)
    weight, indices, offsets, _, mode, _, factors, include_last, padding = arguments[:9]
    if padding not in (None, -1):
        raise refuse(node, f"a row that is left out, {padding}")
    rows = draft.add("Gather", [draft.value(weight, node), draft.value(indices, node)], f"{node.name}_rows", axis=0)
    if factors is not None:
        beside = draft.integers([1], f"{node.name}_axis")
        column = draft.add("Unsqueeze", [draft.value(factors, node), beside], f"{node.name}_factors")
        rows = draft.add("Mul", [rows, column], f"{node.name}_scaled")
    mask = _mask(draft, node, (offsets, shape_of(indices)[0], bool(include_last)))
    ones = draft.add("Cast", [mask], f"{node.name}_ones", to=TYPES[node.args[0].meta["dtype"]])  # type: ignore[union-attr]
    count = draft.add("ReduceSum", [ones, draft.integers([1], f"{node.name}_axis")], f"{node.name}_count", keepdims=1)
    return (_REDUCTIONS[mode](draft, node, _Bags(rows, mask, count)),)


def _mask(draft: Draft, node: fx.Node, bags: tuple[fx.Node, int, bool]) -> str:
    """Where a row's number is not below its bag's start, and below the next one's."""
    offsets, rows, include_last = bags

    def add(kind: str, *given: str, **attributes: Any) -> str:
        return draft.add(kind, given, f"{node.name}_{kind.lower()}", **attributes)

    wide = draft.integers([1], f"{node.name}_axis")
    bounds = add("Cast", draft.value(offsets, node), to=TYPES[torch.int64])
    if not include_last:
        bounds = add("Concat", bounds, draft.integers([rows], f"{node.name}_end"), axis=0)
    first, second, last = (draft.integers([n], f"{node.name}_place") for n in (0, 1, shape_of(offsets)[0] + 1))
    before = draft.integers([-1], f"{node.name}_place")
    start = add("Unsqueeze", add("Slice", bounds, first, before), wide)
    end = add("Unsqueeze", add("Slice", bounds, second, last), wide)
    number = draft.integers(range(rows), f"{node.name}_numbers")
    return add("And", add("GreaterOrEqual", number, start), add("Less", number, end))


def _sum(draft: Draft, node: fx.Node, bags: _Bags) -> str:
    ones = draft.add("Cast", [bags.mask], f"{node.name}_members", to=TYPES[torch.float32])
    return draft.add("MatMul", [ones, bags.rows], f"{node.name}_sum")


def _mean(draft: Draft, node: fx.Node, bags: _Bags) -> str:
    """An empty bag is zero."""
    one = draft.constant(1.0, f"{node.name}_one", torch.float32)
    count = draft.add("Max", [bags.count, one], f"{node.name}_at_least_one")
    return draft.add("Div", [_sum(draft, node, bags), count], f"{node.name}_mean")


def _largest(draft: Draft, node: fx.Node, bags: _Bags) -> str:
    """An empty bag is zero."""
    nothing, zero = (draft.constant(v, f"{node.name}_number", torch.float32) for v in (-math.inf, 0.0))
    cube = draft.add("Unsqueeze", [bags.mask, draft.integers([2], f"{node.name}_axis")], f"{node.name}_cube")
    there = draft.add("Where", [cube, bags.rows, nothing], f"{node.name}_there")
    most = draft.add("ReduceMax", [there, draft.integers([1], f"{node.name}_axis")], f"{node.name}_most", keepdims=0)
    empty = draft.add("Equal", [bags.count, zero], f"{node.name}_empty")
    return draft.add("Where", [empty, zero, most], f"{node.name}_largest")


# By the number that the operator has for each way of reducing.
_REDUCTIONS: Mapping[Any, Callable[[Draft, fx.Node, _Bags], str]] = MappingProxyType({0: _sum, 1: _mean, 2: _largest})
