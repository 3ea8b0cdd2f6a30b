"""From observers to integers: the debug form, with a quantize and a dequantize around each float operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from qlib.arith import STORAGE, bias_of_layer, dequantize, quantize, widen_weight_scale
from qlib.errors import CalibrationError
from qlib.fake_quantize import FAKE_QUANTIZES, RuntimeFakeQuantize
from qlib.graph import add_buffer, attribute, call, copy_of, finish, get_attr, hold, nodes_in, op_name
from qlib.kernels import KERNELS
from qlib.observers import OBSERVERS, Follower, RuntimeObserver
from qlib.ops import BY_HEAD, OPS, Op
from qlib.qparams import ROW, DType, QParams
from qlib.regions import Region, all_models, inner_model, regions_in, set_operand, set_yielded, where_of
from qlib.trained import settle

_OBSERVERS = (*OBSERVERS.values(), Follower, *FAKE_QUANTIZES)
_OPS = torch.ops.qlib
_DEQUANTIZE = _OPS.dequantize_per_tensor.default
# What chooses parameters at run time, quantizes and dequantizes by them.
_AT_RUN_TIME = (_OPS.choose_qparams.default, _OPS.quantize_per_tensor.tensor, _OPS.dequantize_per_tensor.tensor)
_BY_ROW = (
    _OPS.choose_qparams_per_token.default,
    _OPS.quantize_per_token.default,
    _OPS.dequantize_per_token.default,
)


# How a constant stands in the debug form: the node of its integers, given the graph, the constant's name, its value,
# and the parameters with the arguments that a quantize takes them by.
Keep = Callable[[fx.GraphModule, str, Tensor, QParams, tuple[Any, ...]], fx.Node]


def as_integers(
    model: fx.GraphModule, target: str, value: Tensor, params: QParams, arguments: tuple[Any, ...]
) -> fx.Node:
    """The integers of a constant, stored; insert at the current point."""
    return hold(model, "", f"{target}_{params.dtype}", quantize(value, params))


def as_quantize(
    model: fx.GraphModule, target: str, value: Tensor, params: QParams, arguments: tuple[Any, ...]
) -> fx.Node:
    """The float constant and a quantize of it; groups, for which there is no such operator, as integers."""
    if params.group_size is not None or params.dtype is DType.FLOAT16:
        return as_integers(model, target, value, params, arguments)
    source = get_attr(model.graph, target, value)
    overload = _OPS.quantize_per_tensor.default if params.axis is None else _OPS.quantize_per_channel.default
    dtype = STORAGE[params.dtype]
    node = call(model.graph, overload, source, *arguments, params.qmin, params.qmax, dtype)
    node.meta.update(source.meta, dtype=dtype)
    return node


def convert(prepared: fx.GraphModule, keep: Keep = as_integers) -> fx.GraphModule:
    """Return the debug form of a calibrated or trained graph: float operators on values that went through integers.

    Weights and other constants stand in it as `keep` says, by default as the integers that they are quantized to.
    Quantized values get into branches and loops, and out of them, as integers. Raises CalibrationError, naming the
    tensor and the branch, where an observer never saw data or saw infinities.
    """
    model = copy_of(prepared)
    settle(model)
    constants: list[tuple[fx.GraphModule, fx.Node]] = []
    _convert_activations(model, "", constants)
    for part in all_models(model):
        for region in regions_in(part):
            _cross_as_integers(region)
    for part, node in constants:
        (_quantize_weight if _is_weight(node) else _quantize_constant)(part, node, keep)
    for part in all_models(model):
        for node in list(part.graph.nodes):
            _spell_inside(part, node)
    finish(model)
    return model


def _convert_activations(model: fx.GraphModule, where: str, constants: list[tuple[fx.GraphModule, fx.Node]]) -> None:
    """Quantize what is observed in a graph and those within it; the constants found are left for later."""
    for node in [node for node in model.graph.nodes if _is_observed(model, node)]:
        if _is_constant(node):
            constants.append((model, node))
        else:
            _quantize_activation(model, node, where)
    for region in regions_in(model):
        for reference, place in zip(region.references, where_of(region), strict=True):
            _convert_activations(inner_model(model, reference), f" in {place}", constants)


def _cross_as_integers(region: Region) -> None:
    """Let each value that is quantized alike wherever it may come from cross the border of a region as integers."""
    for position in range(region.carried, len(region.operands)):
        if (kind := _alike([region.operands[position]])) is not None:
            set_operand(region.node, position, _stored(region.operands[position]))
            _arrive(region.entries(position), kind)
    for position in region.results:
        yielded = region.yielded(position)
        initial = [region.operands[position]] if region.carried else []
        if (kind := _alike([*initial, *yielded])) is None:
            continue
        for graph, value in zip(region.returning, yielded, strict=True):
            set_yielded(graph, position, _stored(value))
        if region.carried:
            set_operand(region.node, position, _stored(*initial))
            _arrive(region.entries(position), kind)
        _arrive(region.taken(position), kind)


_Kind = tuple[float, int, torch.dtype]


def _alike(values: Sequence[fx.Node]) -> _Kind | None:
    """Scale, zero point and type of the integers that all of the values are dequantized from, None without such."""
    kinds = {
        (*value.args[1:3], _stored(value).meta["dtype"]) if value.target is _DEQUANTIZE else None for value in values
    }
    return kinds.pop() if len(kinds) == 1 else None


def _stored(dequantized: fx.Node) -> fx.Node:
    stored = dequantized.args[0]
    assert isinstance(stored, fx.Node)
    return stored


def _arrive(nodes: Sequence[fx.Node], kind: _Kind) -> None:
    """Make integers of what arrives, dequantized where it isn't quantized at once."""
    *pair, dtype = kind
    for node in nodes:
        meta = dict(node.meta)
        node.meta["dtype"] = dtype
        users = list(node.users)
        with node.graph.inserting_after(node):
            real = call(node.graph, _DEQUANTIZE, node, *pair)
        real.meta.update(meta)
        for user in users:
            again = user.target is _OPS.quantize_per_tensor.default
            if again and [*user.args[1:3], user.args[-1]] == [*pair, dtype]:
                user.replace_all_uses_with(node)
                node.graph.erase_node(user)
            else:
                user.replace_input_with(node, real)


def _is_observed(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), _OBSERVERS)


def _is_weight(node: fx.Node) -> bool:
    """Whether an operator of the table takes the value as its weight, rather than as data."""
    user = next(iter(node.users), None)
    rows = BY_HEAD.get(op_name(user), ()) if user is not None else ()
    return any(op.weight is not None and node in nodes_in(user.args[op.weight]) for op in rows)  # type: ignore[union-attr]


def _is_constant(node: fx.Node) -> bool:
    value = node.args[0]
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _qparams(model: nn.Module, node: fx.Node, where: str = "") -> QParams:
    try:
        params: QParams = model.get_submodule(str(node.target)).qparams()  # type: ignore[operator]
    except CalibrationError as error:
        hint = "; give it data that gets there" if where else ""
        raise CalibrationError(f"the observer of {node.args[0]!s}{where} {error}{hint}") from error
    return params


def _quantize_activation(model: fx.GraphModule, node: fx.Node, where: str) -> None:
    observer, value = model.get_submodule(str(node.target)), node.args[0]
    with model.graph.inserting_before(node):
        if isinstance(observer, RuntimeObserver | RuntimeFakeQuantize):
            spec = observer.spec
            qmin, qmax = spec.range
            dtype = STORAGE[spec.dtype]
            choose, quantize_, dequantize_ = _BY_ROW if spec.group_size == ROW else _AT_RUN_TIME
            choice = call(model.graph, choose, value, qmin, qmax, spec.symmetric, dtype)
            pair: tuple[Any, ...] = tuple(call(model.graph, operator.getitem, choice, i) for i in (0, 1))
            q = call(model.graph, quantize_, value, *pair, qmin, qmax, dtype)
            dequantized = call(model.graph, dequantize_, q, *pair)
        else:
            params = _qparams(model, node, where)
            pair = (float(params.scale), int(params.zero_point))
            dtype = STORAGE[params.dtype]
            q = call(model.graph, _OPS.quantize_per_tensor.default, value, *pair, params.qmin, params.qmax, dtype)
            dequantized = call(model.graph, _DEQUANTIZE, q, *pair)
    q.meta.update(node.meta, dtype=dtype)
    dequantized.meta.update(node.meta)
    node.replace_all_uses_with(dequantized)
    model.graph.erase_node(node)


def _quantize_constant(model: fx.GraphModule, node: fx.Node, keep: Keep) -> None:
    """A constant that an operator takes as data."""
    target = str(node.args[0].target)  # type: ignore[union-attr]
    params = _qparams(model, node)
    with model.graph.inserting_before(node):
        arguments = _arguments(model, f"{target}_{params.dtype}", params)
        source = keep(model, target, attribute(model, target).detach(), params, arguments)
        _dequantize(model, node, source, params, arguments)


def _spell_inside(model: fx.GraphModule, node: fx.Node) -> None:
    """Call a graph in the place of an operator that quantizes on the way, so that the debug form does so too."""
    op = OPS.get(str(node.meta.get("operator")))
    inside = KERNELS[op.kernel].inside if op is not None else None
    if inside is None:
        return
    assert isinstance(node.target, OpOverload)
    entered: Any = node.args[0]
    name = next(free for free in (f"{node.name}_{n}" for n in count()) if not hasattr(model, free))
    model.add_submodule(name, inside(node, tuple(entered.args[1].args[0].args[1:])))
    with model.graph.inserting_before(node):
        spelled = model.graph.call_module(name, node.args)
    spelled.meta.update(node.meta, stands_for=f"{op_name(node)}.{node.target._overloadname}")
    node.replace_all_uses_with(spelled)
    model.graph.erase_node(node)


def _quantize_weight(model: fx.GraphModule, node: fx.Node, keep: Keep) -> None:
    """Quantize the weight, and the bias to int32 steps of the products of input and weight scale.

    An operator that no kernel takes over keeps a bias that is to be a float as it is.
    """
    head = next(iter(node.users))
    op = BY_HEAD[op_name(head)][0]
    target = str(node.args[0].target)  # type: ignore[union-attr]
    weight = attribute(model, target).detach()
    observer = model.get_submodule(str(node.target))
    if not isinstance(observer, FAKE_QUANTIZES):  # which saw the weights while they were trained
        observer(weight)
    params = _qparams(model, node)
    input_scale, bias = _input_scale(head, op), _bias(model, head, op)
    if "operator" not in head.meta and head.meta.get("float_bias"):
        bias = None
    if input_scale is not None and bias is not None:
        params = replace(params, scale=widen_weight_scale(params.scale, input_scale, bias))
    with model.graph.inserting_before(node):
        arguments = _arguments(model, f"{target}_{params.dtype}", params)
        source = keep(model, target, weight, params, arguments)
        _dequantize(model, node, source, params, arguments)
    if input_scale is not None and bias is not None:
        _quantize_bias(model, head, op, input_scale, params)


def _quantize_bias(model: fx.GraphModule, head: fx.Node, op: Op, input_scale: Tensor, params: QParams) -> None:
    """Store the bias as int32 and dequantize it, or store the float32 numbers that this gives."""
    assert op.bias is not None
    bias_node = head.args[op.bias]
    assert isinstance(bias_node, fx.Node)
    target = str(bias_node.target)
    integers, steps = bias_of_layer(attribute(model, target), input_scale, params.scale)
    with model.graph.inserting_before(head):
        if head.meta.get("float_bias"):
            head.update_arg(op.bias, hold(model, "", f"{target}_snapped", dequantize(integers, steps)))
            return
        copy = get_attr(model.graph, target)
        copy.meta.update(bias_node.meta)
        head.update_arg(op.bias, copy)
        stored = f"{target}_int32"
        arguments = _arguments(model, stored, steps)
        _dequantize(model, copy, hold(model, "", stored, integers), steps, arguments)


def _input_scale(head: fx.Node, op: Op) -> Tensor | None:
    """The scale of the operator's input, None where it is known at run time only."""
    source = head.args[op.operands[0]] if op.operands else None
    if isinstance(source, fx.Node) and source.target is _DEQUANTIZE:
        return torch.tensor(source.args[1], dtype=torch.float32)
    return None


def _bias(model: nn.Module, head: fx.Node, op: Op) -> Tensor | None:
    node = head.args[op.bias] if op.bias is not None else None
    return attribute(model, str(node.target)) if isinstance(node, fx.Node) and node.op == "get_attr" else None


def _arguments(model: fx.GraphModule, target: str, params: QParams) -> tuple[Any, ...]:
    """Scale and zero point as quantize and dequantize take them, and the axis or the size of groups."""
    if params.axis is None and params.group_size is None:
        return float(params.scale), int(params.zero_point)
    pair = [
        get_attr(model.graph, add_buffer(model, f"{target}_{name}", tensor))
        for name, tensor in (("scale", params.scale), ("zero_point", params.zero_point))
    ]
    return (*pair, params.axis if params.group_size is None else params.group_size)


def _dequantize(
    model: fx.GraphModule, node: fx.Node, source: fx.Node, params: QParams, arguments: tuple[Any, ...]
) -> None:
    """Put a dequantize of `source` in the place of `node`."""
    per_channel = _OPS.dequantize_per_group.default if params.group_size else _OPS.dequantize_per_channel.default
    overload = _OPS.dequantize_per_tensor.default if len(arguments) == 2 else per_channel
    dequantized = call(model.graph, overload, source, *arguments)
    dequantized.meta.update(node.meta)
    node.replace_all_uses_with(dequantized)
    model.graph.erase_node(node)
