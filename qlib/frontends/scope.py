"""What a program run on the example has written down so far: one graph for the whole, and one for each block inside."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlib.frontends.untouched import private_copy

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor of the graph: its node, and its value on the example."""

    node: fx.Node
    value: Tensor


@dataclass(frozen=True, eq=False)
class Number:
    """A number that comes from the data: a tensor of the graph without dimensions, of type int64, float64 or bool."""

    node: fx.Node
    value: Tensor


@dataclass(frozen=True)
class Unset:
    """Stands for a value that the program never reads, such as the result of a function before its return."""


@dataclass(frozen=True, eq=False)
class Scope:
    """A graph that is being written.

    The graph of a block has an `outer` one, whose tensors it takes as `operands`: for each node outside, what it is
    there and what it is here, where it has memory of its own. `known` are the module's tensors, by identity.
    """

    graph: fx.Graph
    name_of: Callable[[Tensor], str]
    outer: Scope | None = None
    operands: dict[fx.Node, tuple[Traced, Traced]] = field(default_factory=dict)
    known: dict[int, Traced] = field(default_factory=dict)

    def inner(self) -> Scope:
        """A graph for a block inside of this one."""
        return Scope(fx.Graph(), self.name_of, self)

    def local(self, value: Any) -> Any:
        """A tensor or number as it is called here; other values as they are."""
        if isinstance(value, Tensor):
            return self._state(value)
        if not isinstance(value, Traced | Number) or value.node.graph is self.graph:
            return value
        assert self.outer is not None
        outside = self.outer.local(value)
        if outside.node not in self.operands:
            copied = outside.value if isinstance(outside.value, nn.Parameter) else private_copy(outside.value)
            self.operands[outside.node] = (outside, Traced(self.entry(outside.node.name), copied))
        inside = self.operands[outside.node][1]
        return type(value)(inside.node, inside.value)

    def entry(self, name: str) -> fx.Node:
        """One more placeholder."""
        first = next((node for node in self.graph.nodes if node.op != "placeholder"), None)
        with nullcontext() if first is None else self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        node.target = node.name
        return node

    def _state(self, tensor: Tensor) -> Traced:
        if self.outer is not None:
            found: Traced = self.local(self.outer._state(tensor))
            return found
        if id(tensor) not in self.known:
            node = self.graph.create_node("get_attr", self.name_of(tensor))
            self.known[id(tensor)] = Traced(node, tensor)
        return self.known[id(tensor)]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Traced:
        """Write an operator of tensors and plain values down, and run it."""
        given = [self.local(value) for value in args]
        node = self.graph.call_function(target, tuple(_node(value) for value in given), kwargs)
        node.meta = {"module_path": "", "source": ""}
        return Traced(node, target(*(_value(value) for value in given), **kwargs))

    def number(self, value: Any, dtype: torch.dtype) -> Number:
        """A number as a tensor of the graph."""
        if not isinstance(value, Number):
            made = self.call(_aten.full.default, [], value, dtype=dtype)
        elif value.value.dtype != dtype:
            made = self.call(_aten.to.dtype, value, dtype)
        else:
            return self.local(value)  # type: ignore[no-any-return]
        return Number(made.node, made.value)


def _node(value: Any) -> Any:
    return value.node if isinstance(value, Traced | Number) else value


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Traced | Number) else value


def written(scope: Scope, value: Any) -> Any:
    """A value as it stands in the arguments of an `fx` node."""
    if isinstance(value, list | tuple):
        return type(value)(written(scope, item) for item in value)
    if isinstance(value, dict):
        return {key: written(scope, item) for key, item in value.items()}
    return _node(scope.local(value))


def plain(scope: Scope, value: Any) -> Any:
    """A value as operators take it."""
    if isinstance(value, list | tuple):
        return type(value)(plain(scope, item) for item in value)
    return _value(scope.local(value))
