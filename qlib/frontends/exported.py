"""Reading `torch.export`: an exported program as an `fx` graph of ATen operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils._pytree import tree_unflatten

from qlib.errors import CaptureError
from qlib.frontends.untouched import untouched

NameOf = Callable[[Tensor], str]

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# Checks that export adds; the graph is specialised to the example anyway.
_GUARDS = ("aten._assert", "aten.sym_constrain")
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
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                values[node] = graph.placeholder(node.name)
            else:
                values[node] = graph.create_node("get_attr", name_of(_lifted(program, module, spec)))
        elif node.op == "call_function":
            if str(node.target).startswith(_GUARDS):
                continue
            values[node] = graph.create_node(node.op, node.target, *_arguments(node, values))
            values[node].meta = {"module_path": _module_path(node.meta), "source": _source(node.meta)}
        elif node.op == "get_attr":
            raise CaptureError(
                f"expected one straight line of operators, found the subgraph {node.target}; move conditions and loops "
                "that depend on the data, and changes of the gradient mode, out of the module"
            )
        else:
            leaves, _ = _arguments(node, values)
            graph.output(tree_unflatten(leaves[0], program.call_spec.out_spec))
    return graph


def _arguments(node: fx.Node, values: Mapping[fx.Node, fx.Node]) -> tuple[Any, Any]:
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
