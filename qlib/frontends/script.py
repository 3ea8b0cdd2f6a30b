"""Reading `torch.jit.script`: a compiled module as an `fx` graph of ATen operators, for the shapes of the example.

The TorchScript program is run on the example, method by method, and each operator that makes a tensor is written
down. Conditions and loops that depend on attributes, arguments or shapes are thereby resolved; those that depend on the
data of a tensor become branches and loops of the graph (`qlib.frontends.decisions`). A branch that raises is left out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qlib.errors import CaptureError
from qlib.frontends.decisions import Place, Rounds, branch, loop
from qlib.frontends.numbers import (
    DTYPES,
    ON_NUMBERS,
    TAKES_OUT,
    calculate,
    compare,
    dtype_of,
    lifted,
    of_dtype,
    overload_for,
    take_out,
)
from qlib.frontends.scope import Number, Scope, Traced, Unset, plain, written
from qlib.frontends.torchscript import NameOf, call_arguments, overload_of
from qlib.frontends.untouched import private_copy

MAX_ROUNDS = 10_000

_LINE = re.compile(r'File "([^"]+)", line (\d+)')
# What turns the data of tensors into plain values that no tensor can hold.
_OF_DATA = frozenset({"aten::allclose", "prim::tolist"})
# What only says something to a person.
_TEXT = frozenset({"aten::format", "aten::str", "aten::percentFormat"})
_ENDLESS = 2**62


class _RaisesError(CaptureError):
    """The program raises an exception."""


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
    """One method or function being run: where it belongs, where it is written, and the values so far.

    `assigned` holds the attributes that the program sets, with the values before and after.
    """

    scope: Scope
    path: str
    assigned: dict[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)

    def inner(self, path: str) -> _Frame:
        """The frame of a method or function that is called from this one."""
        return _Frame(self.scope, path, self.assigned)

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
    scope = Scope(fx.Graph(), name_of)
    start = _Frame(scope, "")
    arguments = [Traced(scope.entry(f"input_{n}"), value.clone()) for n, value in enumerate(inputs)]
    with _contents_kept(program):
        # Overloads are numbered; the first is the one that takes tensors.
        entry = "forward" if hasattr(program, "forward") else "forward__0"
        result = _method(start, _Owner(program, ""), entry, arguments)
    for before, after in start.assigned.values():
        if isinstance(before, Tensor):
            scope.call(torch.ops.aten.copy_.default, before, after)
    scope.graph.output(written(scope, result))
    return scope.graph


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
    return _one(_body(frame.inner(owner.path), body, given))


def _body(frame: _Frame, graph: Any, arguments: list[Any]) -> list[Any]:
    """Run a graph or a block and return what it returns."""
    for value, given in zip(graph.inputs(), arguments, strict=True):
        frame.values[value.unique()] = given
    for node in graph.nodes():
        _step(frame, node)
    return [frame.values[value.unique()] for value in graph.outputs()]


def _one(results: list[Any]) -> Any:
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
    target, scope, dtype = overload_of(node.schema()), frame.scope, None
    if any(isinstance(value, Number) for value in given):
        args, kwargs = call_arguments(target, [_known(value) for value in plain(scope, given)])
        dtype = target(*args, **kwargs).dtype if not target._schema.is_mutable else None
        target = overload_for(target, given) or _refuse_number(node)
        given = lifted(scope, target, given)
    args, kwargs = call_arguments(target, [written(scope, value) for value in given])
    made = scope.graph.call_function(target, tuple(args), kwargs)
    made.meta = {"module_path": frame.path, "source": _source(node)}
    args, kwargs = call_arguments(target, [plain(scope, value) for value in given])
    result = target(*args, **kwargs)
    if isinstance(result, list | tuple):
        items = [Traced(scope.graph.call_function(operator.getitem, (made, n)), item) for n, item in enumerate(result)]
        for item in items:
            item.node.meta = dict(made.meta)
        frame.put(node, *([items] if len(list(node.outputs())) == 1 else items))
    else:
        frame.put(node, of_dtype(scope, Traced(made, result), dtype or result.dtype))


def _known(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and not value.dim() and value.dtype in DTYPES.values() else value


def _refuse_number(node: Any) -> Any:
    raise CaptureError(
        f"{node.kind()} at {_place(node)} takes a number that comes from the data, which only a tensor can be "
        "in a graph: use an operator that takes a tensor"
    )


def _compute(frame: _Frame, node: Any, given: list[Any]) -> None:
    """Run an operator that makes no tensor: arithmetic of numbers, and questions about shapes and types."""
    kind = node.kind()
    if kind in _TEXT:
        frame.put(node, "a text")
        return
    try:
        result = _of_data(frame, kind, given)
        if result is None and (kind in _OF_DATA or any(isinstance(value, Number) for value in given)):
            raise CaptureError("what the data decides can only be a tensor or a number in a graph")
        if result is None:
            overload = torch._C.parse_schema(node.schema()).overload_name
            run, *_ = torch._C._get_operation_overload(kind, overload)
            result = run(*(plain(frame.scope, value) for value in given))
    except (RuntimeError, CaptureError) as error:
        said = str(error).strip().partition("\n")[0]
        raise CaptureError(f"can't run {kind} at {_place(node)}: {said}; try method='export'") from error
    outputs = len(list(node.outputs()))
    frame.put(node, *([result] if outputs == 1 else result if outputs else []))


def _of_data(frame: _Frame, kind: str, given: list[Any]) -> Any:
    """The number that an operator makes of data, None where it makes none."""
    if any(isinstance(value, Number) for value in given):
        return calculate(frame.scope, kind, given)
    if given and isinstance(given[0], Traced | Tensor):
        if kind in TAKES_OUT:
            return take_out(frame.scope, kind, given[0])
        if kind == "aten::equal":
            return compare(frame.scope, kind, *given)
    return None


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
    frame.put(node, _one(_body(frame.inner(frame.path), body, arguments)))


def _if(frame: _Frame, node: Any) -> None:
    (condition,) = frame.inputs(node)
    blocks = list(node.blocks())
    if not isinstance(condition, Number):
        frame.put(node, *_body(frame, blocks[0 if condition else 1], []))
        return
    likely = 0 if condition.value else 1
    if _raises(blocks[1 - likely]) or _raises(blocks[likely]):
        frame.put(node, *_body(frame, blocks[likely], []))
    elif all(_only_numbers(block) for block in blocks):
        frame.put(node, *(_select(frame, condition, *pair) for pair in zip(*_both(frame, blocks), strict=True)))
    else:
        _branch(frame, node, condition)


def _raises(block: Any) -> bool:
    return any(node.kind() == "prim::RaiseException" for node in block.nodes())


def _only_numbers(block: Any) -> bool:
    """Whether a block has nothing but arithmetic of numbers in it, and may as well be run when it isn't taken."""
    numbers = ("BoolType", "IntType", "FloatType")
    plain_nodes = all(
        node.kind() == "prim::Constant" or (node.kind() in ON_NUMBERS and _kinds(node.outputs()) <= set(numbers))
        for node in block.nodes()
    )
    return plain_nodes and _kinds(block.outputs()) <= set(numbers)


def _kinds(values: Any) -> set[str]:
    return {value.type().kind() for value in values}


def _both(frame: _Frame, blocks: list[Any]) -> list[list[Any]]:
    return [_body(frame, block, []) for block in blocks]


def _select(frame: _Frame, condition: Number, holds: Any, fails: Any) -> Any:
    """One of two numbers."""
    if type(holds) is type(fails) and not isinstance(holds, Number | Unset) and holds == fails:
        return holds
    if isinstance(holds, Unset) or isinstance(fails, Unset):
        return fails if isinstance(holds, Unset) else holds
    if (holds, fails) == (True, False):
        return condition
    dtype = torch.promote_types(dtype_of(holds), dtype_of(fails))
    pair = (frame.scope.number(value, dtype) for value in (holds, fails))
    made = frame.scope.call(torch.ops.aten.where.self, condition, *pair)
    return Number(made.node, made.value)


def _branch(frame: _Frame, node: Any, condition: Number) -> None:
    blocks, place = list(node.blocks()), Place(frame.path, _source(node))
    likely = 0 if condition.value else 1
    inside = [_inside(frame, frame.scope.inner()) for _ in blocks]
    results: list[Any] = []
    for number, (inner, block) in enumerate(zip(inside, blocks, strict=True)):
        try:
            results.append(_body(inner, block, []))
        except _RaisesError:
            if number == likely:
                raise
            frame.put(node, *_body(frame, blocks[likely], []))
            return
    for inner in inside:
        _check_containers(frame, inner, place)
    keys = list(dict.fromkeys(key for inner in inside for key in inner.assigned))
    before = {key: next(i.assigned[key][0] for i in inside if key in i.assigned) for key in keys}
    pairs = [
        (result, [i.assigned.get(k, (None, before[k]))[1] for k in keys])
        for i, result in zip(inside, results, strict=True)
    ]
    scopes = (inside[0].scope, inside[1].scope)
    made, attributes = branch(frame.scope, condition, (pairs[0], pairs[1]), scopes, place)
    frame.assigned.update({key: (before[key], value) for key, value in zip(keys, attributes, strict=True)})
    frame.put(node, *made)


def _inside(frame: _Frame, scope: Scope) -> _Frame:
    """A frame for a block that may not be taken: it has lists and dicts of its own."""
    values = _private(frame.values, {})
    return replace(frame, scope=scope, assigned=dict(frame.assigned), values=values)


def _private(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, list | dict) and id(value) not in known:
        known[id(value)] = made = type(value)()
        if isinstance(value, dict):
            made.update({key: _private(item, known) for key, item in value.items()})
        else:
            made.extend(_private(item, known) for item in value)
    if isinstance(value, tuple):
        return tuple(_private(item, known) for item in value)
    return known.get(id(value), value)


def _check_containers(frame: _Frame, inner: _Frame, place: Place) -> None:
    """Refuse changes of lists and dicts in a block that may not be taken."""
    for key, value in frame.values.items():
        if isinstance(value, list | dict) and not _unchanged(value, inner.values[key]):
            raise CaptureError(f"a list or dict is changed in what the data decides at {place}; make a new one instead")


def _unchanged(before: Any, after: Any) -> bool:
    ours, theirs = pytree.tree_flatten(before), pytree.tree_flatten(after)
    return ours[1] == theirs[1] and all(a is b for a, b in zip(ours[0], theirs[0], strict=True))


def _loop(frame: _Frame, node: Any) -> None:
    rounds, going, *carried = frame.inputs(node)
    (block,) = node.blocks()
    number = 0
    while not isinstance(going, Number) and not isinstance(rounds, Number):
        if not (going and number < rounds):
            frame.put(node, *carried)
            return
        if number >= MAX_ROUNDS:
            raise CaptureError(f"expected a loop of at most {MAX_ROUNDS} rounds at {_place(node)}, found more")
        going, *carried = _body(frame, block, [number, *carried])
        number += 1
    place = Place(frame.path, _source(node))

    def run(scope: Scope, given: list[Any]) -> list[Any]:
        inner = _inside(frame, scope)
        results = _body(inner, block, given)
        _check_containers(frame, inner, place)
        if any(frame.assigned.get(key) is not value for key, value in inner.assigned.items()):
            raise CaptureError(f"the loop at {place}, which the data ends, sets an attribute; use a local name for it")
        return results

    most = rounds if isinstance(rounds, Number) or rounds < _ENDLESS else None
    counted = most is not None or bool(next(block.inputs()).uses())
    frame.put(node, *loop(frame.scope, Rounds(going, most, number, counted), carried, run, place))


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
    raise _RaisesError(f"the module raises {message!r} on the example at {_place(node)}")


def _python(frame: _Frame, node: Any) -> None:
    raise CaptureError(
        f"expected operators of torch only, found a call of Python code at {_place(node)}, as torch.jit.ignore leaves "
        "it; make it scriptable or move it out of the module"
    )


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
        "prim::unchecked_unwrap_optional": _by(lambda value: value),
        "aten::_unwrap_optional": _by(lambda value: value),
        "prim::NumToTensor": _by(lambda value: value),
        "prim::PythonOp": _python,
        "prim::Uninitialized": _by(Unset),
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
        "aten::__contains__": _by(lambda items, item: item in items),
        "aten::len": _by(len),
    }
)
