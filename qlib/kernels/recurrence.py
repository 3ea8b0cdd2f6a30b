"""The recurrence of LSTM, GRU and plain layers, written once for tensors and for the nodes of a graph.

    LSTM   i, f, g, o = gates(x_t) + gates(h);  c' = sigmoid(f) * c + sigmoid(i) * tanh(g);  h' = sigmoid(o) * tanh(c')
    GRU    r, z = sigmoid(gates(x_t) + gates(h));  n = tanh(x_n + h_n * r);  h' = (h - n) * z + n
    plain  h' = f(gates(x_t) + gates(h))

with ``gates(v) = W v + b`` (the equations of `torch.nn.LSTM`, `GRU` and `RNN`). The inputs of all steps are multiplied
at once, and so have one range; each hidden state has its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch

_aten = torch.ops.aten
Value = Any


class Arithmetic(Protocol):
    """What a recurrence is computed in: operators on tensors, or nodes that call them."""

    def call(self, target: Callable[..., Any], *args: Any) -> Value:
        """The result of an operator in float."""

    def enter(self, x: Value) -> Value:
        """A float value, quantized by its own range."""

    def product(self, entered: Value, layer: int, matrix: int) -> Value:
        """``W x + b`` in float, for a value that was entered and a matrix of a layer (and direction)."""


@dataclass(frozen=True)
class Geometry:
    """How many steps, layers and directions there are, and matrices to each of them: two, or three with projections."""

    steps: int
    layers: int
    directions: int
    matrices: int


Step = Callable[[Arithmetic, Value, Value, tuple[Value, ...]], tuple[Value, ...]]


def _pieces(arithmetic: Arithmetic, gates: Value, count: int) -> list[Value]:
    chunks = arithmetic.call(_aten.chunk.default, gates, count, 1)
    return [arithmetic.call(operator.getitem, chunks, index) for index in range(count)]


def _lstm(arithmetic: Arithmetic, from_x: Value, from_h: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    call = arithmetic.call
    i, f, g, o = _pieces(arithmetic, call(_aten.add.Tensor, from_h, from_x), 4)
    i, f, o = (call(_aten.sigmoid.default, gate) for gate in (i, f, o))
    kept, new = call(_aten.mul.Tensor, f, state[1]), call(_aten.mul.Tensor, i, call(_aten.tanh.default, g))
    c = call(_aten.add.Tensor, kept, new)
    return call(_aten.mul.Tensor, o, call(_aten.tanh.default, c)), c


def _gru(arithmetic: Arithmetic, from_x: Value, from_h: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    call = arithmetic.call
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (_pieces(arithmetic, gates, 3) for gates in (from_x, from_h))
    r, z = (call(_aten.sigmoid.default, call(_aten.add.Tensor, h, x)) for h, x in ((h_r, x_r), (h_z, x_z)))
    n = call(_aten.tanh.default, call(_aten.add.Tensor, x_n, call(_aten.mul.Tensor, h_n, r)))
    return (call(_aten.add.Tensor, call(_aten.mul.Tensor, call(_aten.sub.Tensor, state[0], n), z), n),)


def _plain(
    curve: Callable[..., Any], arithmetic: Arithmetic, from_x: Value, from_h: Value, state: tuple[Value, ...]
) -> tuple[Value, ...]:
    return (arithmetic.call(curve, arithmetic.call(_aten.add.Tensor, from_h, from_x)),)


# One step of each operator: from the gates of the input and of the hidden state to the next state, hidden one first.
STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "aten::lstm": _lstm,
        "aten::gru": _gru,
        "aten::rnn_tanh": partial(_plain, _aten.tanh.default),
        "aten::rnn_relu": partial(_plain, _aten.relu.default),
    }
)


def recurrence(
    arithmetic: Arithmetic, step: Step, entered: Value, states: Sequence[Value], geometry: Geometry
) -> tuple[Value, tuple[Value, ...]]:
    """The outputs (steps, batch, features) of the last layer, and the last states (layers * directions, batch, size).

    `entered` is the input (steps, batch, features) as `Arithmetic.enter` gives it; `states` are the first states, in
    the shape of the last ones.
    """
    call = arithmetic.call
    last: list[tuple[Value, ...]] = []
    outputs: list[Value] = []
    for layer in range(geometry.layers):
        if layer:
            entered = arithmetic.enter(_joined(arithmetic, outputs))
        outputs = []
        for direction in range(geometry.directions):
            index = layer * geometry.directions + direction
            first = tuple(call(_aten.select.int, state, 0, index) for state in states)
            found = _one_way(arithmetic, step, (entered, first, index), (geometry, direction))
            outputs.append(call(_aten.stack.default, found[0], 0))
            last.append(found[1])
    stacked = tuple(call(_aten.stack.default, list(state), 0) for state in zip(*last, strict=True))
    return _joined(arithmetic, outputs), stacked


def _joined(arithmetic: Arithmetic, outputs: list[Value]) -> Value:
    """The outputs of both directions side by side."""
    return outputs[0] if len(outputs) == 1 else arithmetic.call(_aten.cat.default, outputs, -1)


def _one_way(
    arithmetic: Arithmetic, step: Step, given: tuple[Value, tuple[Value, ...], int], way: tuple[Geometry, int]
) -> tuple[list[Value], tuple[Value, ...]]:
    """The hidden states of one layer in one direction, in the order of time, and the state it ends in."""
    entered, state, index = given
    geometry, direction = way
    projected = arithmetic.product(entered, index, 0)
    times = range(geometry.steps)
    hidden: dict[int, Value] = {}
    for time in reversed(times) if direction else times:
        from_x = arithmetic.call(_aten.select.int, projected, 0, time)
        from_h = arithmetic.product(arithmetic.enter(state[0]), index, 1)
        state = step(arithmetic, from_x, from_h, state)
        if geometry.matrices > 2:
            state = (arithmetic.product(arithmetic.enter(state[0]), index, 2), *state[1:])
        hidden[time] = state[0]
    return [hidden[time] for time in times], state
