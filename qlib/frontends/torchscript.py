"""Reading TorchScript: a traced module as an `fx` graph of ATen operators."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import prod
from types import MappingProxyType
from typing import Any

import torch
import torch.jit._trace as tracer
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten, tree_unflatten

from qlib.errors import CaptureError
from qlib.frontends.untouched import untouched
from qlib.graph import call

NameOf = Callable[[Tensor], str]

# TorchScript stores these enumerations as integers, in the order in which C++ declares them.
SCALAR_TYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool, None, None, None, torch.bfloat16),
)
_MEMORY_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
_ENUMERATIONS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {"ScalarType": SCALAR_TYPES, "MemoryFormat": _MEMORY_FORMATS, "Layout": (torch.strided,)}
)
# A traced Python number is a constant without dimensions of one of these types.
_NUMBER_DTYPES = (torch.int64, torch.float64, torch.complex128, torch.bool)
# Operators whose tensor arguments may be Python numbers.
_TAKE_NUMBERS = frozenset(
    f"aten::{name}{suffix}"
    for name in ("add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "where", "rsub")
    for suffix in ("", "_")
)
_STACK_LINE = re.compile(r"(.+?)\((\d+)\): ")
_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "prim::If": "make the condition independent of the data, or move the branch out of the module",
        "prim::Loop": "make the number of rounds independent of the data, or unroll the loop",
        "prim::PythonOp": "replace the custom autograd function by operators of torch",
    }
)


@dataclass(frozen=True)
class _Number:
    """A number that a trace carries as a tensor, because it was computed from sizes."""

    value: Any


@dataclass(frozen=True)
class _Type:
    """Shape and type of a tensor as the trace saw it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Output:
    """What one run of a module returned: leaves in order, their structure, and the buffers that it assigned anew."""

    leaves: tuple[Any, ...]
    structure: Any
    assigned: Mapping[str, Tensor]


class _Flat(nn.Module):
    """Calls a module and returns the tensors of its output as one tuple, which is all that tracing can handle.

    The structure of the output goes into the list `outputs`; new values of assigned buffers follow the output.
    """

    def __init__(self, module: nn.Module, outputs: list[Output]) -> None:
        super().__init__()
        self.module = module
        self.training = module.training
        self._outputs = outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the module."""
        before = dict(self.module.named_buffers())
        leaves, structure = tree_flatten(self.module(*inputs))
        assigned = {name: new for name, new in self.module.named_buffers() if new is not before.get(name)}
        old = {name: before[name] for name in assigned if name in before}
        self._outputs.append(Output(tuple(leaves), structure, old))
        return (*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *(assigned[name] for name in old))


@dataclass(frozen=True)
class _Import:
    """One walk over a TorchScript graph: what it writes (`graph`) and what is known so far."""

    name_of: NameOf
    graph: fx.Graph
    values: dict[int, Any] = field(default_factory=dict)
    types: dict[fx.Node, _Type] = field(default_factory=dict)

    def inputs(self, node: Any) -> list[Any]:
        """The values that a TorchScript node takes."""
        return [self.values[value.unique()] for value in node.inputs()]

    def put(self, value: Any, result: Any) -> None:
        """Remember what a TorchScript value stands for."""
        self.values[value.unique()] = result
        if isinstance(result, fx.Node) and value.isCompleteTensor():
            self.types[result] = _Type(tuple(value.type().sizes()), value.type().dtype())

    def argument(self, value: Any) -> Any:
        """A value as it stands in the arguments of an `fx` node."""
        if isinstance(value, list | tuple):
            return [self.argument(item) for item in value]
        if isinstance(value, Tensor):
            return self.graph.create_node("get_attr", self.name_of(value))
        return value.value if isinstance(value, _Number) else value


def trace(module: nn.Module, inputs: tuple[Tensor, ...], name_of: NameOf) -> fx.Graph:
    """The graph of one run of `module`, by the tracer of `torch.jit`; in-place operators are still in it.

    `name_of` gives the dotted name under which a tensor of the module will be kept. Control flow is the
    example's. Raises CaptureError for a graph that is not one straight line of ATen operators.
    """
    outputs: list[Output] = []
    root = _Flat(module, outputs)
    state = _state(module)
    with untouched(module):
        source = _record(root, inputs, state)
    walk = _Import(name_of, fx.Graph())
    for number, value in enumerate(source.inputs()):
        is_input = number < len(inputs)
        walk.put(value, walk.graph.placeholder(f"input_{number}") if is_input else state[number - len(inputs)])
    for node in source.nodes():
        _read(walk, node)
    results = [walk.values[value.unique()] for value in source.outputs()]
    # The tracer makes a tuple of several tensors, but not of one.
    packed = isinstance(results[0], list | tuple)
    _finish(walk, walk.argument(results[0] if packed else results), outputs[-1])
    return walk.graph


def _state(module: nn.Module) -> list[Tensor]:
    """The tensors that a module holds, each once: parameters, buffers and plain attributes."""
    plain = (value for owner in module.modules() for value in vars(owner).values() if isinstance(value, Tensor))
    return list({id(tensor): tensor for tensor in (*module.parameters(), *module.buffers(), *plain)}.values())


def _record(root: nn.Module, inputs: tuple[Tensor, ...], state: list[Tensor]) -> Any:
    """Run `root` under torch's tracer; the graph takes the inputs and then the state.

    This is what `torch.jit.trace` does before it makes a ScriptModule of the graph, which takes ten times as long and
    which nothing here needs.
    """
    scopes = {submodule: f"__module.{path}" for path, submodule in root.named_modules() if path}
    before, tracer._trace_module_map = tracer._trace_module_map, scopes
    try:
        graph, _ = torch._C._create_graph_by_tracing(
            lambda *values: root(*values[: len(inputs)]),
            (*inputs, *state),
            tracer._create_interpreter_name_lookup_fn(),
            False,
            False,
            None,
            [],
        )
    finally:
        tracer._trace_module_map = before
    torch._C._jit_pass_inline(graph)
    return graph


def _finish(walk: _Import, results: list[Any], output: Output) -> None:
    """Write assigned buffers back and return the output in the module's own structure."""
    values = iter(results)
    leaves = [next(values) if isinstance(leaf, Tensor) else leaf for leaf in output.leaves]
    for buffer, value in zip(output.assigned.values(), values, strict=True):
        walk.graph.call_function(torch.ops.aten.copy_.default, (walk.argument(buffer), value))
    walk.graph.output(tree_unflatten(leaves, output.structure))


def _read(walk: _Import, node: Any) -> None:
    """Translate one TorchScript node."""
    kind = node.kind()
    handler = _HANDLERS.get(kind) or (_read_aten if kind.startswith("aten::") else None)
    if handler is None:
        place = source_line(node.sourceRange()) or "an unknown line"
        advice = _ADVICE.get(kind, "try method='export'")
        raise CaptureError(f"expected ATen operators only, found {kind} at {place}; {advice}")
    handler(walk, node)


def _read_aten(walk: _Import, node: Any) -> None:
    target = overload_of(node.schema())
    given = walk.inputs(node)
    outputs = list(node.outputs())
    flat = list(_flatten(given))
    if any(isinstance(value, _Number) for value in flat) and not any(isinstance(value, fx.Node) for value in flat):
        tensors = [torch.tensor(value.value) if isinstance(value, _Number) else value for value in given]
        args, kwargs = call_arguments(target, tensors)
        walk.put(outputs[0], _Number(target(*args, **kwargs).item()))
        return
    given = _with_numbers(walk, target, given, outputs[0])
    args, kwargs = call_arguments(target, [walk.argument(value) for value in given])
    result = call(walk.graph, target, *args)
    if kwargs:
        result.kwargs = kwargs
    result.meta.update(module_path=_module_path(node.scopeName()), source=source_line(node.sourceRange()))
    if len(outputs) == 1:
        walk.put(outputs[0], result)
    else:
        _unpack(walk, outputs, result)


def call_arguments(target: OpOverload, given: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments for `target`, from one value for each argument of its schema."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument, value in zip(target._schema.arguments, given, strict=True):
        if argument.kwarg_only:
            kwargs[argument.name] = _enumerated(value, str(argument.real_type))
        else:
            args.append(_enumerated(value, str(argument.real_type)))
    return args, kwargs


def _enumerated(value: Any, kind: str) -> Any:
    """A dtype, layout, memory format or device where the schema asks for one, else the value as it is."""
    if isinstance(value, int):
        members = _ENUMERATIONS.get(kind.removeprefix("Optional[").removesuffix("]"))
        return value if members is None else members[value]
    return torch.device(value) if isinstance(value, str) and "Device" in kind else value


def _with_numbers(walk: _Import, target: OpOverload, given: list[Any], output: Any) -> list[Any]:
    """Turn the constants that Python numbers become in a trace back into numbers.

    A constant stays a tensor where the type of the result shows that it was one.
    """
    first = next((value for value in given if isinstance(value, fx.Node)), None)
    if target._schema.name not in _TAKE_NUMBERS or first is None:
        return given
    numbers = [_number(value) for value in given]
    dtype = walk.types[first].dtype if first in walk.types else None
    seen = output.type().dtype() if output.isCompleteTensor() else None
    if dtype is not None and seen not in (None, torch.bool):
        like = torch.empty(1, dtype=dtype)
        divided = torch.float32 if "div" in target._schema.name and not dtype.is_floating_point else seen
        if any(n is not None and torch.result_type(like, n) not in (seen, divided) for n in numbers):
            return given
    return [value if number is None else number for value, number in zip(given, numbers, strict=True)]


def _number(value: Any) -> Any:
    """The Python number that a traced constant stands for, or None."""
    if isinstance(value, _Number):
        return value.value
    if isinstance(value, Tensor) and value.dim() == 0 and value.dtype in _NUMBER_DTYPES:
        return value.item()
    return None


@cache
def overload_of(schema: str) -> OpOverload:
    """The overload that a TorchScript node with this schema calls."""
    parsed = torch._C.parse_schema(schema)
    packet = getattr(torch.ops.aten, parsed.name.removeprefix("aten::"))
    found: OpOverload = getattr(packet, parsed.overload_name or "default")
    return found


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _module_path(scope: str) -> str:
    """The path of the innermost module of a scope such as ``__module.module/__module.module.fc``."""
    return scope.rpartition("/")[2].removeprefix("__module.module").removeprefix(".")


@lru_cache(maxsize=4096)
def source_line(stack: str) -> str:
    """The innermost line of a stack, as "file.py:12", that belongs neither to torch nor to this file."""
    for match in _STACK_LINE.finditer(stack):
        path, number = match[1].strip(), match[2]
        if path == __file__:
            break
        if not path.startswith(torch.__path__[0]):
            return f"{path.rpartition('/')[2]}:{number}"
    return ""


# --------------------------------------------------------------------------------------------- nodes that are not ATen


def _constant(walk: _Import, node: Any) -> None:
    walk.put(node.output(), node.output().toIValue())


def _construct(walk: _Import, node: Any) -> None:
    walk.put(node.output(), walk.inputs(node))


def _unpack_node(walk: _Import, node: Any) -> None:
    _unpack(walk, list(node.outputs()), walk.values[node.input().unique()])


def _unpack(walk: _Import, outputs: list[Any], packed: Any) -> None:
    """Take the items out of a list or of a node with several results."""
    for index, output in enumerate(outputs):
        if isinstance(packed, fx.Node):
            item = walk.graph.call_function(operator.getitem, (packed, index))
            item.meta = dict(packed.meta)
            walk.put(output, item)
        else:
            walk.put(output, packed[index])


def _to_number(walk: _Import, node: Any) -> None:
    """Numbers to tensors and back, which is nothing for constants."""
    value = next(iter(walk.inputs(node)))
    if isinstance(value, fx.Node):
        place = source_line(node.sourceRange()) or "an unknown line"
        raise CaptureError(
            f"expected numbers that don't depend on the data, found {node.kind()} of a tensor at {place}"
        )
    number = _number(value)
    plain = value if number is None else number
    tensor = node.output().type().kind() == "TensorType"
    walk.put(node.output(), _Number(plain) if tensor else _CASTS.get(node.kind(), lambda value: value)(plain))


def _size(walk: _Import, node: Any) -> None:
    _, *dim = walk.inputs(node)
    shape = _shape(walk, node)
    walk.put(node.output(), shape[dim[0]] if dim else shape)


def _dim(walk: _Import, node: Any) -> None:
    walk.put(node.output(), len(_shape(walk, node)))


def _numel(walk: _Import, node: Any) -> None:
    walk.put(node.output(), prod(_shape(walk, node)))


def _shape(walk: _Import, node: Any) -> list[int]:
    """The shape of a node's first input, which the trace has seen."""
    tensor = walk.values[next(node.inputs()).unique()]
    return list(walk.types[tensor].shape if isinstance(tensor, fx.Node) else tensor.shape)


def _item(walk: _Import, node: Any) -> None:
    items, index = walk.inputs(node)
    walk.put(node.output(), items[index])


def _device(walk: _Import, node: Any) -> None:
    walk.put(node.output(), torch.device("cpu"))


_CASTS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"aten::Int": int, "aten::Float": float, "aten::Bool": bool}
)
_HANDLERS: Mapping[str, Callable[[_Import, Any], None]] = MappingProxyType(
    {
        "prim::Constant": _constant,
        "prim::ListConstruct": _construct,
        "prim::TupleConstruct": _construct,
        "prim::ListUnpack": _unpack_node,
        "prim::TupleUnpack": _unpack_node,
        "prim::NumToTensor": _to_number,
        "aten::Int": _to_number,
        "aten::Float": _to_number,
        "aten::Bool": _to_number,
        "aten::IntImplicit": _to_number,
        "aten::FloatImplicit": _to_number,
        "aten::ScalarImplicit": _to_number,
        "aten::size": _size,
        "aten::dim": _dim,
        "aten::numel": _numel,
        "aten::__getitem__": _item,
        "prim::device": _device,
    }
)
