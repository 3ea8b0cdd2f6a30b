"""Explaining a run: what each value of a form should have been, in exact arithmetic, given the values before it.

The debug form is walked in float64. At each tensor that the final form holds too, the exact real number before
rounding is noted beside what the final form made of it, and the walk goes on from the final form's own value. So a
rounding is judged by itself, and a tie at one operator is not mistaken for an error at the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import qlib.kernels  # noqa: F401  (registers the operators)
from qlib.graph import attribute
from qlib.interpret import Look, call, run_region, value_of, walk
from qlib.regions import inner_model, region_in

Value = Any


@dataclass(frozen=True)
class Step:
    """One tensor that was computed, and what it should be.

    `real` is the exact number: before rounding, in steps of the scale and without the zero point, where `zero_point` is
    given; in real units where it is None. `given` is what the form made of it. `magnitude` bounds the terms that were
    added up to `real`, in the same unit, and so the error that float32 may make.
    """

    name: str
    operator: str
    real: Tensor
    given: Tensor
    magnitude: Tensor
    zero_point: int | None = None
    qmin: int = 0
    qmax: int = 0


@dataclass(frozen=True)
class Replay:
    """All the steps of one run, in order, and the outputs that follow exactly from the last of them, in float64."""

    steps: tuple[Step, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Exact:
    """A value in float64, and the same operators' result on absolute values: a bound for the terms of its sums."""

    value: Value
    size: Value


# The value of each node by the place of its graph: empty for the outermost one, else "branch/graph/" or
# "loop/round/graph/", after that of the graph around it.
Values = dict[str, dict[str, Value]]


def values_of(model: fx.GraphModule, inputs: Sequence[Tensor]) -> Values:
    """Run a form and return the value of each node, under the name of the debug node that it takes the place of."""
    found: Values = {}
    with torch.no_grad():
        _note_values(model, [x.clone() for x in inputs], "", found)
    return found


def _note_values(model: fx.GraphModule, inputs: Sequence[Value], place: str, found: Values) -> Value:
    values = found.setdefault(place, {})

    def visit(node: fx.Node, look: Look) -> Value:
        region = region_in(model, node)
        if region is None:
            value = value_of(model, node, look)
        else:

            def inside(which: int, name: str, operands: Sequence[Value]) -> Value:
                inner = inner_model(model, region.references[which])
                return _note_values(inner, operands, f"{place}{name}/", found)

            value = run_region(region, look, bool, inside)
        values[node.meta.get("replaces", node.name)] = value
        return value

    return walk(model.graph, inputs, visit)


def replay(debug: fx.GraphModule, form: fx.GraphModule, inputs: Sequence[Tensor]) -> Replay:
    """Explain each value of `form` (the final form, or the debug form itself) by the debug form in float64.

    `inputs` are the tensors that both are called with; they are not changed. Operators that `form` computes in float,
    as the debug form does, are taken as they come: what is explained is each quantize and each kernel. Branches and
    loops take the way that `form` took; the names of their steps begin with the region's, the round and the graph's.
    """
    run = _Run(values_of(form, inputs), [])
    with torch.no_grad():
        outputs = _explain_graph(run, (debug, form), [_double(x.clone()) for x in inputs], "")
    leaves = pytree.tree_leaves(outputs)
    return Replay(tuple(run.steps), tuple(leaf.value for leaf in leaves if isinstance(leaf, _Exact)))


@dataclass(frozen=True)
class _Run:
    """What a form gave, by place, and the steps that were explained so far."""

    values: Values
    steps: list[Step]


def _explain_graph(
    run: _Run, forms: tuple[fx.GraphModule, fx.GraphModule], inputs: Sequence[_Exact], place: str
) -> Value:
    """Walk one graph of the debug form, beside the same graph of the other form."""
    debug, form = forms
    given = run.values[place]
    kernels = {str(node.meta["replaces"]) for node in form.graph.nodes if "replaces" in node.meta}

    def visit(node: fx.Node, look: Look) -> _Exact:
        region = region_in(debug, node)
        if region is not None:

            def inside(which: int, name: str, operands: Sequence[_Exact]) -> Value:
                inner = (inner_model(model, region.references[which]) for model in forms)
                return _explain_graph(run, tuple(inner), operands, f"{place}{name}/")  # type: ignore[arg-type]

            results = run_region(region, look, lambda exact: bool(exact.value), inside)
            return _Exact([item.value for item in results], [item.size for item in results])
        if node.op == "get_attr" and isinstance(getattr(debug, str(node.target), None), fx.GraphModule):
            return _Exact(None, None)
        exact, step = _explain(debug, node, look, given, node.name in kernels)
        if step is not None:
            run.steps.append(replace(step, name=f"{place}{step.name}"))
        return exact

    return walk(debug.graph, inputs, visit)


def _double(value: Value) -> _Exact:
    """A value of a form as the walk goes on from it; numbers that are not real stay as they are."""
    if isinstance(value, list | tuple):
        items = [_double(item) for item in value]
        return _Exact([item.value for item in items], [item.size for item in items])
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return _Exact(value, value)
    exact = value.double()
    return _Exact(exact, exact.abs())


def _explain(
    debug: fx.GraphModule, node: fx.Node, look: Look, given: Mapping[str, Value], by_kernel: bool
) -> tuple[_Exact, Step | None]:
    if node.op == "get_attr":
        return _double(attribute(debug, str(node.target)).detach()), None
    if node.target in _ALONE:
        return _ALONE[node.target](node, lambda n: look(n).value), None
    if node.target is torch.ops.qlib.quantize_per_tensor.default:
        return _rounding(node, look(node.args[0]), given)  # type: ignore[arg-type]
    value = call(node, lambda n: look(n).value)
    size = _bound(node, lambda n: look(n).size)
    # A list of tensors that a kernel made holds integers; its items are judged where they are rounded.
    if node.name not in given or (by_kernel and not isinstance(value, Tensor)):
        return _Exact(value, _larger(value, size)), None
    step = Step(node.name, _name(node), value, given[node.name], _larger(value, size)) if by_kernel else None
    return _double(given[node.name]), step


def _bound(node: fx.Node, look: Look) -> Value:
    """The operator on absolute values; the terms of a difference are bounded by a sum."""
    if node.target is torch.ops.aten.sub.Tensor:
        terms: tuple[Any, ...] = node.args
        left, right = (look(term) if isinstance(term, fx.Node) else abs(term) for term in terms)
        return left + right
    return call(node, look)


def _larger(value: Value, size: Value) -> Value:
    if isinstance(value, list | tuple):
        return [_larger(*pair) for pair in zip(value, size, strict=True)]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return torch.maximum(value.abs(), size.abs().nan_to_num(0.0))


def _name(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")


def _rounding(node: fx.Node, x: _Exact, given: Mapping[str, Value]) -> tuple[_Exact, Step | None]:
    scale, zero_point, qmin, qmax = (float(node.args[1]), int(node.args[2]), int(node.args[3]), int(node.args[4]))  # type: ignore[arg-type]
    real = x.value / scale
    if node.name not in given:
        return _Exact((real.round() + zero_point).clamp(qmin, qmax), None), None
    result = given[node.name]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return _Exact(result, None), Step(node.name, _name(source), real, result, x.size / scale, zero_point, qmin, qmax)


def _dequantized(node: fx.Node, look: Look) -> _Exact:
    """``scale * (q - zero_point)`` in float64, written out here so as not to rest on the arithmetic that is judged."""
    arguments: tuple[Any, ...] = node.args
    q, scale, zero_point, *axis = (look(a) if isinstance(a, fx.Node) else a for a in arguments)
    if axis:
        shape = [1] * q.dim()
        shape[axis[0]] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    value = (q.double() - zero_point) * scale
    return _Exact(value, value.abs())


def _dequantized_by_group(node: fx.Node, look: Look) -> _Exact:
    """As `_dequantized`, with one scale for each group of elements of the last dimension."""
    arguments: tuple[Any, ...] = node.args
    q, scale, zero_point = (look(a) for a in arguments[:3])
    index = torch.arange(q.shape[-1]) // int(arguments[3])
    value = (q.double() - zero_point[..., index]) * scale[..., index]
    return _Exact(value, value.abs())


def _at_run_time(node: fx.Node, look: Look) -> _Exact:
    """Parameters chosen at run time follow from the float32 tensor that the kernel saw."""

    def single(n: fx.Node) -> Value:
        value = look(n)
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    value = call(node, single)
    return _Exact(value, value)


_OPS = torch.ops.qlib
# Nodes whose values are computed without being judged.
_ALONE: dict[Any, Callable[[fx.Node, Look], _Exact]] = {
    _OPS.dequantize_per_tensor.default: _dequantized,
    _OPS.dequantize_per_tensor.tensor: _dequantized,
    _OPS.dequantize_per_channel.default: _dequantized,
    _OPS.dequantize_per_token.default: _dequantized,
    _OPS.dequantize_per_group.default: _dequantized_by_group,
    _OPS.choose_qparams.default: _at_run_time,
    _OPS.choose_qparams_per_token.default: _at_run_time,
    _OPS.quantize_per_token.default: _at_run_time,
    _OPS.quantize_per_tensor.tensor: _at_run_time,
}
