"""Reading `torch.jit.script`: a compiled module as an `fx` graph of ATen operators, for the shapes of the example.

The TorchScript program is run on the example, method by method, and each operator that makes a tensor is written
down. Conditions and loops that depend on attributes, arguments or shapes are thereby resolved; one that depends on the
data of a tensor can't be, and is an error that names the line.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlib.errors import CaptureError
from qlib.frontends.torchscript import NameOf, call_arguments, overload_of
from qlib.frontends.untouched import private_copy

MAX_ROUNDS = 10_000

_LINE = re.compile(r'File "([^"]+)", line (\d+)')
# What turns the data of a tensor into a number; the operators that ask for its shape or type are no such thing.
_OF_DATA = frozenset(
    {"aten::item", "aten::Bool", "aten::Int", "aten::Float", "aten::IntImplicit", "aten::FloatImplicit"}
)
_OF_DATA |= {"aten::ScalarImplicit", "aten::equal", "aten::is_nonzero", "aten::allclose", "prim::tolist"}


@dataclass(frozen=True)
class _Traced:
    """A tensor of the graph: its node, and its value on the example."""

    node: fx.Node
    value: Tensor


@dataclass(frozen=True)
class _Owner:
    """A module object inside the program."""

    module: Any
    path: str

    def attribute(self, name: str) -> Any:
        """The module, tensor or plain value that the module calls `name`."""
        value = getattr(self.module, name)
        return _Owner(value, f"{self.path}.{name}" if self.path else name) if isinstance(value, nn.Module) else value


@dataclass(frozen=True)
class _Frame:
    """One method or function being run: where it belongs, what is written, and the values so far.

    `assigned` holds the attributes that the program sets, with the values before and after.
    """

    graph: fx.Graph
    name_of: NameOf
    path: str
    assigned: dict[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)

    def inner(self, path: str) -> _Frame:
        """The frame of a method or function that is called from this one."""
        return _Frame(self.graph, self.name_of, path, self.assigned)

    def inputs(self, node: Any) -> list[Any]:
        """The values that a TorchScript node takes."""
        return [self.values[value.unique()] for value in node.inputs()]

    def put(self, node: Any, *results: Any) -> None:
        """Remember a node's results."""
        for value, result in zip(node.outputs(), results, strict=True):
            self.values[value.unique()] = result


def script(module: nn.Module, inputs: tuple[Tensor, ...], name_of: NameOf) -> fx.Graph:
    """The graph of `module` by `torch.jit.script`; in-place operators are still in it.

    A module that is a ScriptModule already is taken as it is. `name_of` gives the dotted name under which a tensor of
    the module will be kept. Raises CaptureError where the data decides what is run.
    """
    program = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module)
    graph = fx.Graph()
    start = _Frame(graph, name_of, "")
    arguments = [_Traced(graph.placeholder(f"input_{n}"), value.clone()) for n, value in enumerate(inputs)]
    with _contents_kept(program):
        # Overloads are numbered; the first is the one that takes tensors.
        entry = "forward" if hasattr(program, "forward") else "forward__0"
        result = _method(start, _Owner(program, ""), entry, arguments)
    for before, after in start.assigned.values():
        if isinstance(before, Tensor):
            graph.call_function(torch.ops.aten.copy_.default, (_written(start, before), _written(start, after)))
    graph.output(_written(start, result))
    return graph


@contextmanager
def _contents_kept(module: nn.Module) -> Iterator[None]:
    """Give the buffers their contents back, whatever the run does to them; attributes are never set in earnest."""
    contents = [(buffer, private_copy(buffer)) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, content in contents:
                buffer.copy_(content)


def _method(frame: _Frame, owner: _Owner, name: str, arguments: list[Any]) -> Any:
    body = getattr(owner.module, name).graph
    missing = len(list(body.inputs())) - 1 - len(arguments)
    defaults = getattr(owner.module, name).schema.arguments[1 + len(arguments) :] if missing else []
    given = [owner, *arguments, *(argument.default_value for argument in defaults)]
    return _body(frame.inner(owner.path), body, given)


def _body(frame: _Frame, graph: Any, arguments: list[Any]) -> Any:
    """Run a graph or a block and return what it returns: one value, or a list of several."""
    for value, given in zip(graph.inputs(), arguments, strict=True):
        frame.values[value.unique()] = given
    for node in graph.nodes():
        _step(frame, node)
    results = [frame.values[value.unique()] for value in graph.outputs()]
    return results[0] if len(results) == 1 else results


def _step(frame: _Frame, node: Any) -> None:
    handler = _HANDLERS.get(node.kind())
    if handler is not None:
        handler(frame, node)
        return
    given = frame.inputs(node)
    if given and isinstance(given[0], list) and node.kind() in _ON_LISTS:
        result = _ON_LISTS[node.kind()](*given)
        frame.put(node, *([result] if len(list(node.outputs())) == 1 else []))
    elif node.kind().startswith("aten::") and any(_makes_tensors(value.type()) for value in node.outputs()):
        _record(frame, node, given)
    else:
        _compute(frame, node, given)


def _makes_tensors(kind: Any) -> bool:
    if kind.kind() in ("ListType", "OptionalType"):
        return _makes_tensors(kind.getElementType())
    return bool(kind.kind() == "TensorType")


def _record(frame: _Frame, node: Any, given: list[Any]) -> None:
    """Run an operator that makes tensors on the example, and write it down."""
    target = overload_of(node.schema())
    args, kwargs = call_arguments(target, [_written(frame, value) for value in given])
    made = frame.graph.call_function(target, tuple(args), kwargs)
    made.meta = {"module_path": frame.path, "source": _source(node)}
    args, kwargs = call_arguments(target, [_plain(value) for value in given])
    result = target(*args, **kwargs)
    if isinstance(result, list | tuple):
        items = [_Traced(frame.graph.call_function(operator.getitem, (made, n)), item) for n, item in enumerate(result)]
        for item in items:
            item.node.meta = dict(made.meta)
        frame.put(node, *([items] if len(list(node.outputs())) == 1 else items))
    else:
        frame.put(node, _Traced(made, result))


def _compute(frame: _Frame, node: Any, given: list[Any]) -> None:
    """Run an operator that makes no tensor: arithmetic of numbers, and questions about shapes and types."""
    if node.kind() in _OF_DATA and any(isinstance(value, _Traced | Tensor) for value in given):
        raise CaptureError(
            f"expected a program that does not depend on the data, found {node.kind()} of a tensor at {_place(node)}: "
            "move what depends on the data out of the module"
        )
    try:
        overload = torch._C.parse_schema(node.schema()).overload_name
        run, *_ = torch._C._get_operation_overload(node.kind(), overload)
        result = run(*(_plain(value) for value in given))
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        raise CaptureError(f"can't run {node.kind()} at {_place(node)}: {said}; try method='export'") from error
    outputs = len(list(node.outputs()))
    frame.put(node, *([result] if outputs == 1 else result if outputs else []))


def _written(frame: _Frame, value: Any) -> Any:
    """A value as it stands in the arguments of an `fx` node."""
    if isinstance(value, _Traced):
        return value.node
    if isinstance(value, Tensor):
        return frame.graph.create_node("get_attr", frame.name_of(value))
    if isinstance(value, list | tuple):
        return type(value)(_written(frame, item) for item in value)
    if isinstance(value, dict):
        return {key: _written(frame, item) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    """A value as operators take it."""
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value.value if isinstance(value, _Traced) else value


def _source(node: Any) -> str:
    """The innermost line of the user's code, as "file.py:12", or an empty string."""
    for path, number in _LINE.findall(node.sourceRange()):
        if not path.startswith((torch.__path__[0], "<")):
            return f"{path.rpartition('/')[2]}:{number}"
    return ""


def _place(node: Any) -> str:
    return _source(node) or "an unknown line"


# ----------------------------------------------------------------------------------------- nodes that are no operators


def _constant(frame: _Frame, node: Any) -> None:
    value = node.output()
    function = value.type().kind() == "FunctionType"
    frame.put(node, value.type().annotation_str if function else value.toIValue())


def _get_attr(frame: _Frame, node: Any) -> None:
    (owner,) = frame.inputs(node)
    name = node.s("name")
    assigned = frame.assigned.get((owner.path, name))
    frame.put(node, owner.attribute(name) if assigned is None else assigned[1])


def _set_attr(frame: _Frame, node: Any) -> None:
    owner, value = frame.inputs(node)
    name = node.s("name")
    before, _ = frame.assigned.get((owner.path, name), (owner.attribute(name), None))
    frame.assigned[(owner.path, name)] = (before, value)


def _call_method(frame: _Frame, node: Any) -> None:
    owner, *arguments = frame.inputs(node)
    frame.put(node, _method(frame, owner, node.s("name"), arguments))


def _call_function(frame: _Frame, node: Any) -> None:
    name, *arguments = frame.inputs(node)
    body = torch.jit._state._python_cu.find_function(name).graph
    frame.put(node, _body(frame.inner(frame.path), body, arguments))


def _if(frame: _Frame, node: Any) -> None:
    (condition,) = frame.inputs(node)
    block = list(node.blocks())[0 if condition else 1]
    result = _body(frame, block, [])
    frame.put(node, *([result] if len(list(node.outputs())) == 1 else result))


def _loop(frame: _Frame, node: Any) -> None:
    rounds, going, *carried = frame.inputs(node)
    (block,) = node.blocks()
    number = 0
    while going and number < rounds:
        if number >= MAX_ROUNDS:
            raise CaptureError(f"expected a loop of at most {MAX_ROUNDS} rounds at {_place(node)}, found more")
        result = _body(frame, block, [number, *carried])
        going, *carried = result if isinstance(result, list) and carried else [result]
        number += 1
    frame.put(node, *carried)


def _list(frame: _Frame, node: Any) -> None:
    frame.put(node, list(frame.inputs(node)))


def _tuple(frame: _Frame, node: Any) -> None:
    frame.put(node, tuple(frame.inputs(node)))


def _dict(frame: _Frame, node: Any) -> None:
    given = frame.inputs(node)
    frame.put(node, dict(zip(given[::2], given[1::2], strict=True)))


def _unpack(frame: _Frame, node: Any) -> None:
    (items,) = frame.inputs(node)
    frame.put(node, *items)


def _raise(frame: _Frame, node: Any) -> None:
    message = next((value for value in frame.inputs(node) if isinstance(value, str)), "an exception")
    raise CaptureError(f"the module raises {message!r} on the example at {_place(node)}")


def _by(function: Callable[..., Any]) -> Callable[[_Frame, Any], None]:
    """A node that a Python function stands for; what changes a list in place has a result all the same."""

    def run(frame: _Frame, node: Any) -> None:
        result = function(*frame.inputs(node))
        frame.put(node, *([result] if len(list(node.outputs())) == 1 else []))

    return run


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


# Operators that share their name with one on tensors, or that take lists of anything.
_ON_LISTS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "aten::slice": lambda items, start, stop, step: items[start:stop:step],
        "aten::add": operator.add,
        "aten::mul": operator.mul,
        "aten::extend": lambda items, more: items.extend(more),
        "aten::pop": lambda items, index: items.pop(index),
    }
)
_HANDLERS: Mapping[str, Callable[[_Frame, Any], None]] = MappingProxyType(
    {
        "prim::Constant": _constant,
        "prim::GetAttr": _get_attr,
        "prim::SetAttr": _set_attr,
        "prim::CallMethod": _call_method,
        "prim::CallFunction": _call_function,
        "prim::If": _if,
        "prim::Loop": _loop,
        "prim::ListConstruct": _list,
        "prim::TupleConstruct": _tuple,
        "prim::DictConstruct": _dict,
        "prim::ListUnpack": _unpack,
        "prim::TupleUnpack": _unpack,
        "prim::TupleIndex": _by(lambda items, index: items[index]),
        "prim::unchecked_cast": _by(lambda value: value),
        "prim::Uninitialized": _by(lambda: None),
        "prim::RaiseException": _raise,
        "prim::Print": _by(lambda *values: None),
        "aten::__is__": _by(lambda a, b: a is b),
        "aten::__isnot__": _by(lambda a, b: a is not b),
        "aten::__getitem__": _by(lambda items, index: items[index]),
        "aten::_set_item": _by(operator.setitem),
        "aten::append": _by(_append),
        "aten::keys": _by(list),
        "aten::values": _by(lambda items: list(items.values())),
        "aten::items": _by(lambda items: list(items.items())),
        "aten::list": _by(list),
        "aten::len": _by(len),
    }
)
