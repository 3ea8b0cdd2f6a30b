"""Removing in-place operators: every value of the graph becomes one that nothing changes any more."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_arg

from qlib.errors import CaptureError
from qlib.frontends.untouched import private_copy
from qlib.frontends.views import INVERSES, SPLITS, View

_aten = torch.ops.aten


@dataclass(frozen=True)
class Program:
    """A graph as a front-end delivers it: ATen operators, in-place ones too, arguments positional where they can be.

    `state` has the tensors of `get_attr` nodes by name; those in `constants` are written in the module's code.
    """

    graph: fx.Graph
    state: Mapping[str, Tensor]
    constants: frozenset[str]


@dataclass
class _Storage:
    """Memory that several tensors share: `root` is the placeholder or `get_attr` node that owns it, if any."""

    root: fx.Node | None = None
    version: int = 0


@dataclass
class _Value:
    """A tensor: `node` holds its value as of `version` of its storage; a view also knows where it comes from.

    `pieces` are the views that come out of splitting this tensor.
    """

    storage: _Storage
    node: fx.Node
    version: int = 0
    parent: _Value | None = None
    step: View | None = None
    pieces: list[_Value] = field(default_factory=list)


@dataclass(frozen=True)
class _Several:
    """What an operator with several results made: its new node, and what they are views of, if anything."""

    node: fx.Node
    source: _Value | None
    version: int
    memory: int


@dataclass(frozen=True)
class _Walk:
    """One pass over a graph: new nodes and tensors of the example run, keyed by the nodes of the old graph."""

    program: Program
    graph: fx.Graph
    values: dict[fx.Node, _Value | _Several] = field(default_factory=dict)
    tensors: dict[fx.Node, Any] = field(default_factory=dict)
    attributes: dict[str, tuple[_Value, Tensor]] = field(default_factory=dict)

    def value(self, node: fx.Node) -> _Value:
        """The value of a node that makes one tensor."""
        found = self.values[node]
        assert isinstance(found, _Value)
        return found

    def current(self, argument: Any) -> Any:
        """An argument with the new nodes that hold its present value."""
        return map_arg(argument, lambda node: _current_node(self, self.values[node]))

    def examples(self, argument: Any) -> Any:
        """An argument with the tensors of the example run."""
        return map_arg(argument, lambda node: self.tensors[node])

    def call(self, target: Any, args: Any, kwargs: Any, meta: Mapping[str, Any]) -> fx.Node:
        """A new node, named after its operator."""
        name = target._schema.name.rpartition("::")[2] if isinstance(target, OpOverload) else "getitem"
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        node.meta = dict(meta)
        return node

    def emit(self, target: OpOverload, args: tuple[Any, ...], meta: Mapping[str, Any], like: Tensor) -> fx.Node:
        """A new node whose result looks like a tensor of the example run."""
        return self.call(target, args, {}, {**meta, "shape": tuple(like.shape), "dtype": like.dtype})


def functionalize(program: Program, inputs: tuple[Tensor, ...]) -> fx.Graph:
    """A new graph that computes the same without in-place operators, with shapes and types in the nodes' metadata.

    The graph is run once on copies of `inputs` to see which tensors share memory, so it holds for their layout.
    Inputs and buffers that the module changes are written back by ``aten.copy_`` nodes before the output.
    Raises CaptureError where a change goes through a view that can't be undone, or to a parameter.
    """
    walk = _Walk(program, fx.Graph())
    examples = iter(inputs)
    remaining = {node: len(node.users) for node in program.graph.nodes}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                _placeholder(walk, node, next(examples))
            elif node.op == "get_attr":
                _attribute(walk, node)
            elif node.op == "output":
                _output(walk, node)
            else:
                _call(walk, node)
            _forget(walk, node, remaining)
    return walk.graph


def _forget(walk: _Walk, node: fx.Node, remaining: dict[fx.Node, int]) -> None:
    """Free the tensors of the example run that no later node needs."""
    for used in (node, *node.all_input_nodes):
        remaining[used] -= used is not node
        if remaining[used] == 0:
            walk.tensors.pop(used, None)


def _placeholder(walk: _Walk, node: fx.Node, example: Tensor) -> None:
    new = walk.graph.placeholder(str(node.target))
    new.meta = {"module_path": "", "shape": tuple(example.shape), "dtype": example.dtype}
    walk.values[node] = _Value(_Storage(new), new)
    walk.tensors[node] = private_copy(example)


def _attribute(walk: _Walk, node: fx.Node) -> None:
    """All uses of one parameter or buffer share one value, created where it is first used."""
    name = str(node.target)
    if name not in walk.attributes:
        tensor = walk.program.state[name]
        new = walk.graph.create_node("get_attr", name)
        new.meta = {"module_path": name.rpartition(".")[0], "shape": tuple(tensor.shape), "dtype": tensor.dtype}
        example = tensor.detach() if isinstance(tensor, nn.Parameter) else private_copy(tensor)
        walk.attributes[name] = _Value(_Storage(new), new), example
    walk.values[node], walk.tensors[node] = walk.attributes[name]


def _call(walk: _Walk, node: fx.Node) -> None:
    target = node.target
    if target is operator.getitem:
        _item(walk, node)
    elif not isinstance(target, OpOverload):
        raise _refusal(node, f"expected ATen operators only, found {target}; try another capture method")
    elif target._schema.is_mutable:
        _mutate(walk, node, target)
    else:
        _compute(walk, node, target)


def _compute(walk: _Walk, node: fx.Node, target: OpOverload) -> None:
    """An operator without side effects; its results may be views of one of its inputs."""
    result = target(*walk.examples(node.args), **walk.examples(node.kwargs))
    if not isinstance(result, Tensor | list | tuple):
        raise _refusal(node, f"expected tensors only, found a number that {target} takes out of the data")
    walk.tensors[node] = result
    args, kwargs = walk.current(node.args), walk.current(node.kwargs)
    new = walk.call(target, args, kwargs, node.meta)
    source, memory = _source_of(walk, node, result)
    if not isinstance(result, Tensor):
        walk.values[node] = _Several(new, source, source.storage.version if source else 0, memory)
        return
    new.meta.update(shape=tuple(result.shape), dtype=result.dtype)
    if source is None:
        walk.values[node] = _Value(_Storage(), new)
    else:
        step = View(_view_name(walk, node, source), target, args[1:], kwargs, new.meta)
        walk.values[node] = _Value(source.storage, new, source.storage.version, source, step)


def _item(walk: _Walk, node: fx.Node) -> None:
    """One tensor out of the several that an operator returned."""
    made, index = node.args
    assert isinstance(made, fx.Node) and isinstance(index, int)
    several = walk.values[made]
    assert isinstance(several, _Several)
    result: Tensor = walk.tensors[made][index]
    meta = {**made.meta, "shape": tuple(result.shape), "dtype": result.dtype}
    new = walk.call(operator.getitem, (several.node, index), {}, meta)
    walk.tensors[node] = result
    source = several.source
    if source is None or result.untyped_storage()._cdata != several.memory:
        walk.values[node] = _Value(_Storage(), new)
        return
    name, args = _view_name(walk, made, source), walk.current(made.args[1:])
    assert isinstance(made.target, OpOverload)
    step = View(name, made.target, args, made.kwargs, new.meta, index, _start(name, args, walk.tensors[made][:index]))
    value = _Value(source.storage, new, several.version, source, step)
    source.pieces.append(value)
    walk.values[node] = value


def _start(name: str, args: tuple[Any, ...], pieces_before: list[Tensor]) -> int:
    """Where a piece begins along the dimension that a tensor is split along."""
    return sum(piece.shape[args[1]] for piece in pieces_before) if name in SPLITS else 0


def _source_of(walk: _Walk, node: fx.Node, result: Any) -> tuple[_Value | None, int]:
    """The input whose memory the result, or one of several results, shares; and that memory."""
    tensors = [result] if isinstance(result, Tensor) else [item for item in result if isinstance(item, Tensor)]
    memories = {tensor.untyped_storage()._cdata for tensor in tensors}
    for used in node.all_input_nodes:
        example = walk.tensors[used]
        if isinstance(example, Tensor) and (memory := example.untyped_storage()._cdata) in memories:
            return walk.value(used), memory
    return None, 0


def _view_name(walk: _Walk, node: fx.Node, source: _Value) -> str:
    """The operator that makes a view of its first argument, or nothing where the view is of another one."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or walk.values[first] is not source or not isinstance(node.target, OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")


def _output(walk: _Walk, node: fx.Node) -> None:
    result = walk.current(node.args[0])
    values = [*(walk.values[n] for n in walk.program.graph.find_nodes(op="placeholder"))]
    for value in (*values, *(value for value, _ in walk.attributes.values())):
        assert isinstance(value, _Value)
        root = value.storage.root
        if root is not None and value.node is not root:
            walk.call(_aten.copy_.default, (root, value.node, False), {}, root.meta)
    walk.graph.output(result)


# ------------------------------------------------------------------------------------------------------ in-place calls


def _mutate(walk: _Walk, node: fx.Node, target: OpOverload) -> None:
    """Compute the new value out of place, then let every tensor that shares the memory see it."""
    schema = target._schema
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    name = schema.name.removeprefix("aten::")
    old = node.args[0] if node.args else None
    if written != [schema.arguments[0].name] or not isinstance(old, fx.Node) or name in _RESHAPES_ITSELF:
        raise _refusal(
            node, f"{target} can't be replaced by an operator that leaves its arguments alone; use another one"
        )
    value, tensor = walk.value(old), walk.tensors[old]
    root = value.storage.root
    if root is not None and isinstance(walk.program.state.get(str(root.target)), nn.Parameter):
        raise _refusal(node, f"{target} changes the parameter {root.target}; make it a buffer or change a copy")
    new, result = _REPLACEMENTS.get(name, _out_of_place)(walk, node, target)
    if result.dtype != tensor.dtype:
        result = result.to(tensor.dtype)
        new = walk.emit(_aten.to.dtype, (new, tensor.dtype, False, False, None), node.meta, result)
    if result.shape != tensor.shape:
        new = walk.emit(_aten.expand.default, (new, list(tensor.shape)), node.meta, tensor)
    tensor.copy_(result)
    _write(walk, value, new, node)
    walk.values[node], walk.tensors[node] = value, tensor


def _out_of_place(walk: _Walk, node: fx.Node, target: OpOverload) -> tuple[fx.Node, Tensor]:
    """``add_`` becomes ``add``, and so on by name."""
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    functional = getattr(getattr(_aten, name, None), target._overloadname, None)
    if functional is None:
        raise _refusal(node, f"{target} has no counterpart that leaves its argument alone; use another operator")
    result = functional(*walk.examples(node.args), **walk.examples(node.kwargs))
    new = walk.emit(functional, walk.current(node.args), node.meta, result)
    new.kwargs = walk.current(node.kwargs)
    return new, result


def _copied(walk: _Walk, node: fx.Node, target: OpOverload) -> tuple[fx.Node, Tensor]:
    """``copy_`` makes its source the new value."""
    source = node.args[1]
    if not isinstance(source, fx.Node):
        return _filled(walk, node, target)
    return walk.current(source), walk.tensors[source].clone()


def _filled(walk: _Walk, node: fx.Node, target: OpOverload) -> tuple[fx.Node, Tensor]:
    """``zero_`` and ``fill_`` make a tensor of one number."""
    tensor = walk.tensors[node.args[0]]  # type: ignore[index]
    fill: Any = node.args[1] if len(node.args) > 1 else 0
    if isinstance(fill, fx.Node):
        if not _is_constant(walk, fill):
            return walk.current(fill), walk.tensors[fill].clone()
        fill = walk.tensors[fill].item()
    fill = float(fill) if tensor.is_floating_point() else fill
    result = torch.full_like(tensor, fill)
    return walk.emit(_aten.full_like.default, (walk.current(node.args[0]), fill), node.meta, result), result


def _is_constant(walk: _Walk, node: fx.Node) -> bool:
    """Whether a tensor is a constant in the module's code, perhaps copied."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node) and node.target in _COPIES:
        node = node.args[0]
    return node.op == "get_attr" and str(node.target) in walk.program.constants


_COPIES = frozenset(
    {_aten.lift_fresh_copy.default, _aten.lift_fresh.default, _aten.detach.default, _aten.clone.default}
)
_REPLACEMENTS: Mapping[str, Callable[[_Walk, fx.Node, OpOverload], tuple[fx.Node, Tensor]]] = MappingProxyType(
    {"copy_": _copied, "fill_": _filled, "zero_": _filled}
)
# In-place operators that change what a tensor looks like and not what it holds.
_RESHAPES_ITSELF = frozenset(
    f"{name}_"
    for name in (
        *("squeeze", "unsqueeze", "t", "transpose", "swapaxes", "swapdims"),
        *("resize", "resize_as", "set", "as_strided"),
    )
)


def _write(walk: _Walk, value: _Value, new: fx.Node, cause: fx.Node) -> None:
    """Make `new` the value, and carry the change up to the tensor that owns the memory."""
    chain = [value]
    while (parent := chain[-1].parent) is not None:
        chain.append(parent)
    before = [_current_node(walk, item) for item in chain]
    if new is before[0]:
        return
    nodes = [new]
    for item, whole in zip(chain[:-1], before[1:], strict=True):
        step = item.step
        assert step is not None
        inverse = INVERSES.get(step.name)
        if inverse is None or step.meta["dtype"] != whole.meta["dtype"]:
            raise _refusal(
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


def _keep_other_pieces(written: _Value) -> None:
    """The other pieces of a split tensor hold what they held: they don't overlap with the one that was written."""
    step, version = written.step, written.storage.version
    for other in written.parent.pieces if written.parent is not None and step is not None else ():
        theirs = other.step
        if other is written or theirs is None or step is None or other.version != version - 1:
            continue
        if (theirs.target, theirs.args) == (step.target, step.args) and theirs.index != step.index:
            other.version = version


def _current_node(walk: _Walk, value: _Value | _Several) -> fx.Node:
    """The node that holds the present value: a view of something that has changed is taken anew."""
    if isinstance(value, _Several) or value.version == value.storage.version:
        return value.node
    step, parent = value.step, value.parent
    assert step is not None and parent is not None
    if step.name in _NOT_AGAIN:
        raise CaptureError(
            f"{step.target} views a tensor that is changed before the view's last use; clone it first"
            f" (at {step.meta.get('source') or 'an unknown line'})"
        )
    made = walk.call(step.target, (_current_node(walk, parent), *step.args), step.kwargs, step.meta)
    if step.index is not None:
        del made.meta["shape"], made.meta["dtype"]
        made = walk.call(operator.getitem, (made, step.index), {}, step.meta)
    value.node, value.version = made, value.storage.version
    return made


# Views that can't be taken anew: of another argument than the first, or of the memory itself.
_NOT_AGAIN = frozenset({"", "as_strided"})


def _refusal(node: fx.Node, message: str) -> CaptureError:
    return CaptureError(f"{message} (at {node.meta.get('source') or 'an unknown line'})")
