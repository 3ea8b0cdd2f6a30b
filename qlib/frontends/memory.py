"""Who shares memory with whom: the values of a graph while its in-place operators are being removed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_arg

from qlib.errors import CaptureError
from qlib.frontends.views import INVERSES, View
from qlib.graph import call


@dataclass(frozen=True)
class Program:
    """A graph as a front-end delivers it: ATen operators, in-place ones too, arguments positional where they can be.

    `state` has the tensors of `get_attr` nodes by name; those in `constants` are written in the module's code.
    """

    graph: fx.Graph
    state: Mapping[str, Tensor]
    constants: frozenset[str]


@dataclass
class Storage:
    """Memory that several tensors share: `root` is the placeholder or `get_attr` node that owns it, if any."""

    root: fx.Node | None = None
    version: int = 0


@dataclass
class Value:
    """A tensor: `node` holds its value as of `version` of its storage; a view also knows where it comes from.

    `pieces` are the views that come out of splitting this tensor.
    """

    storage: Storage
    node: fx.Node
    version: int = 0
    parent: Value | None = None
    step: View | None = None
    pieces: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class Several:
    """What an operator with several results made: its new node, and what they are views of, if anything."""

    node: fx.Node
    source: Value | None
    version: int
    memory: int


@dataclass(frozen=True)
class Yielded:
    """What a branch or loop gave: a value and a tensor of the example run for each result."""

    values: tuple[Value, ...]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Walk:
    """One pass over a graph: new nodes and tensors of the example run, keyed by the nodes of the old graph."""

    program: Program
    graph: fx.Graph
    values: dict[fx.Node, Value | Several | Yielded] = field(default_factory=dict)
    tensors: dict[fx.Node, Any] = field(default_factory=dict)
    attributes: dict[str, tuple[Value, Tensor]] = field(default_factory=dict)

    def value(self, node: fx.Node) -> Value:
        """The value of a node that makes one tensor."""
        found = self.values[node]
        assert isinstance(found, Value)
        return found

    def current(self, argument: Any) -> Any:
        """An argument with the new nodes that hold its present value."""
        return map_arg(argument, lambda node: current_node(self, self.values[node]))

    def examples(self, argument: Any) -> Any:
        """An argument with the tensors of the example run."""
        return map_arg(argument, lambda node: self.tensors[node])

    def call(self, target: Any, args: Any, kwargs: Any, meta: Mapping[str, Any]) -> fx.Node:
        """A new node, named after its operator."""
        name = target._schema.name.rpartition("::")[2] if isinstance(target, OpOverload) else target.__name__
        node = call(self.graph, target, *args, name=name)
        if kwargs:
            node.kwargs = kwargs
        node.meta.update(meta)
        return node

    def emit(self, target: OpOverload, args: tuple[Any, ...], meta: Mapping[str, Any], like: Tensor) -> fx.Node:
        """A new node whose result looks like a tensor of the example run."""
        return self.call(target, args, {}, {**meta, "shape": tuple(like.shape), "dtype": like.dtype})


def write(walk: Walk, value: Value, new: fx.Node, cause: fx.Node) -> None:
    """Make `new` the value, and carry the change up to the tensor that owns the memory."""
    chain = [value]
    while (parent := chain[-1].parent) is not None:
        chain.append(parent)
    before = [current_node(walk, item) for item in chain]
    if new is before[0]:
        return
    nodes = [new]
    for item, whole in zip(chain[:-1], before[1:], strict=True):
        step = item.step
        assert step is not None
        inverse = INVERSES.get(step.name)
        if inverse is None or step.meta["dtype"] != whole.meta["dtype"]:
            raise refusal(
                cause, f"{cause.target} writes through {step.target}, which can't be undone; clone that first"
            )
        target, args = inverse(step, whole, nodes[-1])
        nodes.append(
            walk.call(target, args, {}, {**cause.meta, "shape": whole.meta["shape"], "dtype": whole.meta["dtype"]})
        )
    value.storage.version += 1
    for item, node in zip(chain, nodes, strict=True):
        _keep_other_pieces(item)
        item.node, item.version = node, value.storage.version


def _keep_other_pieces(written: Value) -> None:
    """The other pieces of a split tensor hold what they held: they don't overlap with the one that was written."""
    step, version = written.step, written.storage.version
    for other in written.parent.pieces if written.parent is not None and step is not None else ():
        theirs = other.step
        if other is written or theirs is None or step is None or other.version != version - 1:
            continue
        if (theirs.target, theirs.args) == (step.target, step.args) and theirs.index != step.index:
            other.version = version


def current_node(walk: Walk, value: Value | Several | Yielded) -> fx.Node:
    """The node that holds the present value: a view of something that has changed is taken anew."""
    assert not isinstance(value, Yielded), "the results of a region are fetched one by one"
    if isinstance(value, Several) or value.version == value.storage.version:
        return value.node
    step, parent = value.step, value.parent
    assert step is not None and parent is not None
    if step.name in _NOT_AGAIN:
        raise CaptureError(
            f"{step.target} views a tensor that is changed before the view's last use; clone it first"
            f" (at {step.meta.get('source') or 'an unknown line'})"
        )
    made = walk.call(step.target, (current_node(walk, parent), *step.args), step.kwargs, step.meta)
    if step.index is not None:
        del made.meta["shape"], made.meta["dtype"]
        made = walk.call(operator.getitem, (made, step.index), {}, step.meta)
    value.node, value.version = made, value.storage.version
    return made


# Views that can't be taken anew: of another argument than the first, or of the memory itself.
_NOT_AGAIN = frozenset({"", "as_strided"})


def refusal(node: fx.Node, message: str) -> CaptureError:
    """The error for something that can't be done, with the user's line."""
    return CaptureError(f"{message} (at {node.meta.get('source') or 'an unknown line'})")
