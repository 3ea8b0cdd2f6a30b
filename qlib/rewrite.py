"""Finding the operators of the table in a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._ops import OpOverload

from qlib.graph import nodes_in, op_name, overload_name
from qlib.ops import BY_HEAD, Op

DEQUANTIZE = frozenset({f"qlib::dequantize_per_{part}" for part in ("tensor", "channel", "token", "group")})


@dataclass(frozen=True)
class Match:
    """One operator of the table found in a graph: `nodes` are the float operators of its chain, in order."""

    op: Op
    nodes: tuple[fx.Node, ...]

    @property
    def head(self) -> fx.Node:
        """The first node, which takes the operands."""
        return self.nodes[0]

    @property
    def tail(self) -> fx.Node:
        """The last node, whose value is the operator's result."""
        return self.nodes[-1]

    @property
    def weight_axis(self) -> int | None:
        """The axis of the weight along which each index may have a scale, None where its channels are shared."""
        shared = self.op.groups is not None and self.head.args[self.op.groups] != 1
        return None if shared else self.op.weight_axis

    @property
    def weights(self) -> tuple[fx.Node, ...]:
        """The weights, in order; of a list argument those with two dimensions and more, which are no biases."""
        argument = self.head.args[self.op.weight] if self.op.weight is not None else ()
        listed = isinstance(argument, list | tuple)
        return tuple(node for node in nodes_in(argument) if not listed or len(node.meta["shape"]) > 1)

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        """The float tensors that the operator quantizes, in order; a list argument counts as its items."""
        return tuple(node for position in self.op.operands for node in nodes_in(self.head.args[position]))


def find(head: fx.Node, accept: Callable[[Match], bool]) -> Match | None:
    """The row with the longest chain that starts at `head`, fits its arguments and that `accept` agrees to."""
    for op in BY_HEAD.get(op_name(head), ()):
        nodes = chain_of(head, op.chain)
        if nodes and not misfit(op, head) and accept(match := Match(op, nodes)):
            return match
    return None


def chain_of(head: fx.Node, names: tuple[str, ...]) -> tuple[fx.Node, ...]:
    """The nodes that one value flows through, empty where another operator follows or the value is used twice.

    `getitem` in a chain stands for the first item.
    """
    nodes = [head]
    for name in names[1:]:
        users = list(nodes[-1].users)
        if len(users) != 1 or op_name(users[0]) != name or users[0].args[0] is not nodes[-1]:
            return ()
        if name == "getitem" and users[0].args[1] != 0:
            return ()
        nodes.append(users[0])
    return tuple(nodes)


def misfit(op: Op, node: fx.Node) -> str:
    """Why the row does not stand for a call of its first float operator, empty where it does.

    Operands are tensors, parameters constant tensors or None, others any tensor, everything else plain values.
    """
    if op.overload and overload_name(node) != op.overload:
        return f"it is called by another overload than {op.overload!r}"
    if foreign := sorted(set(node.kwargs) - set(op.keywords)):
        return f"no kernel takes its argument {foreign[0]!r}"
    if len(node.args) <= max(op.operands, default=-1):
        return "an operand is missing"
    for position in range(len(node.args)):
        if reason := _argument_misfit(op, node, position):
            return f"{_argument(node, position)} {reason}"
    return _value_misfit(op, node)


def _argument(node: fx.Node, position: int) -> str:
    """An argument as the operator's schema calls it."""
    if isinstance(node.target, OpOverload):
        return f"its {node.target._schema.arguments[position].name}"
    return f"its argument {position}"


def _argument_misfit(op: Op, node: fx.Node, position: int) -> str:
    """What is wrong with one argument, empty where nothing is."""
    argument = node.args[position]
    nodes = list(nodes_in(argument))
    if position in op.operands:
        items = len(argument) if isinstance(argument, list | tuple) else 1
        return "" if nodes and len(nodes) == items else "is a number, not a tensor"
    if position in op.parameters:
        return "" if all(map(is_constant, nodes)) else "is computed, not constant"
    if position in op.others:
        return "is a number, not a tensor" if isinstance(argument, int | float) else ""
    return "is a tensor, and the kernel takes a number" if nodes else ""


def _value_misfit(op: Op, node: fx.Node) -> str:
    """Why the values of plain arguments don't suit the row."""
    arguments: tuple[Any, ...] = node.args
    if missing := [position for position in op.required if arguments[position] is None]:
        return f"{_argument(node, missing[0])} is missing"
    if op.none_at is not None and arguments[op.none_at : op.none_at + 1] not in ((), (None,)):
        return f"no kernel takes {_argument(node, op.none_at)}, {arguments[op.none_at]!r}"
    if op.finite_at is not None and not math.isfinite(arguments[op.finite_at]):
        return f"{_argument(node, op.finite_at)} is infinite"
    if op.zero_at is not None and len(arguments) > op.zero_at and arguments[op.zero_at] not in (0, None):
        return f"no kernel takes {_argument(node, op.zero_at)} other than zero, here {arguments[op.zero_at]!r}"
    return ""


def is_constant(node: fx.Node) -> bool:
    """True for a parameter or buffer of the model, also behind a dequantize."""
    if op_name(node) in DEQUANTIZE:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "get_attr"
    return node.op == "get_attr"
