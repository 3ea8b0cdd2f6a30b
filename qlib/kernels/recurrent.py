"""Recurrent layers on floats whose products are taken in integers, inputs and hidden states quantized at run time.

The products are exact and everything else is in float64: a hidden state that float32 computes one bit off may be
rounded to another integer, and the steps after it would go another way. What is quantized is rounded to float32 before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qlib.arith import qparams_of_tensor, quantize
from qlib.graph import Model, op_name
from qlib.kernels.boundary import storage_spec
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.kernels.layer import Layer, Weight
from qlib.kernels.recurrence import STEPS, Geometry, recurrence
from qlib.kernels.weighted import DYNAMIC_RESULT, Sum, accumulate, float64_sum, integer_sum
from qlib.ops import Op

_aten, _OPS = torch.ops.aten, torch.ops.qlib
# Matrices and biases go layer by layer, in the order of torch's list; biases are empty where there are none.
WEIGHTS = "Tensor[] w, Tensor[] w_scale, Tensor[] w_zero_point, Tensor[] bias"
GEOMETRY = "int layers, bool bidirectional, bool batch_first"


@dataclass(frozen=True)
class _InIntegers:
    """The arithmetic of the kernel."""

    summed: Sum
    weights: tuple[tuple[Weight, ...], ...]
    range: tuple[Any, ...]

    def call(self, target: Callable[..., Any], *args: Any) -> Any:
        return target(*args)

    def enter(self, x: Tensor) -> tuple[Tensor, float, int]:
        single = x.to(torch.float32)
        params = qparams_of_tensor(single, storage_spec(*self.range))
        return quantize(single, params), float(params.scale), int(params.zero_point)

    def product(self, entered: tuple[Tensor, float, int], layer: int, matrix: int) -> Tensor:
        weight = self.weights[layer][matrix]
        q, scale, zero_point = entered
        y = accumulate(Layer(q, scale, zero_point, weight), self.summed) * (scale * weight.scale.double())
        return y if weight.bias is None else y + weight.bias.double()


@dataclass(frozen=True)
class _InGraph:
    """The arithmetic of the debug form: nodes that quantize, dequantize and multiply in float.

    Without a `range` nothing is quantized.
    """

    graph: fx.Graph
    parameters: tuple[fx.Node, ...]
    has_biases: bool
    each: int
    range: tuple[Any, ...]

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def enter(self, x: fx.Node) -> fx.Node:
        if not self.range:
            return x
        qmin, qmax, _, dtype = self.range
        choice = self.call(_OPS.choose_qparams.default, x, *self.range)
        pair = [self.call(operator.getitem, choice, index) for index in (0, 1)]
        q = self.call(_OPS.quantize_per_tensor.tensor, x, *pair, qmin, qmax, dtype)
        return self.call(_OPS.dequantize_per_tensor.tensor, q, *pair)

    def product(self, entered: fx.Node, layer: int, matrix: int) -> fx.Node:
        own = self.parameters[layer * self.each : (layer + 1) * self.each]
        weights = [*own[:2], *own[4:]] if self.has_biases else list(own)
        bias = own[2 + matrix] if self.has_biases and matrix < 2 else None
        return self.call(_aten.linear.default, entered, weights[matrix], bias)


def _batch_second(arithmetic: Any, x: Any, batch_first: bool) -> Any:
    """The same with the first two dimensions exchanged where the batch comes first, which undoes itself."""
    return arithmetic.call(_aten.transpose.int, x, 0, 1) if batch_first else x


def _weights(
    ways: int, w: list[Tensor], scale: list[Tensor], zero_point: list[Tensor], bias: list[Tensor]
) -> tuple[tuple[Weight, ...], ...]:
    """The weights of each layer and direction; a matrix of projections has no bias."""
    matrices = len(w) // ways
    found = []
    for way in range(ways):
        biases: list[Tensor | None] = list(bias[2 * way : 2 * way + 2]) if bias else [None, None]
        start = way * matrices
        rows = zip(w[start:], scale[start:], zero_point[start:], [*biases, None][:matrices], strict=False)
        found.append(tuple(Weight(*row) for row in rows))
    return tuple(found)


def _recurrent(summed: Sum) -> Callable[[Op], Implementation]:
    def build(op: Op) -> Implementation:
        step = STEPS[op.chain[0]]

        def run(x: Tensor, states: list[Tensor], *rest: Any) -> tuple[Tensor, ...]:
            layers, bidirectional, batch_first = rest[4:7]
            weights = _weights(layers * (1 + bidirectional), *rest[:4])
            arithmetic = _InIntegers(summed, weights, rest[7:])
            x = _batch_second(arithmetic, x, batch_first)
            geometry = Geometry(x.shape[0], layers, 1 + bidirectional, len(weights[0]))
            first = [state.to(torch.float64) for state in states]
            y, last = recurrence(arithmetic, step, arithmetic.enter(x), first, geometry)
            y = _batch_second(arithmetic, y, batch_first).contiguous()
            return tuple(value.to(torch.float32) for value in (y, *last))

        return run

    return build


def _states(op: Op) -> int:
    return 2 if op.chain[0] == "aten::lstm" else 1


def _arguments(site: Site) -> tuple[object, ...]:
    assert site.runtime is not None
    _, states, parameters, has_biases, layers, _, _, bidirectional, batch_first = site.match.head.args
    states = states if isinstance(states, list | tuple) else [states]
    weights = zip(*(site.stored(node) for node in site.match.weights), strict=True)
    biases = [node for node in parameters if node not in site.match.weights] if has_biases else []  # type: ignore[union-attr]
    geometry = (layers, bidirectional, batch_first)
    return (site.runtime.node, list(states), *map(list, weights), biases, *geometry, *site.runtime.arguments)


def _schema(op: Op) -> str:
    results = ", ".join(["Tensor"] * (1 + _states(op)))
    return f"(Tensor x, Tensor[] states, {WEIGHTS}, {GEOMETRY}, {DYNAMIC_RESULT}) -> ({results})"


def _fake(op: Op) -> Implementation:
    def fake(x: Tensor, states: list[Tensor], *rest: Any) -> tuple[Tensor, ...]:
        size = states[0].shape[-1] * (1 + rest[5])
        return (x.new_empty((*x.shape[:2], size)), *(state.new_empty(state.shape) for state in states))

    return fake


def spell_steps(node: fx.Node, runtime: tuple[Any, ...]) -> Model:
    """What a recurrent operator computes where its hidden states are quantized too: a graph of its own.

    It takes the operator's arguments, its input being quantized already; `runtime` are the arguments of
    `choose_qparams` after the tensor, none where nothing is quantized.
    """
    graph = fx.Graph()
    target: Any = node.target
    x, states, parameters, *_ = (graph.placeholder(argument.name) for argument in target._schema.arguments)
    given, weights, has_biases, layers, _, _, bidirectional, batch_first = node.args[1:]
    assert isinstance(weights, list | tuple) and isinstance(layers, int)
    ways = layers * (1 + bool(bidirectional))
    each = len(weights) // ways
    nodes = tuple(graph.call_function(operator.getitem, (parameters, index)) for index in range(len(weights)))
    arithmetic = _InGraph(graph, nodes, bool(has_biases), each, runtime)
    first = [states]
    if isinstance(given, list | tuple):
        first = [graph.call_function(operator.getitem, (states, index)) for index in range(len(given))]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    steps = source.meta["shape"][1 if batch_first else 0]
    geometry = Geometry(steps, layers, 1 + bool(bidirectional), each - 2 * bool(has_biases))
    entered = _batch_second(arithmetic, x, bool(batch_first))
    y, last = recurrence(arithmetic, STEPS[op_name(node)], entered, first, geometry)
    graph.output((_batch_second(arithmetic, y, bool(batch_first)), *last))
    return Model(torch.nn.Module(), graph)


RECURRENT_DYNAMIC = Kernel(
    "recurrent layers that quantize their input and hidden states by their ranges",
    _arguments,
    _schema,
    _recurrent(integer_sum),
    _recurrent(float64_sum),
    _fake,
    spell_steps,
)
