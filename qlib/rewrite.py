"""Finding the operators of the table in a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from qlib.graph import nodes_in, op_name
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
    def operands(self) -> tuple[fx.Node, ...]:
        """The float tensors that the operator quantizes, in order; a list argument counts as its items."""
        return tuple(node for position in self.op.operands for node in nodes_in(self.head.args[position]))


def find(head: fx.Node, accept: Callable[[Match], bool]) -> Match | None:
    """The row with the longest chain that starts at `head`, fits its arguments and that `accept` agrees to."""
    for op in BY_HEAD.get(op_name(head), ()):
        nodes = _chain(head, op.chain)
        if nodes and _arguments_fit(op, head) and accept(match := Match(op, nodes)):
            return match
    return None


def _chain(head: fx.Node, names: tuple[str, ...]) -> tuple[fx.Node, ...]:
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


def _arguments_fit(op: Op, node: fx.Node) -> bool:
    """Operands are tensors, parameters constant tensors or None, others anything, everything else plain values."""
    if not set(node.kwargs) <= set(op.keywords) or len(node.args) <= max(op.operands, default=-1):
        return False
    if op.overload and getattr(node.target, "_overloadname", "") != op.overload:
        return False
    for position, argument in enumerate(node.args):
        nodes = list(nodes_in(argument))
        if position in op.operands:
            fits = bool(nodes) and not (isinstance(argument, list | tuple) and len(nodes) != len(argument))
        elif position in op.parameters:
            fits = all(is_constant(item) for item in nodes)
        else:
            fits = not nodes or position in op.others
        if not fits:
            return False
    if any(node.args[position] is None for position in op.required):
        return False
    if op.none_at is not None and node.args[op.none_at : op.none_at + 1] not in ((), (None,)):
        return False
    return op.zero_at is None or len(node.args) <= op.zero_at or node.args[op.zero_at] in (0, None)


def is_constant(node: fx.Node) -> bool:
    """True for a parameter or buffer of the model, also behind a dequantize."""
    if op_name(node) in DEQUANTIZE:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "get_attr"
    return node.op == "get_attr"
