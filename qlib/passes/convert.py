"""From observers to integers: the debug form, with a quantize and a dequantize around each float operator."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

import qlib.kernels  # noqa: F401  (registers the operators that are placed here)
from qlib.arith import STORAGE, bias_of_layer, quantize, widen_weight_scale
from qlib.errors import CalibrationError
from qlib.fake_quantize import FAKE_QUANTIZES, RuntimeFakeQuantize
from qlib.graph import add_buffer, attribute, copy_of, finish, get_attr, op_name
from qlib.observers import OBSERVERS, Follower, RuntimeObserver
from qlib.ops import BY_HEAD, Op
from qlib.qparams import ROW, QParams
from qlib.trained import settle

_OBSERVERS = (*OBSERVERS.values(), Follower, *FAKE_QUANTIZES)
_OPS = torch.ops.qlib
# What chooses parameters at run time, quantizes and dequantizes by them.
_AT_RUN_TIME = (_OPS.choose_qparams.default, _OPS.quantize_per_tensor.tensor, _OPS.dequantize_per_tensor.tensor)
_BY_ROW = (
    _OPS.choose_qparams_per_token.default,
    _OPS.quantize_per_token.default,
    _OPS.dequantize_per_token.default,
)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """Return the debug form of a calibrated or trained graph: float operators on values that went through integers.

    Raises CalibrationError, naming the tensor, where an observer never saw data or saw infinities.
    """
    model = copy_of(prepared)
    settle(model)
    observed = [node for node in model.graph.nodes if _is_observed(model, node)]
    weights = [node for node in observed if _is_weight(node)]
    for node in observed:
        if node not in weights:
            _quantize_activation(model, node)
    for node in weights:
        _quantize_weight(model, node)
    finish(model)
    return model


def _is_observed(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), _OBSERVERS)


def _is_weight(node: fx.Node) -> bool:
    """Whether an operator of the table takes the value as its weight, rather than as data."""
    user = next(iter(node.users), None)
    rows = BY_HEAD.get(op_name(user), ()) if user is not None else ()
    return any(op.weight is not None and user is not None and user.args[op.weight] is node for op in rows)


def _qparams(model: nn.Module, node: fx.Node) -> QParams:
    try:
        params: QParams = model.get_submodule(str(node.target)).qparams()  # type: ignore[operator]
    except CalibrationError as error:
        raise CalibrationError(f"the observer of {node.args[0]!s} {error}") from error
    return params


def _quantize_activation(model: fx.GraphModule, node: fx.Node) -> None:
    observer, value = model.get_submodule(str(node.target)), node.args[0]
    with model.graph.inserting_before(node):
        if isinstance(observer, RuntimeObserver | RuntimeFakeQuantize):
            spec = observer.spec
            qmin, qmax = spec.range
            dtype = STORAGE[spec.dtype]
            choose, quantize_, dequantize_ = _BY_ROW if spec.group_size == ROW else _AT_RUN_TIME
            choice = model.graph.call_function(choose, (value, qmin, qmax, spec.symmetric, dtype))
            pair: tuple[Any, ...] = tuple(model.graph.call_function(operator.getitem, (choice, i)) for i in (0, 1))
            q = model.graph.call_function(quantize_, (value, *pair, qmin, qmax, dtype))
            dequantized = model.graph.call_function(dequantize_, (q, *pair))
        else:
            params = _qparams(model, node)
            pair = (float(params.scale), int(params.zero_point))
            dtype = STORAGE[params.dtype]
            q = model.graph.call_function(
                _OPS.quantize_per_tensor.default,
                (value, *pair, params.qmin, params.qmax, dtype),
            )
            dequantized = model.graph.call_function(_OPS.dequantize_per_tensor.default, (q, *pair))
    q.meta = {**node.meta, "dtype": dtype}
    dequantized.meta = dict(node.meta)
    node.replace_all_uses_with(dequantized)
    model.graph.erase_node(node)


def _quantize_weight(model: fx.GraphModule, node: fx.Node) -> None:
    """Store the weight as integers, and the bias as int32 steps of the products of input and weight scale."""
    head = next(iter(node.users))
    op = BY_HEAD[op_name(head)][0]
    target = str(node.args[0].target)  # type: ignore[union-attr]
    weight = attribute(model, target).detach()
    observer = model.get_submodule(str(node.target))
    if not isinstance(observer, FAKE_QUANTIZES):  # which saw the weights while they were trained
        observer(weight)
    params = _qparams(model, node)
    input_scale, bias = _input_scale(head, op), _bias(model, head, op)
    if input_scale is None or bias is None:
        _replace_constant(model, node, f"{target}_{params.dtype}", quantize(weight, params), params)
        return
    params = replace(params, scale=widen_weight_scale(params.scale, input_scale, bias))
    _replace_constant(model, node, f"{target}_{params.dtype}", quantize(weight, params), params)
    assert op.bias is not None
    bias_node = head.args[op.bias]
    assert isinstance(bias_node, fx.Node)
    with model.graph.inserting_before(head):
        copy = get_attr(model.graph, str(bias_node.target))
        copy.meta = dict(bias_node.meta)
    head.update_arg(op.bias, copy)
    integers, steps = bias_of_layer(bias, input_scale, params.scale)
    _replace_constant(model, copy, f"{bias_node.target}_int32", integers, steps)


def _input_scale(head: fx.Node, op: Op) -> Tensor | None:
    """The scale of the operator's input, None where it is known at run time only."""
    source = head.args[op.operands[0]] if op.operands else None
    if isinstance(source, fx.Node) and source.target is torch.ops.qlib.dequantize_per_tensor.default:
        return torch.tensor(source.args[1], dtype=torch.float32)
    return None


def _bias(model: nn.Module, head: fx.Node, op: Op) -> Tensor | None:
    node = head.args[op.bias] if op.bias is not None else None
    return attribute(model, str(node.target)) if isinstance(node, fx.Node) else None


def _replace_constant(model: fx.GraphModule, node: fx.Node, target: str, integers: Tensor, params: QParams) -> None:
    """Put a dequantize of stored integers in the place of `node`."""
    with model.graph.inserting_before(node):
        stored = get_attr(model.graph, add_buffer(model, target, integers))
        stored.meta.update(shape=tuple(integers.shape), dtype=integers.dtype)
        if params.axis is None and params.group_size is None:
            arguments: tuple[Any, ...] = (stored, float(params.scale), int(params.zero_point))
            overload = _OPS.dequantize_per_tensor.default
        else:
            pair = [
                get_attr(model.graph, add_buffer(model, f"{target}_{name}", tensor))
                for name, tensor in (("scale", params.scale), ("zero_point", params.zero_point))
            ]
            by_group = params.group_size is not None
            arguments = (stored, *pair, params.group_size if by_group else params.axis)
            overload = _OPS.dequantize_per_group.default if by_group else _OPS.dequantize_per_channel.default
        dequantized = model.graph.call_function(overload, arguments)
    dequantized.meta = dict(node.meta)
    node.replace_all_uses_with(dequantized)
    model.graph.erase_node(node)
