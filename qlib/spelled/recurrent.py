"""Recurrent layers: products in int64, everything else in float64, step by step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qlib.graph import call, op_name
from qlib.kernels import Site
from qlib.kernels.recurrence import STEPS, Geometry, recurrence
from qlib.spelled.formulas import ATEN, shifted, times, to
from qlib.spelled.weighted import shifted_weight

_OPS = torch.ops.qlib


@dataclass(frozen=True)
class _Matrix:
    """A weight less its zero point as columns in int64, its scales and its bias in float64."""

    columns: fx.Node
    scale: fx.Node
    bias: fx.Node | None


@dataclass(frozen=True)
class _Entered:
    """Integers, their scale and their zero point."""

    integers: fx.Node
    scale: fx.Node
    zero_point: fx.Node


@dataclass(frozen=True)
class _InAten:
    """The arithmetic of the kernel, in nodes; `range` are the arguments of `choose_qparams` after the tensor."""

    graph: fx.Graph
    matrices: tuple[tuple[_Matrix, ...], ...]
    range: tuple[Any, ...]

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def enter(self, x: fx.Node) -> _Entered:
        """By the operators of the border, which are spelled out with all others."""
        qmin, qmax, _, dtype = self.range
        single = to(self.graph, x, torch.float32)
        choice = self.call(_OPS.choose_qparams.default, single, *self.range)
        scale, zero_point = (self.call(operator.getitem, choice, index) for index in (0, 1))
        q = self.call(_OPS.quantize_per_tensor.tensor, single, scale, zero_point, qmin, qmax, dtype)
        return _Entered(q, scale, zero_point)

    def product(self, entered: _Entered, layer: int, matrix: int) -> fx.Node:
        """``acc * (x_scale * w_scale) + bias``."""
        found = self.matrices[layer][matrix]
        acc = self.call(ATEN.matmul.default, shifted(self.graph, entered.integers, entered.zero_point), found.columns)
        step = self.call(ATEN.mul.Tensor, to(self.graph, entered.scale, torch.float64), found.scale)
        y = times(self.graph, acc, step)
        return y if found.bias is None else self.call(ATEN.add.Tensor, y, found.bias)


def recurrent(site: Site) -> tuple[fx.Node, ...]:
    """The outputs and the last states, by the recurrence that the kernel has."""
    assert site.runtime is not None
    head, runtime = site.match.head, site.runtime
    arguments: tuple[Any, ...] = head.args
    given, layers, bidirectional, batch_first = arguments[1], arguments[4], arguments[7], arguments[8]
    directions = 1 + bool(bidirectional)
    arithmetic = _InAten(site.model.graph, _matrices(site, layers * directions), runtime.arguments)
    states = given if isinstance(given, list | tuple) else [given]
    first = [to(arithmetic.graph, state, torch.float64) for state in states]
    steps = arguments[0].meta["shape"][1 if batch_first else 0]
    geometry = Geometry(steps, layers, directions, len(arithmetic.matrices[0]))
    entered = _Entered(_time_first(arithmetic, runtime.integers, batch_first), runtime.scale, runtime.zero_point)
    y, last = recurrence(arithmetic, STEPS[op_name(head)], entered, first, geometry)
    results = (_time_first(arithmetic, y, batch_first), *last)
    return tuple(to(arithmetic.graph, value, torch.float32) for value in results)


def _time_first(arithmetic: _InAten, x: fx.Node, batch_first: bool) -> fx.Node:
    """The same with the first two dimensions exchanged where the batch comes first, which undoes itself."""
    return arithmetic.call(ATEN.transpose.int, x, 0, 1) if batch_first else x


def _matrices(site: Site, ways: int) -> tuple[tuple[_Matrix, ...], ...]:
    """The matrices of each layer and direction, in the order of torch's list; one of projections has no bias."""
    graph, weights = site.model.graph, site.match.weights
    parameters: Any = site.match.head.args[2]
    biases: list[fx.Node] = [node for node in parameters if node not in weights]
    each = len(weights) // ways
    found = []
    for number, weight in enumerate(weights):
        way, matrix = divmod(number, each)
        stored = site.stored(weight)
        columns = call(graph, ATEN.transpose.int, shifted_weight(site, stored), 0, 1)
        scale = site.constant("weight_scale_float64", site.tensor(stored[1]).double())
        bias = to(graph, biases[2 * way + matrix], torch.float64) if biases and matrix < 2 else None
        found.append(_Matrix(columns, scale, bias))
    return tuple(tuple(found[start : start + each]) for start in range(0, len(found), each))
