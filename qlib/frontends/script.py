"""Reading `torch.jit.script`: a compiled module as an `fx` graph of ATen operators, for the shapes of the example.

The TorchScript program is run on the example, method by method, and each operator that makes a tensor is written
down. Conditions and loops that depend on attributes, arguments or shapes are thereby resolved; those that depend on the
data of a tensor become branches and loops of the graph (`qlib.frontends.decisions`). A branch that raises is left out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlib.errors import CaptureError
from qlib.frontends.blocks import run_if, run_loop
from qlib.frontends.frame import Frame, Owner, RaisesError, place_of, source_of
from qlib.frontends.numbers import (
    DTYPES,
    TAKES_OUT,
    calculate,
    compare,
    lifted,
    of_dtype,
    overload_for,
    take_out,
)
from qlib.frontends.scope import Number, Scope, Traced, Unset, plain, written
from qlib.frontends.torchscript import SCALAR_TYPES, NameOf, call_arguments, overload_of
from qlib.frontends.untouched import private_copy

# What turns the data of tensors into plain values that no tensor can hold.
_OF_DATA = frozenset({"aten::allclose", "prim::tolist"})
# Settings of torch that TorchScript takes for true, whatever they are.
_SETTINGS: Mapping[str, Callable[[], bool]] = MappingProxyType(
    {"__torch__.torch.backends.mha.get_fastpath_enabled": torch.backends.mha.get_fastpath_enabled}
)
# What only says something to a person.
_TEXT = frozenset({"aten::format", "aten::str", "aten::percentFormat"})


def script(module: nn.Module, inputs: tuple[Tensor, ...], name_of: NameOf) -> fx.Graph:
    """The graph of `module` by `torch.jit.script`; in-place operators are still in it.

    A module that is a ScriptModule already is taken as it is. `name_of` gives the dotted name under which a tensor of
    the module will be kept. Raises CaptureError where the data decides what is run.
    """
    program = module if isinstance(module, torch.jit.ScriptModule) else _compiled(module)
    scope = Scope(fx.Graph(), name_of)
    start = Frame(scope, "", _body)
    arguments = [Traced(scope.entry(f"input_{n}"), value.clone()) for n, value in enumerate(inputs)]
    with _contents_kept(program):
        # Overloads are numbered; the first is the one that takes tensors.
        entry = "forward" if hasattr(program, "forward") else "forward__0"
        result = _method(start, Owner(program, ""), entry, arguments)
    for before, after in start.assigned.values():
        if isinstance(before, Tensor):
            scope.call(torch.ops.aten.copy_.default, before, after)
    scope.graph.output(written(scope, result))
    return scope.graph


def _compiled(module: nn.Module) -> Any:
    """The module compiled; what can't be compiled is forgotten, since torch takes it for half done the next time."""
    try:
        return torch.jit.script(module)
    except Exception:
        torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
        raise


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


def _method(frame: Frame, owner: Owner, name: str, arguments: list[Any]) -> Any:
    method = owner.module._c._get_method(name)
    body = method.graph
    missing = len(list(body.inputs())) - 1 - len(arguments)
    defaults = method.schema.arguments[1 + len(arguments) :] if missing else []
    given = [owner, *arguments, *(argument.default_value for argument in defaults)]
    return _one(_body(frame.inner(owner.path), body, given))


def _body(frame: Frame, graph: Any, arguments: list[Any]) -> list[Any]:
    """Run a graph or a block and return what it returns."""
    for value, given in zip(graph.inputs(), arguments, strict=True):
        frame.values[value.unique()] = given
    for node in graph.nodes():
        _step(frame, node)
    return [frame.values[value.unique()] for value in graph.outputs()]


def _one(results: list[Any]) -> Any:
    return results[0] if len(results) == 1 else results


def _step(frame: Frame, node: Any) -> None:
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


def _record(frame: Frame, node: Any, given: list[Any]) -> None:
    """Run an operator that makes tensors on the example, and write it down."""
    target, scope, dtype = overload_of(node.schema()), frame.scope, None
    if any(isinstance(value, Number) for items in given if isinstance(items, list) for value in items):
        _refuse_number(node)
    if any(isinstance(value, Number) for value in given):
        args, kwargs = call_arguments(target, [_known(value) for value in plain(scope, given)])
        dtype = target(*args, **kwargs).dtype if not target._schema.is_mutable else None
        target = overload_for(target, given) or _refuse_number(node)
        given = lifted(scope, target, given)
    args, kwargs = call_arguments(target, [written(scope, value) for value in given])
    made = scope.graph.call_function(target, tuple(args), kwargs)
    made.meta = {"module_path": frame.path, "source": source_of(node)}
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
        f"{node.kind()} at {place_of(node)} takes a number that comes from the data, which only a tensor can be "
        "in a graph: use an operator that takes a tensor"
    )


def _compute(frame: Frame, node: Any, given: list[Any]) -> None:
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
        raise CaptureError(f"can't run {kind} at {place_of(node)}: {said}; try method='export'") from error
    outputs = len(list(node.outputs()))
    frame.put(node, *([result] if outputs == 1 else result if outputs else []))


def _of_data(frame: Frame, kind: str, given: list[Any]) -> Any:
    """The number that an operator makes of data, None where it makes none."""
    if any(isinstance(value, Number) for value in given):
        return calculate(frame.scope, kind, given)
    if given and isinstance(given[0], Traced | Tensor):
        if kind in TAKES_OUT:
            return take_out(frame.scope, kind, given[0])
        if kind == "aten::equal":
            return compare(frame.scope, kind, *given)
    return None


# ----------------------------------------------------------------------------------------- nodes that are no operators


def _constant(frame: Frame, node: Any) -> None:
    value = node.output()
    function = value.type().kind() == "FunctionType"
    frame.put(node, value.type().annotation_str if function else value.toIValue())


def _get_attr(frame: Frame, node: Any) -> None:
    (owner,) = frame.inputs(node)
    name = node.s("name")
    assigned = frame.assigned.get((owner.path, name))
    frame.put(node, owner.attribute(name) if assigned is None else assigned[1])


def _set_attr(frame: Frame, node: Any) -> None:
    owner, value = frame.inputs(node)
    name = node.s("name")
    before, _ = frame.assigned.get((owner.path, name), (owner.attribute(name), None))
    frame.assigned[(owner.path, name)] = (before, value)


def _call_method(frame: Frame, node: Any) -> None:
    owner, *arguments = frame.inputs(node)
    frame.put(node, _method(frame, owner, node.s("name"), arguments))


def _call_function(frame: Frame, node: Any) -> None:
    name, *arguments = frame.inputs(node)
    if name in _SETTINGS:
        frame.put(node, _SETTINGS[name]())
        return
    body = torch.jit._state._python_cu.find_function(name).graph
    frame.put(node, _one(_body(frame.inner(frame.path), body, arguments)))


def _list(frame: Frame, node: Any) -> None:
    frame.put(node, list(frame.inputs(node)))


def _tuple(frame: Frame, node: Any) -> None:
    frame.put(node, tuple(frame.inputs(node)))


def _dict(frame: Frame, node: Any) -> None:
    given = frame.inputs(node)
    frame.put(node, dict(zip(given[::2], given[1::2], strict=True)))


def _unpack(frame: Frame, node: Any) -> None:
    (items,) = frame.inputs(node)
    frame.put(node, *items)


def _raise(frame: Frame, node: Any) -> None:
    message = next((value for value in frame.inputs(node) if isinstance(value, str)), "an exception")
    raise RaisesError(f"the module raises {message!r} on the example at {place_of(node)}")


def _python(frame: Frame, node: Any) -> None:
    raise CaptureError(
        f"expected operators of torch only, found a call of Python code at {place_of(node)}, as torch.jit.ignore "
        "leaves it; make it scriptable or move it out of the module"
    )


def _by(function: Callable[..., Any]) -> Callable[[Frame, Any], None]:
    """A node that a Python function stands for; what changes a list in place has a result all the same."""

    def run(frame: Frame, node: Any) -> None:
        result = function(*frame.inputs(node))
        frame.put(node, *([result] if len(list(node.outputs())) == 1 else []))

    return run


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _tensor(frame: Frame, node: Any) -> None:
    """A tensor of known numbers is a constant, and a copy of it may be changed; one of the data's is an operator."""
    data, dtype, *_ = given = frame.inputs(node)
    if isinstance(data, Traced | Tensor | Number):
        _record(frame, node, given)
    elif _holds_data(data):
        _refuse_number(node)
    else:
        made = torch.tensor(data, dtype=None if dtype is None else SCALAR_TYPES[dtype])
        frame.put(node, frame.scope.call(torch.ops.aten.clone.default, made))


def _holds_data(value: Any) -> bool:
    return any(map(_holds_data, value)) if isinstance(value, list) else isinstance(value, Traced | Tensor | Number)


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
_HANDLERS: Mapping[str, Callable[[Frame, Any], None]] = MappingProxyType(
    {
        "prim::Constant": _constant,
        "prim::GetAttr": _get_attr,
        "prim::SetAttr": _set_attr,
        "prim::CallMethod": _call_method,
        "prim::CallFunction": _call_function,
        "prim::If": run_if,
        "prim::Loop": run_loop,
        "prim::ListConstruct": _list,
        "prim::TupleConstruct": _tuple,
        "prim::DictConstruct": _dict,
        "prim::ListUnpack": _unpack,
        "prim::TupleUnpack": _unpack,
        "aten::tensor": _tensor,
        "aten::as_tensor": _tensor,
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
