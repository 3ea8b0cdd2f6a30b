"""What operators are given where graphs are grown: shapes of constants, indices and plain arguments, by their names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


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
