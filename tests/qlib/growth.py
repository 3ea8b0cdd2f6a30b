"""Graphs grown from the operator table: each row's float operators, with arguments that its columns and schema ask for.

A row whose schema has an argument that nothing here knows fails by the argument's name; a new row with known arguments
needs no entry.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from choices import INDICES, PLAIN, SHAPES, Choice
from graphs import Draft, QConfigs, aten
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from qlib.ops import OPS, Op, When
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time

MOST_ELEMENTS = 3000


def overload_for(op: Op) -> OpOverload:
    """The overload of the row's first operator whose tensors are those that the row has."""
    packet = getattr(aten, op.chain[0].partition("::")[2])
    known = {*op.operands, *op.parameters, *op.others}
    for name in [op.overload] if op.overload else packet.overloads():
        overload: OpOverload = getattr(packet, name)
        arguments = overload._schema.arguments
        tensors = {i for i, argument in enumerate(arguments) if "Tensor" in str(argument.type)}
        asked = {i for i in tensors if not str(arguments[i].type).startswith("Optional")}
        if tensors and {*op.operands} <= tensors and asked <= known and not overload._schema.is_mutable:
            return overload
    raise AssertionError(f"no overload of {op.chain[0]} has the tensors of {op.name}")


def _entry(table: Mapping[str, Any], op: Op, name: str) -> Any:
    """The entry of an operator's argument, by both, by the argument or by the operator; without the digit of its name."""
    head = op.chain[0].partition("::")[2]
    short = head[:-2] if head[-2:] in ("1d", "2d", "3d") else head
    return next((table[key] for key in (f"{short}.{name}", name, short) if key in table), None)


def _constant(draft: Draft, choice: Choice, name: str, shape: tuple[int, ...]) -> fx.Node:
    """A constant, now and then one that another layer has already."""
    if name == "weight" and choice.number % 4 == 3:
        for node in draft.values:
            if node.op == "get_attr" and "weight" in str(node.target) and node.meta["shape"] == shape:
                return node
    if name == "running_var":
        return draft.constant(f"{choice.path}.{name}", torch.rand(shape, generator=draft.random) + 0.5)
    return draft.draw(f"{choice.path}.{name}", *shape)


def _constants(draft: Draft, choice: Choice, name: str, shapes: Any) -> Any:
    """A constant of a shape, or a list of constants for a list of shapes."""
    if isinstance(shapes, list):
        return [draft.draw(f"{choice.path}.{name}", *shape) for shape in shapes]
    return _constant(draft, choice, name, shapes)


def _argument(draft: Draft, op: Op, choice: Choice, position: int) -> Any:
    """The argument at `position` of the row's first operator."""
    argument = overload_for(op)._schema.arguments[position]
    if position in op.operands:
        both = [choice.a, choice.b]
        return both if "List" in str(argument.type) else both[op.operands.index(position)]
    if position in op.parameters:
        asked = position in op.required or choice.number % 4
        shape = _entry(SHAPES, op, argument.name)
        assert shape is not None, f"{op.name}: no shape for {argument.name}"
        return _constants(draft, choice, argument.name, shape(choice)) if asked else None
    if position in op.others:
        value = _entry(INDICES, op, argument.name)(choice)
        target = f"{choice.path}.{argument.name}"
        return tree_map_only(Tensor, lambda tensor: draft.constant(target, tensor), value)
    plain = _entry(PLAIN, op, argument.name)
    optional = str(argument.type).startswith("Optional")
    assert plain is not None or optional or argument.has_default_value(), f"{op.name}: nothing for {argument.name}"
    return argument.default_value if plain is None else plain(choice)


def rank_of(op: Op) -> int | None:
    """The number of dimensions that the row's input must have, None for any."""
    name = op.chain[0]
    if name[-2:] in ("1d", "2d", "3d"):
        return int(name[-2]) + 2
    return _RANKS.get(name.partition("::")[2])


_RANKS = {
    **{"bmm": 3, "pixel_shuffle": 4, "pixel_unshuffle": 4, "channel_shuffle": 4, "instance_norm": 4},
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), 3),
}
# Operators of positive numbers only.
_POSITIVE = {f"aten::{name}" for name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal")}
# How the operators after the first of a chain are called on its value.
_TAILS: Mapping[str, tuple[Any, ...]] = {
    "getitem": (operator.getitem, 0),
    "aten::relu": (aten.relu.default,),
    "aten::softmax": (aten.softmax.int, -1),
    "aten::_safe_softmax": (aten._safe_softmax.default, -1),
}


def ranked(draft: Draft, x: fx.Node, rank: int | None) -> fx.Node:
    """The same elements in `rank` dimensions."""
    shape = x.meta["shape"]
    if rank is None or len(shape) == rank:
        return x
    wanted = [*shape[: rank - 1], -1] if len(shape) > rank else [*shape, *[1] * (rank - len(shape))]
    return draft.call(aten.reshape.default, x, wanted)


def _second(draft: Draft, op: Op, a: fx.Node, b: fx.Node) -> fx.Node:
    """A second operand that fits: `a` turned for a product of matrices, else `b` where its shape is that of `a`."""
    last = len(a.meta["shape"]) - 1
    if op.kernel == "matmul":
        return draft.call(aten.transpose.int, a, last, max(last - 1, 0))
    return b if b.meta["shape"] == a.meta["shape"] else a


def grow(draft: Draft, op: Op, choice: Choice) -> fx.Node | None:
    """The float operators of a row on the tensors of `choice`, None where they do not fit or the result is too large.

    Tensors without elements fit nothing.
    """
    if 0 in choice.shape or 0 in choice.b.meta["shape"]:
        return None
    if op.chain[0] == "getitem":
        op = OPS["quantized::chunk"]
    a, b = (ranked(draft, x, rank_of(op)) for x in (choice.a, choice.b))
    if op.chain[0] in _POSITIVE:
        a = draft.call(aten.sigmoid.default, a)
    given = Choice(a, _second(draft, op, a, b), choice.number, choice.path)
    overload = overload_for(op)
    count = sum(not argument.kwarg_only for argument in overload._schema.arguments)
    args = [_argument(draft, op, given, position) for position in range(count)]
    try:
        with torch.no_grad():
            value = overload(*fx.node.map_arg(tuple(args), draft.values.__getitem__))
    except (RuntimeError, IndexError, ValueError):  # ATen's word that the shape does not fit
        return None
    if isinstance(value, Tensor) and not 0 < value.numel() <= MOST_ELEMENTS:
        return None
    module = (choice.path, f"nn.{op.short_name}")
    node = draft.call(overload, *args, module=module)
    for name in op.chain[1:]:
        target, *rest = _TAILS[name]
        node = draft.call(target, node, *rest, module=module)
    value = draft.values[node]
    if not isinstance(value, list | tuple):
        return node
    return draft.call(operator.getitem, node, choice.number % len(value), module=module)


def qconfig_for(op: Op, static: str = "default") -> QConfigs:
    """A QConfig under which the row is found."""
    if op.when is When.STATIC:
        return static
    if op.when is When.DYNAMIC:
        return QConfigMapping(at_run_time(PRESETS["default"]))
    if op.when is When.PER_TOKEN:
        return "per_token"
    return next(
        name
        for name, qconfig in PRESETS.items()
        if qconfig.activation is None and qconfig.weight and qconfig.weight.dtype in op.weight_types
    )


def single(op: Op, number: int = 6) -> fx.GraphModule | None:
    """A graph of one row on data that is quantized: each operand comes from a curve that leaves it as it is.

    None where the arguments that `number` chooses do not fit. The curves have the module paths "left" and "right", the row has "row".
    """
    draft = Draft()
    dim = (rank_of(op) or 4) - 2
    shape = (2, 4, *[6 if dim < 3 else 4] * dim)

    def operand(path: str) -> fx.Node:
        return draft.call(aten.leaky_relu.default, draft.input(*shape), 1.0, module=(path, "nn.LeakyReLU"))

    left = operand("left")
    several = (len(op.operands) == 2 and op.kernel != "matmul") or op.kernel == "join"
    node = grow(draft, op, Choice(left, operand("right") if several else left, number, "row"))
    return None if node is None else draft.done(node)
