"""The graph that every pass works on: ATen operators in a `torch.fx` graph, in a module that can be saved."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import count
from typing import Any

from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import Argument, map_arg

from qlib.regions import IN_PYTHON, drop_unused_operands, inner_model, inner_models, regions_in
from qlib.saved import Row, graph_of, rows_of
from qlib.signature import checked_call


class Model(_LazyGraphModule):
    """A `torch.fx.GraphModule` that generates its code when it is first called, since most graphs only pass through.

    It is pickled as the rows of its graph, so that a loaded model is the saved one node by node. The graphs of its
    branches and loops are models too, and submodules. Calling it raises CaptureError for inputs that the graph does
    not hold for.
    """

    def real_recompile(self) -> Any:
        """Generate the code; branches and loops become plain Python, which nothing traces."""
        found = [n for target in IN_PYTHON for n in self.graph.find_nodes(op="call_function", target=target)]
        targets = [node.target for node in found]
        try:
            for node in found:
                node.target = IN_PYTHON[node.target]
            return super().real_recompile()
        finally:
            for node, target in zip(found, targets, strict=True):
                node.target = target

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """What the graph returns for `inputs`."""
        with checked_call(self, inputs, keywords):
            return super().__call__(*inputs, **keywords)

    def __reduce__(self) -> Any:
        """What pickle is to call, and with what."""
        state = {name: self.__dict__[name] for name in ("_modules", "_parameters", "_buffers", "training", "meta")}
        return _restore, (rows_of(self.graph), state)


def _restore(rows: tuple[Row, ...], state: dict[str, Any]) -> Model:
    import_module("qlib.kernels")  # registers the operators; by name, since the kernels stand on this module
    root = nn.Module()
    root.__dict__.update({name: state[name] for name in ("_modules", "_parameters", "_buffers")})
    model = Model(root, graph_of(rows))
    model.train(state["training"])
    model.meta = state["meta"]
    return model


def copy_of(model: fx.GraphModule) -> Model:
    """A new graph with the same names and metadata over the same parameters, so that a pass leaves its input alone.

    The models within are copied too; observers stay the same objects.
    """
    copy = Model(nn.Module(), fx.Graph())
    _share_state(model, copy)
    copy.graph = _copied(model.graph)
    drop_unused_state(copy)
    for name, inner in inner_models(model):
        copy.add_submodule(name, copy_of(inner))
    copy.training = model.training
    copy.meta = dict(model.meta)
    return copy


def _copied(source: fx.Graph) -> fx.Graph:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for old in source.nodes:
        new = graph.create_node(old.op, old.target, name=old.name, type_expr=old.type)
        new._update_args_kwargs(map_arg(old.args, values.__getitem__), map_arg(old.kwargs, values.__getitem__))
        new.meta.update(old.meta)
        values[old] = new
    return graph


def _share_state(source: nn.Module, copy: nn.Module) -> None:
    """Give `copy` what `source` holds; a module that only holds others is copied, so that either can be added to."""
    copy._parameters.update(source._parameters)
    copy._buffers.update(source._buffers)
    for name, child in source._modules.items():
        if child is not None and type(child) is nn.Module:
            copy._modules[name] = holder = nn.Module()
            _share_state(child, holder)
        else:
            copy._modules[name] = child


def own_state(model: nn.Module) -> None:
    """Replace every parameter and buffer by a copy of its own, so that training the model trains no other.

    What several modules share, such as the graphs of a branch, they go on sharing.
    """
    copies: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                module._parameters[name] = copies.setdefault(parameter, own)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(buffer, buffer.clone())


def op_name(node: fx.Node) -> str:
    """`aten::linear` for a call of any overload of it, `getitem` for Python's, and an empty string for other nodes.

    A call of a graph that spells out an operator counts as a call of that.
    """
    if node.op == "call_module":
        return str(node.meta.get("stands_for", "")).partition(".")[0]
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return str(node.target._schema.name)
    return "getitem" if node.target is operator.getitem else ""


def overload_name(node: fx.Node) -> str:
    """The overload that a node calls, empty where it calls none."""
    if node.op == "call_module":
        return str(node.meta.get("stands_for", "")).partition(".")[2]
    return node.target._overloadname if isinstance(node.target, OpOverload) else ""


def nodes_in(argument: Argument) -> Iterator[fx.Node]:
    """Every node within an argument, lists and tuples included, in order."""
    if isinstance(argument, fx.Node):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from nodes_in(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from nodes_in(item)


def attribute(model: nn.Module, target: str) -> Tensor:
    """The tensor that a `get_attr` node with the dotted name `target` stands for."""
    value: Any = model
    for part in target.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise TypeError(f"expected a tensor at {target!r}, found {type(value).__name__}")
    return value


def add_buffer(model: nn.Module, target: str, value: Tensor) -> str:
    """Register `value` as a buffer under the dotted name `target`, or the next free one like it; returns the name."""
    path, _, name = target.rpartition(".")
    holder = model
    for part in path.split(".") if path else ():
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    free, taken = name, 0
    while hasattr(holder, free):
        taken += 1
        free = f"{name}_{taken}"
    holder.register_buffer(free, value)
    return f"{path}.{free}" if path else free


def add_module(model: nn.Module, name: str, module: nn.Module) -> str:
    """Register `module` under `name` and the next free number; returns the name."""
    free = next(candidate for candidate in map(f"{name}_{{}}".format, count()) if not hasattr(model, candidate))
    model.add_module(free, module)
    return free


def call(graph: fx.Graph, target: Any, *args: Argument, name: str | None = None) -> fx.Node:
    """A call at the current insertion point, without fx's search of the arguments for symbolic numbers."""
    node = graph.create_node("call_function", target, name=name)
    node._update_args_kwargs(args, {})
    return node


def get_attr(graph: fx.Graph, target: str, value: Tensor | None = None) -> fx.Node:
    """A `get_attr` node at the current insertion point, with the shape and type of `value` where that is given.

    fx's look for the attribute is left out.
    """
    node = graph.create_node("get_attr", target)
    node.meta["module_path"] = target.rpartition(".")[0]
    if value is not None:
        node.meta.update(shape=tuple(value.shape), dtype=value.dtype)
    return node


def hold(model: fx.GraphModule, path: str, name: str, value: Tensor) -> fx.Node:
    """A `get_attr` node at the current insertion point for `value`, now the buffer `name` of the module at `path`."""
    return get_attr(model.graph, add_buffer(model, f"{path}.{name}" if path else name, value), value)


def become(node: fx.Node, target: OpOverload, *args: Any) -> None:
    """Turn a node into a call of another operator with the same result."""
    node.target, node.args, node.kwargs = target, args, {}


def finish(model: fx.GraphModule) -> None:
    """Remove what nothing uses any more, nodes and state, and have the code generated anew; also inside."""
    for region in regions_in(model):
        inside = [inner_model(model, reference) for reference in region.references]
        for inner in inside:
            finish(inner)
        drop_unused_operands(region)
        for inner in inside:
            inner.recompile()
    drop_unused_nodes(model.graph)
    drop_unused_state(model)
    model.recompile()


def drop_unused_nodes(graph: fx.Graph) -> None:
    """Erase the nodes whose values nothing uses, but those with effects."""
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)


def drop_unused_state(model: nn.Module) -> None:
    """Delete parameters, buffers and submodules that no node of the graph refers to."""
    graph = model.graph
    assert isinstance(graph, fx.Graph)
    _drop(model, [node.target.split(".") for node in graph.nodes if node.op in ("get_attr", "call_module")])


def _drop(module: nn.Module, used: Iterable[Sequence[str]]) -> None:
    """Keep of a module what the paths in `used` lead to; a path that ends keeps all."""
    within: dict[str, list[Sequence[str]]] = {}
    for name, *rest in used:
        within.setdefault(name, []).append(rest)
    for store in (module._parameters, module._buffers, module._modules):
        for name in store.keys() - within.keys():
            del store[name]
    for name, child in module._modules.items():
        if child is not None and all(within[name]):
            _drop(child, within[name])
