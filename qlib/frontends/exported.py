"""Reading `torch.export`: an exported program as an `fx` graph of ATen operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils._pytree import TreeSpec, tree_unflatten

from qlib.errors import CaptureError
from qlib.frontends.untouched import untouched
from qlib.graph import attribute
from qlib.regions import IN_PYTHON, LOOP, region_of

NameOf = Callable[[Tensor], str]

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# Checks that export adds; the graph is specialised to the example anyway.
_GUARDS = ("aten._assert", "aten.sym_constrain", "_guards_fn")
# What torch writes into the nodes that it exports and quantizers go by.
KEPT = ("nn_module_stack", "source_fn_stack", "torch_fn", "stack_trace")
_REPEATED_CALL = re.compile(r"@\d+")


def export(module: nn.Module, inputs: tuple[Tensor, ...], name_of: NameOf) -> fx.Graph:
    """The graph of `module` by `torch.export`, run by Python; in-place operators are still in it.

    `name_of` gives the dotted name under which a tensor of the module will be kept.
    """
    with untouched(module):
        program = torch.export.export(module, inputs, strict=False)
    return _read(program, module, name_of)


def export_strict(module: nn.Module, inputs: tuple[Tensor, ...], name_of: NameOf) -> fx.Graph:
    """As `export`, with the Python code of `module` analysed instead of run, which refuses more and takes longer."""
    with untouched(module):
        program = torch.export.export(module, inputs, strict=True)
    return _read(program, module, name_of)


def _read(program: ExportedProgram, module: nn.Module, name_of: NameOf) -> fx.Graph:
    """Copy the graph, with the lifted inputs for parameters, buffers and constants turned into `get_attr` nodes."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}

    def argument(graph: fx.Graph, node: fx.Node) -> fx.Node:
        spec = specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            return graph.placeholder(node.name)
        return graph.create_node("get_attr", name_of(_lifted(program, module, spec)))

    graph, results = _copied(program.graph_module, argument, _reference)
    graph.output(tree_unflatten(results, program.call_spec.out_spec))
    return graph


def read_module(model: fx.GraphModule, name_of: NameOf) -> fx.Graph:
    """The graph of a module that ``torch.export.export(...).module()`` gave, in-place operators still in it.

    Sizes that it leaves open are those of the example that it was exported with. Raises CaptureError where it takes
    anything but tensors by position.
    """
    layout = getattr(model.graph._codegen, "pytree_info", None)
    if layout is None or not _is_flat(layout.in_spec):
        raise CaptureError("expected a module from torch.export.export(...).module() that takes tensors by position")

    def held(graph: fx.Graph, source: fx.GraphModule, node: fx.Node) -> fx.Node:
        owner, _, name = str(node.target).rpartition(".")
        if isinstance(getattr(source.get_submodule(owner), name), nn.Module):
            return _reference(graph, source, node)
        return graph.create_node("get_attr", name_of(attribute(model, str(node.target))))

    graph, results = _copied(model, lambda graph, node: graph.placeholder(node.name), held)
    graph.output(tree_unflatten(results, layout.out_spec))
    return graph


def _copied(
    source: fx.GraphModule,
    argument: Callable[[fx.Graph, fx.Node], fx.Node],
    held: Callable[[fx.Graph, fx.GraphModule, fx.Node], fx.Node],
) -> tuple[fx.Graph, Any]:
    """The nodes of a graph in a new one, and what it returns.

    `argument` makes the nodes for its inputs, `held` those for what the module holds. Open sizes are the example's.
    """
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    for node in source.graph.nodes:
        if node.op == "placeholder":
            values[node] = argument(graph, node)
        elif node.op == "get_attr":
            values[node] = held(graph, source, node)
        elif node.op == "output":
            return graph, _arguments(node, values)[0][0]
        elif isinstance(size := node.meta.get("val"), torch.SymInt):
            values[node] = _size(size)
        elif not str(node.target).startswith(_GUARDS):
            values[node] = graph.create_node(node.op, node.target, *_arguments(node, values))
            values[node].meta = _metadata(node)
            if node.target in IN_PYTHON:
                _check_region(values[node])
    raise ValueError("the graph has no output")


def _reference(graph: fx.Graph, source: fx.GraphModule, node: fx.Node) -> fx.Node:
    """A node for the graph of a branch or loop, which it holds in ``meta["graph"]``."""
    inner = getattr(source, str(node.target))
    if not all(user.target in IN_PYTHON for user in node.users):
        raise CaptureError(
            f"expected one straight line of operators, found the subgraph {node.target}; move changes of the gradient "
            "mode out of the module"
        )
    inside, results = _copied(inner, lambda graph, entry: graph.placeholder(entry.name), _reference)
    going = any(user.target is LOOP and user.args[0] is node for user in node.users)
    inside.output(results[0] if going and isinstance(results, tuple | list) else results if going else tuple(results))
    made = graph.create_node("get_attr", str(node.target))
    made.meta = {"module_path": "", "graph": inside}
    return made


def _check_region(node: fx.Node) -> None:
    """Refuse numbers among the operands, and say where the region stands if export doesn't."""
    region = region_of(node, lambda reference: reference.meta["graph"])
    assert region is not None
    known = [value.meta.get("source") for value in node.all_input_nodes]
    node.meta["source"] = node.meta["source"] or next((source for source in known if source), "")
    for operand in region.operands:
        if not isinstance(operand, fx.Node):
            raise CaptureError(
                f"expected tensors as operands of {node.target} at {node.meta['source'] or 'an unknown line'}, found "
                f"{operand!r}; make a tensor of it"
            )


def example_of(model: fx.GraphModule) -> tuple[Tensor, ...]:
    """Zeros in the shapes, types and strides that an exported module was exported with."""
    fakes = [node.meta["val"] for node in model.graph.find_nodes(op="placeholder")]
    return tuple(
        torch.empty_strided(*([_size(n) for n in ns] for ns in (x.shape, x.stride())), dtype=x.dtype).zero_()
        for x in fakes
    )


def _size(number: int | torch.SymInt) -> int:
    return int(number.node.hint) if isinstance(number, torch.SymInt) else number


def _is_flat(spec: TreeSpec) -> bool:
    """Whether the inputs are ``((tensor, ...), {})``."""
    args, kwargs = spec.children()
    return bool(kwargs.num_leaves == 0) and all(child.is_leaf() for child in args.children())


def _metadata(node: fx.Node) -> dict[str, Any]:
    kept = {key: node.meta[key] for key in KEPT if key in node.meta}
    return {**kept, "exported": node.target, "module_path": _module_path(node.meta), "source": _source(node.meta)}


def _arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[Any, Any]:
    return fx.node.map_arg((node.args, node.kwargs), values.__getitem__)


def _lifted(program: ExportedProgram, module: nn.Module, spec: InputSpec) -> Tensor:
    """The tensor that a lifted input stands for: the module's own object where it has one under that name."""
    target = str(spec.target)
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Tensor):
        return value
    found = program.constants[target] if target in program.constants else program.state_dict[target]
    if not isinstance(found, Tensor):
        raise CaptureError(
            f"expected tensors only, found {type(found).__name__} {target!r} in the module; replace it by a tensor"
        )
    return found


def _module_path(meta: Mapping[str, Any]) -> str:
    """The path of the innermost module, without the mark that tells repeated calls apart."""
    stack = meta.get("nn_module_stack")
    return _REPEATED_CALL.sub("", list(stack.values())[-1][0]) if stack else ""


def _source(meta: Mapping[str, Any]) -> str:
    """The innermost line of the user's code, as "file.py:12", or an empty string."""
    for path, number in reversed(_FRAME.findall(meta.get("stack_trace") or "")):
        if not path.startswith(torch.__path__[0]):
            return f"{path.rpartition('/')[2]}:{number}"
    return ""
