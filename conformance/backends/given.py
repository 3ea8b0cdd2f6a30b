"""The numerics track: the bundled library's debug graph given to a backend as ONNX, and its results judged.

The graph is the question: quantize and dequantize around float operators, with every scale, zero point and integer in
it. A backend runs it by its own kernels; what it gives is judged integer by integer against exact arithmetic.

    given = given_graph(task, stage)         # in mode `numerics`
    program = ...                            # given.model, opened by the backend
    return given.judged(program)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conformance.backend import Explanation, Program, Quantized, Stage, Task
from conformance.backends import qlib as bundled
from conformance.backends.onnx_source import source_of
from conformance.compare import Rounding, tie_bound

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The numbers that a quantized tensor can hold: ``scale * (q - zero_point)`` for q from `qmin` to `qmax`."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    def integers(self, x: Tensor) -> Tensor:
        """The nearest integers of real numbers, in float64, saturated; NaN stays NaN."""
        return ((x.double() / self.scale).round() + self.zero_point).clamp(self.qmin, self.qmax)

    def numbers(self, q: Tensor) -> Tensor:
        """The real numbers of integers, in float64."""
        return (q.double() - self.zero_point) * self.scale


@dataclass(frozen=True)
class Exit:
    """An output: the name that its last rounding has in an `Explanation`, and its grid, None where it is in float."""

    name: str
    grid: Grid | None


@dataclass(frozen=True)
class Given:
    """A quantized graph that a backend is to run as it is.

    `model` is an `onnx.ModelProto`: float operators between QuantizeLinear and DequantizeLinear, whose documentation
    names the operator and node of the module's graph. `bundled` is what the bundled library makes of it.
    `entries` has the grid of each input that is quantized at once, None for others; `exits` tells of each output.
    """

    model: Any
    bundled: Quantized
    entries: tuple[Grid | None, ...]
    exits: tuple[Exit, ...]
    example: tuple[Tensor, ...]

    def judged(self, program: Program) -> Quantized:
        """What the engine judges: a backend's `program` for `model`, beside the bundled library's debug form.

        Inputs are moved onto the grid that the graph quantizes them to, so that no rounding of an input is a tie. Where
        a rounding within the graph lies on a boundary, its outputs depend on how it fell: they are then judged
        by their accuracy alone, and a note says so.
        """
        own, explain = self.bundled, self.bundled.explain
        assert own.debug is not None and explain is not None
        final = replace(program, call=self._snapped(program), quanta=tuple(self._step(exit) for exit in self.exits))
        example = self._snap(self.example)
        known = explain("final", tuple(x.clone() for x in example))
        inner = self._undecided(known)
        if inner:
            note = f"{inner} roundings within the graph lie on a boundary: outputs are judged by accuracy alone"
            return replace(own, final=final, debug=None, explain=None, layers=None, notes=(note,))

        def explained(form: str, inputs: Sequence[Tensor]) -> Explanation:
            snapped = self._snap(inputs)
            if form == "debug":
                return explain("debug", snapped)
            # The inputs that a case is judged on are the example nearly always, of which the oracle has told.
            again = all(x.equal(y) for x, y in zip(snapped, example, strict=True))
            return self._explanation(known if again else explain("final", snapped), program, inputs)

        debug = replace(own.debug, call=self._snapped(own.debug))
        return replace(own, final=final, debug=debug, explain=explained, layers=None, notes=())

    def _step(self, exit: Exit) -> float | None:
        return None if exit.grid is None else exit.grid.scale

    def _snap(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pairs = zip(inputs, self.entries, strict=True)
        return tuple(x if grid is None else grid.numbers(grid.integers(x)).to(x.dtype) for x, grid in pairs)

    def _snapped(self, program: Program) -> Any:
        return lambda *inputs: program.call(*self._snap(inputs))

    def _undecided(self, told: Explanation) -> int:
        """How many numbers within the graph lie so near a boundary that either integer is right."""
        outer = {exit.name for exit in self.exits}
        inner = (r for r in told.roundings if r.name not in outer and r.zero_point is not None)
        return sum(int(_on_boundary(rounding).sum()) for rounding in inner)

    def _explanation(self, told: Explanation, program: Program, inputs: Sequence[Tensor]) -> Explanation:
        """The roundings of the outputs, with the backend's integers in the place of the bundled library's."""
        from conformance.engine import fresh, tensors

        by_name: Mapping[str, Rounding] = {rounding.name: rounding for rounding in told.roundings}
        outputs = tensors(program.call(*self._snap(fresh(inputs))))
        roundings, follow = [], []
        for exit, y, exact in zip(self.exits, outputs, told.outputs, strict=False):
            rounding = by_name.get(exit.name)
            given = y if exit.grid is None else exit.grid.integers(y)
            roundings += [] if rounding is None else [replace(rounding, given=given)]
            on_grid = exact if rounding is None else given
            follow.append(on_grid if exit.grid is None else exit.grid.numbers(given))
        return Explanation(tuple(roundings), tuple(follow))


def _on_boundary(rounding: Rounding) -> Any:
    v = rounding.real
    assert rounding.zero_point is not None
    inside = (v + rounding.zero_point >= rounding.qmin - 1) & (v + rounding.zero_point <= rounding.qmax + 1)
    return ((v - v.floor() - 0.5).abs() <= tie_bound(rounding)) & inside


def given_graph(task: Task, stage: Stage) -> Given:
    """The quantized graph that a task of mode `numerics` is about; a backend calls it in its `quantize`.

    Raises Inexpressible for what ONNX can't express, EnvironmentTrouble where the package onnx is missing.
    """
    model, quantized = bundled.debug_of(task, stage)
    graph = _Graph(model)
    entries = tuple(graph.entry(value.name) for value in model.graph.input)
    exits = tuple(graph.exit(value.name) for value in model.graph.output)
    return Given(model, quantized, entries, exits, tuple(x.clone() for x in task.inputs))


class _Graph:
    """Looks up who makes and who takes the values of an ONNX graph."""

    def __init__(self, model: Any) -> None:
        self.source = source_of(model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def entry(self, name: str) -> Grid | None:
        """The grid that all who take an input quantize it to."""
        takers = self.source.readers.get(name, ())
        grids = {self._grid(node) if node.op_type == "QuantizeLinear" else None for node in takers}
        return grids.pop() if len(grids) == 1 else None

    def exit(self, name: str) -> Exit:
        """The operator behind an output, with the grid that it was quantized to."""
        node = self.source.maker(name)
        if node is not None and node.op_type == "DequantizeLinear":
            source = self.source.maker(node.input[0])
            if source is not None and source.op_type == "QuantizeLinear" and (grid := self._grid(source)) is not None:
                return Exit(_node_name(source), grid)
        return Exit("" if node is None else _node_name(node), None)

    def _grid(self, node: Any) -> Grid | None:
        import numpy as np
        from onnx import numpy_helper

        stored = [self.constants.get(name) for name in node.input[1:3]]
        if None in stored:  # known at run time only
            return None
        scale, zero_point = map(numpy_helper.to_array, stored)
        if scale.size != 1:
            return None
        limits = np.iinfo(zero_point.dtype)
        return Grid(float(scale), int(zero_point), int(limits.min), int(limits.max))


def _node_name(node: Any) -> str:
    return str(node.doc_string.partition(" ")[2])
