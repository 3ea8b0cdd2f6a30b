"""What an ExecuTorch program runs, read off the subgraphs that were handed to XNNPACK and the graph around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from conformance.backends.executorch_names import Executed, Source

_DELEGATE = "executorch_call_delegate"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_INTEGERS = {"int8": "qint8", "uint8": "quint8", "float32": "fp32"}
# An operator that XNNPACK got from no node.
_NO_HANDLE = 65535


@dataclass(frozen=True)
class Lowered:
    """A program before it is written: ExecuTorch's own graph, and XNNPACK's subgraphs by their bytes."""

    manager: Any
    subgraphs: Mapping[bytes, Any]


@contextlib.contextmanager
def recorded() -> Iterator[dict[bytes, Any]]:
    """Keep the subgraphs that are written for XNNPACK meanwhile, by their bytes."""
    from executorch.backends.xnnpack import xnnpack_preprocess

    kept: dict[bytes, Any] = {}
    write = xnnpack_preprocess.serialize_xnnpack_binary

    def keep(graph: Any, constants: Any) -> bytes:
        written: bytes = write(graph, constants)
        kept[written] = graph
        return written

    xnnpack_preprocess.serialize_xnnpack_binary = keep
    try:
        yield kept
    finally:
        xnnpack_preprocess.serialize_xnnpack_binary = write


def sources(model: Any) -> dict[str, Source]:
    """The nodes of a quantized graph that call operators, by name."""
    found = {}
    for node in model.graph.nodes:
        if node.op == "call_function":
            readers = tuple(user.name for user in node.users if user.op == "call_function")
            scalar = any(_one(model, operand) for operand in _operands(node))
            found[node.name] = Source(node.name, operator(node.target), readers, scalar)
    return found


def operator(target: Any) -> str:
    """The short name of what a node calls: no namespace, no overload, neither in place nor a copy of a view."""
    schema = getattr(target, "_schema", None)
    name = str(schema.name).partition("::")[2] if schema is not None else str(getattr(target, "__name__", target))
    return name if name == "_to_copy" else name.removesuffix("_copy").removesuffix("_")


def _operands(node: Any) -> list[Any]:
    """A node's operands, as they are before they were dequantized."""
    return [arg.args[0] if "dequantize" in str(arg.target) else arg for arg in node.all_input_nodes]


def _one(model: Any, node: Any) -> bool:
    """Whether a node is a constant of one element."""
    return node.op == "get_attr" and bool(attrgetter(node.target)(model).numel() == 1)


def executed(lowered: Lowered) -> tuple[Executed, ...]:
    """The operators that a program runs, in order."""
    graph = lowered.manager.exported_program().graph_module
    found: list[Executed] = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or operator(node.target) in ("getitem", "alloc"):
            continue
        if _DELEGATE in str(node.target):
            inner = getattr(graph, node.args[0].target)
            found.extend(_subgraph(lowered.subgraphs[inner.processed_bytes], _origins(inner.original_module)))
        else:
            types = tuple(_type(arg) for arg in node.all_input_nodes)
            found.append(Executed(operator(node.target), types, (_type(node),), _origin(node)))
    return tuple(found)


def _origins(program: Any) -> dict[int, str]:
    """The nodes of the quantized graph by the handles that their operators carry."""
    return {node.meta["debug_handle"]: _origin(node) for node in program.graph.nodes if node.meta.get("debug_handle")}


def _origin(node: Any) -> str:
    """The node of the quantized graph that one of the program was made from; an empty string for none."""
    sources = node.meta.get("from_node") or ()
    if not sources:
        return ""
    source = sources[-1]
    while source.from_node:
        source = source.from_node[-1]
    return str(source.name)


def _subgraph(graph: Any, origins: Mapping[int, str]) -> Iterator[Executed]:
    kinds = {
        _tensor(value).id_out: _tensor(value).datatype.name.removeprefix("xnn_datatype_") for value in graph.xvalues
    }
    for node in graph.xnodes:
        union = node.xnode_union
        ids = {field.name: getattr(union, field.name) for field in fields(union)}
        given = [
            ids[name] for name in ids if name.endswith("_id") and not name.startswith("output") and name != "bias_id"
        ]
        made = [ids[name] for name in ids if name.startswith("output") and name.endswith("_id")]
        yield Executed(
            type(union).__name__,
            tuple(kinds[i] for i in given if i in kinds),
            tuple(kinds[i] for i in made if i in kinds),
            origins.get(node.debug_handle, "") if node.debug_handle != _NO_HANDLE else "",
            node.output_min_max is not None,
        )


def _tensor(value: Any) -> Any:
    """The tensor of a value, quantized or not."""
    return getattr(value.xvalue_union, "tensor_value", value.xvalue_union)


def _type(node: Any) -> str:
    value = node.meta.get("val")
    name = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return _INTEGERS.get(name, name)


def steps(program: Any) -> tuple[float | None, ...]:
    """The step of each output of the module that is dequantized from one scale."""
    outputs = {spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"}
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    return tuple(_step(_inside(program.graph_module, node)) for node in returned if node.name in outputs)


def _inside(graph: Any, node: Any) -> Any:
    """The node that makes a value, in the subgraph where one does."""
    if operator(node.target) != "getitem" or _DELEGATE not in str(node.args[0].target):
        return node
    inner = getattr(graph, node.args[0].args[0].target).original_module
    return next(n for n in inner.graph.nodes if n.op == "output").args[0][node.args[1]]


def _step(node: Any) -> float | None:
    return float(node.args[1]) if _DEQUANTIZE in str(node.target) else None
