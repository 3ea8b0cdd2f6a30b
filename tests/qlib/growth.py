"""Graphs grown from the operator table: each row's float operators, with arguments that its columns and schema ask for.

A row whose schema has an argument that nothing here knows fails by the argument's name; a new row with known arguments
needs no entry.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from graphs import Draft, QConfigs, aten
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from qlib.ops import OPS, Op, When
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time

MOST_ELEMENTS = 3000


@dataclass(frozen=True)
class Choice:
    """What a step is given: two tensors of the graph, a number to vary it by, and a path for its constants."""

    a: fx.Node
    b: fx.Node
    number: int
    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.a.meta["shape"])

    @property
    def axis(self) -> int:
        return self.number % len(self.shape)

    @property
    def dim(self) -> int:
        return len(self.shape) - 2


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


def _channels(choice: Choice) -> tuple[int, ...]:
    return (choice.shape[1],)


def _groups(choice: Choice) -> int:
    return 2 if choice.number % 5 == 0 and choice.shape[1] % 2 == 0 else 1


def _hidden(choice: Choice) -> int:
    return 1 + choice.number % 3


def _ways(choice: Choice) -> int:
    """Layers times directions."""
    return (1 + choice.number % 2) * (1 + choice.number % 4 // 3)


def _recurrent_weights(gates: int) -> Callable[[Choice], list[tuple[int, ...]]]:
    """The shapes of the weights and, now and then, biases of each layer and direction."""

    def shapes(choice: Choice) -> list[tuple[int, ...]]:
        hidden, directions = _hidden(choice), 1 + choice.number % 4 // 3
        found: list[tuple[int, ...]] = []
        for way in range(_ways(choice)):
            inputs = choice.shape[-1] if way < directions else hidden * directions
            found += [(gates * hidden, inputs), (gates * hidden, hidden)]
            found += [(gates * hidden,)] * 2 if choice.number % 3 else []
        return found

    return shapes


def _state(choice: Choice) -> Tensor:
    """The first state: zero, or a tensor that is not."""
    batch = choice.shape[0 if choice.number % 5 == 1 else 1]
    shape = (_ways(choice), batch, _hidden(choice))
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) / 10 * (choice.number % 2)


def _mask(choice: Choice) -> Tensor:
    """A mask that hides no row as a whole."""
    mask = torch.arange(choice.shape[-1]).expand(choice.shape) % (2 + choice.number % 3) == 1
    return mask if choice.number % 2 else mask[:1]


def _added_mask(choice: Choice) -> Tensor:
    return torch.where(_mask(choice), -math.inf, 0.25)


def _last(choice: Choice) -> list[int]:
    return [choice.shape[-1]]


def _kernel(choice: Choice) -> list[int]:
    return [min(1 + (choice.number + i) % 3, size) for i, size in enumerate(choice.shape[2:])]


def _dilation(choice: Choice) -> list[int]:
    return [1 + choice.number % 7 // 5] * choice.dim


def _conv_weight(choice: Choice) -> tuple[int, ...]:
    groups = _groups(choice)
    return (groups * (1 + choice.number % 4), choice.shape[1] // groups, *_kernel(choice))


def _spread_weight(choice: Choice) -> tuple[int, ...]:
    return (choice.shape[1], 1 + choice.number % 4, *_kernel(choice))


# Shapes of the constant tensors at a row's `parameters`, by operator and argument, or by operator alone.
SHAPES: Mapping[str, Callable[[Choice], tuple[int, ...] | list[tuple[int, ...]]]] = {
    "linear.weight": lambda c: (1 + c.number % 5, c.shape[-1]),
    "linear.bias": lambda c: (1 + c.number % 5,),
    "conv.weight": _conv_weight,
    "conv.bias": lambda c: (_conv_weight(c)[0],),
    "conv_transpose.weight": _spread_weight,
    "conv_transpose.bias": lambda c: (_groups(c) * (1 + c.number % 4),),
    "embedding.weight": lambda c: (7, 1 + c.number % 4),
    "embedding_bag.weight": lambda c: (7, 1 + c.number % 4),
    "lstm.params": _recurrent_weights(4),
    "gru.params": _recurrent_weights(3),
    "rnn_tanh.params": _recurrent_weights(1),
    "rnn_relu.params": _recurrent_weights(1),
    "layer_norm": lambda c: (c.shape[-1],),
    "rms_norm": lambda c: (c.shape[-1],),
    "group_norm": _channels,
    "instance_norm": _channels,
    "batch_norm": _channels,
    "prelu": lambda c: _channels(c) if c.number % 3 else (1,),
}


def _indices(choice: Choice, *shape: int) -> Tensor:
    """Indices into a dimension of any size: zeros, and ones where there are two."""
    most = 2 if choice.shape[choice.axis] > 1 else 1
    return torch.arange(math.prod(shape)).reshape(shape) % most


# Indices, masks and states at a row's `others`, by operator and argument.
INDICES: Mapping[str, Callable[[Choice], Any]] = {
    "embedding.indices": lambda c: torch.tensor([[3, 0, 0], [1, 2, 6 - c.number % 3]]),
    "embedding_bag.indices": lambda c: torch.tensor([3, 0, 0, 1, c.number % 7]),
    # A last offset that is included is the number of the indices.
    "embedding_bag.offsets": lambda c: torch.tensor([0, 2, 2, 5][: 4 if c.number % 2 else 2 + c.number % 3]),
    "embedding_bag.per_sample_weights": lambda c: torch.linspace(-1, 2, 5) if c.number % 6 == 3 else None,
    "lstm.hx": lambda c: [_state(c), 1 - _state(c)],
    "gru.hx": _state,
    "rnn_tanh.hx": _state,
    "rnn_relu.hx": _state,
    "masked_fill.mask": _mask,
    "where.condition": _mask,
    "add.other": _added_mask,
    "index.indices": lambda c: [*[None] * c.axis, _indices(c, 3)],
    "index_select.index": lambda c: _indices(c, 3),
    "gather.index": lambda c: _indices(c, *c.shape),
}

# Plain arguments by operator and name, or by name alone; those that are not here keep their default.
PLAIN: Mapping[str, Callable[[Choice], Any]] = {
    "conv.stride": lambda c: [1 + c.number % 2] * c.dim,
    "conv.padding": lambda c: [c.number % 4 // 2] * c.dim,
    "conv.dilation": _dilation,
    "conv.groups": _groups,
    "conv_transpose.stride": lambda c: [1 + c.number % 3] * c.dim,
    "conv_transpose.padding": lambda c: [c.number % 4 // 3] * c.dim,
    "conv_transpose.output_padding": lambda c: [1 if c.number % 3 == 2 else 0] * c.dim,
    "conv_transpose.dilation": _dilation,
    "conv_transpose.groups": _groups,
    "embedding_bag.mode": lambda c: c.number % 3,
    "embedding_bag.include_last_offset": lambda c: c.number % 2 == 1,
    "kernel_size": lambda c: [2] * c.dim,
    "max_pool.stride": lambda c: [1 + c.number % 2] * c.dim,
    "max_pool.padding": lambda c: [c.number % 4 // 2] * c.dim,
    "max_pool.dilation": lambda c: [1 + c.number % 5 // 4] * c.dim,
    "avg_pool.stride": lambda c: [1 + c.number % 2] * c.dim,
    "avg_pool.padding": lambda c: [c.number % 4 // 2] * c.dim,
    "count_include_pad": lambda c: c.number % 3 > 0,
    "ceil_mode": lambda c: c.number % 5 > 2,
    "output_size": lambda c: [1 + (c.number + i) % 4 for i in range(c.dim)],
    "align_corners": lambda c: c.number % 2 == 0,
    "normalized_shape": _last,
    "num_groups": lambda c: 2 if c.shape[1] % 2 == 0 else 1,
    "use_input_stats": lambda c: True,
    "training": lambda c: False,
    "momentum": lambda c: 0.1,
    "eps": lambda c: 1e-5,
    "cudnn_enabled": lambda c: False,
    "other": lambda c: 0.37 * c.number - 3.1,
    "clamp.min": lambda c: -0.1 * c.number,
    "clamp.max": lambda c: None if c.number % 2 else 0.5,
    "clamp_min.min": lambda c: -0.1 * c.number,
    "clamp_max.max": lambda c: 0.1 * c.number,
    "exponent": lambda c: 1 + c.number % 3,
    "threshold": lambda c: 0.1 * c.number,
    "has_biases": lambda c: c.number % 3 > 0,
    "num_layers": lambda c: 1 + c.number % 2,
    "dropout": lambda c: 0.0,
    "train": lambda c: False,
    "bidirectional": lambda c: c.number % 4 == 3,
    "batch_first": lambda c: c.number % 5 == 1,
    "value": lambda c: 0.1 * c.number - 1,
    "constant_pad_nd.value": lambda c: 0,
    "constant_pad_nd.pad": lambda c: [c.number % 2, 1],
    "dim": lambda c: c.axis,
    "keepdim": lambda c: c.number % 2 == 0,
    "sum.dim": lambda c: [c.axis],
    "mean.dim": lambda c: [c.axis] if c.number % 3 else [0, -1][: len(c.shape)],
    "amax.dim": lambda c: [c.axis],
    "amin.dim": lambda c: [c.axis],
    "descending": lambda c: c.number % 2 == 0,
    "topk.k": lambda c: 1 + c.number % c.shape[c.axis],
    "shape": lambda c: [c.shape[0], -1, 1],
    "start_dim": lambda c: min(1, len(c.shape) - 1),
    "unflatten.sizes": lambda c: [-1, 1],
    "permute.dims": lambda c: [*range(c.axis, len(c.shape)), *range(c.axis)],
    "dim0": lambda c: 0,
    "dim1": lambda c: c.axis,
    "start": lambda c: c.number % 2,
    "select.index": lambda c: c.number % c.shape[c.axis],
    "chunks": lambda c: 2,
    "split_size": lambda c: 1 + c.number % 2,
    "split_sizes": lambda c: [1, c.shape[c.axis] - 1],
    "repeats": lambda c: [*[1] * (len(c.shape) - 1), 2],
    "size": lambda c: [-1, *c.shape[1:]],
    "upscale_factor": lambda c: 2,
    "downscale_factor": lambda c: 2,
    "channel_shuffle.groups": lambda c: 2,
    "shifts": lambda c: [1 + c.number],
    "roll.dims": lambda c: [c.axis],
    "flip.dims": lambda c: [c.axis],
    "tile.dims": lambda c: [2],
    "repeat_interleave.repeats": lambda c: 2,
    "sections": lambda c: 2,
}


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
