"""Recurrent layers step by step, in the graph itself: ONNX's own know no quantization on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from qlib.graph import Model, copy_of, op_name
from qlib.interpret import call, walk
from qlib.kernels.recurrence import STEPS
from qlib.kernels.recurrent import spell_steps
from qlib.onnx.draft import refuse


def inlined(model: fx.GraphModule) -> Model:
    """A copy whose recurrent layers, quantized or in float, are spelled out; weights stay as they are."""
    copy = copy_of(model)
    for node in list(copy.graph.nodes):
        if op_name(node) in STEPS:
            _inline(node, _inner(copy, node))
    copy.graph.eliminate_dead_code()
    return copy


def _inner(model: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    if node.op == "call_module":
        found = model.get_submodule(str(node.target))
        assert isinstance(found, fx.GraphModule)
        return found
    arguments: tuple[Any, ...] = node.args
    if not isinstance(node.target, OpOverload) or node.target._overloadname != "input":
        raise refuse(node, "sequences of several lengths in one batch")
    if arguments[5] and arguments[6]:
        raise refuse(node, "dropout in training")
    return spell_steps(node, ())


def _inline(node: fx.Node, inner: fx.GraphModule) -> None:
    """Write the nodes of `inner` before `node`, with shapes and types, and take its results from them."""
    graph = node.graph
    values = _values(inner, node)
    given = iter(node.args)
    found: dict[fx.Node, Any] = {}
    results: Any = ()
    for step in inner.graph.nodes:
        if step.op == "placeholder":
            found[step] = next(given)
        elif step.op == "output":
            results = fx.node.map_arg(step.args[0], found.__getitem__)
        elif op_name(step) == "getitem" and isinstance(source := found[step.args[0]], list | tuple):
            found[step] = source[step.args[1]]
        else:
            with graph.inserting_before(node):
                new = graph.call_function(step.target, fx.node.map_arg(step.args, found.__getitem__))
            new.meta = {"module_path": node.meta.get("module_path", ""), "source": node.meta.get("source", "")}
            if isinstance(value := values[step], torch.Tensor):
                new.meta.update(shape=tuple(value.shape), dtype=value.dtype)
            found[step] = new
    for item in list(node.users):
        item.replace_all_uses_with(results[item.args[1]])
        graph.erase_node(item)
    graph.erase_node(node)


def _values(inner: fx.GraphModule, node: fx.Node) -> dict[fx.Node, Any]:
    """What the nodes of `inner` are for zeros of the captured shapes."""
    zeros = fx.node.map_arg(node.args, lambda n: torch.zeros(n.meta["shape"], dtype=n.meta["dtype"]))
    values: dict[fx.Node, Any] = {}

    def note(step: fx.Node, look: Any) -> Any:
        values[step] = call(step, look)
        return values[step]

    walk(inner.graph, zeros, note)
    return values
