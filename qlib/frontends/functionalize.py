"""Removing in-place operators: every value of the graph becomes one that nothing changes any more."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from qlib.frontends.inside import run_region
from qlib.frontends.memory import Program, Several, Storage, Value, Walk, Yielded, refusal, write
from qlib.frontends.untouched import private_copy
from qlib.frontends.views import SPLITS, View
from qlib.regions import region_of

_aten = torch.ops.aten


def functionalize(program: Program, inputs: tuple[Tensor, ...]) -> fx.Graph:
    """A new graph that computes the same without in-place operators, with shapes and types in the nodes' metadata.

    The graph is run once on copies of `inputs` to see which tensors share memory, so it holds for their layout.
    Inputs and buffers that the module changes are written back by ``aten.copy_`` nodes before the output.
    Raises CaptureError where a change goes through a view that can't be undone, or to a parameter.
    """
    return _run(program, inputs).graph


def _run(program: Program, inputs: tuple[Tensor, ...]) -> Walk:
    walk = Walk(program, fx.Graph())
    examples = iter(inputs)
    remaining = {node: len(node.users) for node in program.graph.nodes}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                _placeholder(walk, node, next(examples))
            elif node.op == "get_attr":
                if "graph" not in node.meta:
                    _attribute(walk, node)
            elif node.op == "output":
                _output(walk, node)
            else:
                _call(walk, node)
            _forget(walk, node, remaining)
    return walk


def _forget(walk: Walk, node: fx.Node, remaining: dict[fx.Node, int]) -> None:
    """Free the tensors of the example run that no later node needs."""
    for used in (node, *node.all_input_nodes):
        remaining[used] -= used is not node
        if remaining[used] == 0:
            walk.tensors.pop(used, None)


def _placeholder(walk: Walk, node: fx.Node, example: Tensor) -> None:
    new = walk.graph.placeholder(str(node.target))
    new.meta = {"module_path": "", "shape": tuple(example.shape), "dtype": example.dtype}
    walk.values[node] = Value(Storage(new), new)
    walk.tensors[node] = private_copy(example)


def _attribute(walk: Walk, node: fx.Node) -> None:
    """All uses of one parameter or buffer share one value, created where it is first used."""
    name = str(node.target)
    if name not in walk.attributes:
        tensor = walk.program.state[name]
        new = walk.graph.create_node("get_attr", name)
        new.meta = {"module_path": name.rpartition(".")[0], "shape": tuple(tensor.shape), "dtype": tensor.dtype}
        example = tensor.detach() if isinstance(tensor, nn.Parameter) else private_copy(tensor)
        walk.attributes[name] = Value(Storage(new), new), example
    walk.values[node], walk.tensors[node] = walk.attributes[name]


def _call(walk: Walk, node: fx.Node) -> None:
    target = node.target
    region = region_of(node, lambda reference: reference.meta["graph"])
    if region is not None:
        run_region(walk, region, _run)
    elif target is operator.getitem:
        _item(walk, node)
    elif not isinstance(target, OpOverload):
        raise refusal(node, f"expected ATen operators only, found {target}; try another capture method")
    elif target._schema.is_mutable:
        _mutate(walk, node, target)
    else:
        _compute(walk, node, target)


def _compute(walk: Walk, node: fx.Node, target: OpOverload) -> None:
    """An operator without side effects; its results may be views of one of its inputs."""
    result = target(*walk.examples(node.args), **walk.examples(node.kwargs))
    if not isinstance(result, Tensor | list | tuple):
        raise refusal(node, f"expected tensors only, found a number that {target} takes out of the data")
    walk.tensors[node] = result
    args, kwargs = walk.current(node.args), walk.current(node.kwargs)
    new = walk.call(target, args, kwargs, node.meta)
    source, memory = _source_of(walk, node, result)
    if not isinstance(result, Tensor):
        walk.values[node] = Several(new, source, source.storage.version if source else 0, memory)
        return
    new.meta.update(shape=tuple(result.shape), dtype=result.dtype)
    if source is None:
        walk.values[node] = Value(Storage(), new)
    else:
        step = View(_view_name(walk, node, source), target, args[1:], kwargs, new.meta)
        walk.values[node] = Value(source.storage, new, source.storage.version, source, step)


def _item(walk: Walk, node: fx.Node) -> None:
    """One tensor out of the several that an operator returned."""
    made, index = node.args
    assert isinstance(made, fx.Node) and isinstance(index, int)
    several = walk.values[made]
    if isinstance(several, Yielded):
        walk.values[node], walk.tensors[node] = several.values[index], several.tensors[index]
        return
    assert isinstance(several, Several)
    result: Tensor = walk.tensors[made][index]
    meta = {**made.meta, "shape": tuple(result.shape), "dtype": result.dtype}
    new = walk.call(operator.getitem, (several.node, index), {}, meta)
    walk.tensors[node] = result
    source = several.source
    if source is None or result.untyped_storage()._cdata != several.memory:
        walk.values[node] = Value(Storage(), new)
        return
    name, args = _view_name(walk, made, source), walk.current(made.args[1:])
    assert isinstance(made.target, OpOverload)
    step = View(name, made.target, args, made.kwargs, new.meta, index, _start(name, args, walk.tensors[made][:index]))
    value = Value(source.storage, new, several.version, source, step)
    source.pieces.append(value)
    walk.values[node] = value


def _start(name: str, args: tuple[Any, ...], pieces_before: list[Tensor]) -> int:
    """Where a piece begins along the dimension that a tensor is split along."""
    return sum(piece.shape[args[1]] for piece in pieces_before) if name in SPLITS else 0


def _source_of(walk: Walk, node: fx.Node, result: Any) -> tuple[Value | None, int]:
    """The input whose memory the result, or one of several results, shares; and that memory."""
    tensors = [result] if isinstance(result, Tensor) else [item for item in result if isinstance(item, Tensor)]
    memories = {tensor.untyped_storage()._cdata for tensor in tensors}
    for used in node.all_input_nodes:
        example = walk.tensors[used]
        if isinstance(example, Tensor) and (memory := example.untyped_storage()._cdata) in memories:
            return walk.value(used), memory
    return None, 0


def _view_name(walk: Walk, node: fx.Node, source: Value) -> str:
    """The operator that makes a view of its first argument, or nothing where the view is of another one."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or walk.values[first] is not source or not isinstance(node.target, OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")


def _output(walk: Walk, node: fx.Node) -> None:
    result = walk.current(node.args[0])
    values = [*(walk.values[n] for n in walk.program.graph.find_nodes(op="placeholder"))]
    for value in (*values, *(value for value, _ in walk.attributes.values())):
        assert isinstance(value, Value)
        root = value.storage.root
        if root is not None and value.node is not root:
            walk.call(_aten.copy_.default, (root, value.node, False), {}, root.meta)
    walk.graph.output(result)


# ------------------------------------------------------------------------------------------------------ in-place calls


def _mutate(walk: Walk, node: fx.Node, target: OpOverload) -> None:
    """Compute the new value out of place, then let every tensor that shares the memory see it."""
    schema = target._schema
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    name = schema.name.removeprefix("aten::")
    old = node.args[0] if node.args else None
    if written != [schema.arguments[0].name] or not isinstance(old, fx.Node) or name in _RESHAPES_ITSELF:
        raise refusal(
            node, f"{target} can't be replaced by an operator that leaves its arguments alone; use another one"
        )
    value, tensor = walk.value(old), walk.tensors[old]
    root = value.storage.root
    if root is not None and isinstance(walk.program.state.get(str(root.target)), nn.Parameter):
        raise refusal(node, f"{target} changes the parameter {root.target}; make it a buffer or change a copy")
    new, result = _REPLACEMENTS.get(name, _out_of_place)(walk, node, target)
    if result.dtype != tensor.dtype:
        result = result.to(tensor.dtype)
        new = walk.emit(_aten.to.dtype, (new, tensor.dtype, False, False, None), node.meta, result)
    if result.shape != tensor.shape:
        new = walk.emit(_aten.expand.default, (new, list(tensor.shape)), node.meta, tensor)
    tensor.copy_(result)
    write(walk, value, new, node)
    walk.values[node], walk.tensors[node] = value, tensor


def _out_of_place(walk: Walk, node: fx.Node, target: OpOverload) -> tuple[fx.Node, Tensor]:
    """``add_`` becomes ``add``, and so on by name."""
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    functional = getattr(getattr(_aten, name, None), target._overloadname, None)
    if functional is None:
        raise refusal(node, f"{target} has no counterpart that leaves its argument alone; use another operator")
    result = functional(*walk.examples(node.args), **walk.examples(node.kwargs))
    new = walk.emit(functional, walk.current(node.args), node.meta, result)
    new.kwargs = walk.current(node.kwargs)
    return new, result


def _copied(walk: Walk, node: fx.Node, target: OpOverload) -> tuple[fx.Node, Tensor]:
    """``copy_`` makes its source the new value."""
    source = node.args[1]
    if not isinstance(source, fx.Node):
        return _filled(walk, node, target)
    return walk.current(source), walk.tensors[source].clone()


def _filled(walk: Walk, node: fx.Node, target: OpOverload) -> tuple[fx.Node, Tensor]:
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


def _is_constant(walk: Walk, node: fx.Node) -> bool:
    """Whether a tensor is a constant in the module's code, perhaps copied."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node) and node.target in _COPIES:
        node = node.args[0]
    return node.op == "get_attr" and str(node.target) in walk.program.constants


_COPIES = frozenset(
    {_aten.lift_fresh_copy.default, _aten.lift_fresh.default, _aten.detach.default, _aten.clone.default}
)
_REPLACEMENTS: Mapping[str, Callable[[Walk, fx.Node, OpOverload], tuple[fx.Node, Tensor]]] = MappingProxyType(
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
