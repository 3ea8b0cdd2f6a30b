"""A graph that is given to a backend as ONNX, and what is made of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from small_specs import cases_of
from torch import Tensor

from conformance.backend import About, Explanation, Program, Quantized, Stage, Task
from conformance.backends import open_backend
from conformance.compare import tally
from conformance.engine import run_case, task_of
from conformance.record import Outcome, Record, Verdict

pytest.importorskip("onnx")

from conformance.backends.given import Given, given_graph

SCALES = """\
spec: 1
suite: given
defaults:
  modes: [numerics]
  capture: [export]
  inputs: {x: {shape: [16, 8], distribution: integers, range: [-8, 8]}}
  qconfig:
    activation: {dtype: uint8, observer: fixed, scale: 1, zero_point: 128}
    weight: {dtype: int8, symmetric: true, observer: fixed, scale: 1, zero_point: 0}
    output: {dtype: uint8, observer: fixed, scale: 4, zero_point: 121}
"""
LAYER = (
    SCALES
    + """\
cases:
  - id: one
    why: one rounding
    module: nn.Linear(8, 6)
    parameters: {weight: {distribution: integers, range: [-3, 3]}, bias: {distribution: integers, range: [-9, 9]}}
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 5}}
"""
)
LAYERS = (
    SCALES
    + """\
cases:
  - id: two
    why: a rounding within the graph that ties
    module: ["nn.Linear(8, 6)", "nn.Linear(6, 4)"]
    parameters: {"*weight": {distribution: integers, range: [-3, 3]}, "*bias": {distribution: integers, range: [-9, 9]}}
    expect: {ops: {quantized::linear: 2}, accuracy: {sqnr_db: 1}}
"""
)
RANDOM = """\
spec: 1
suite: given
cases:
  - id: random
    why: inputs that lie between the integers
    module: nn.Linear(8, 6)
    modes: [numerics]
    inputs: {x: {shape: [64, 8]}}
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 30}}
"""
Answer = Callable[[Given, Task, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Other:
    """A backend that answers by a function, and says that its linear layers ran in integers."""

    answer: Answer

    def about(self) -> About:
        return About("other", {}, frozenset({"numerics"}), frozenset({"export"}))

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        given = given_graph(task, stage)
        linear = sum(node.op_type == "Gemm" for node in given.model.graph.node)
        program = Program(lambda *inputs: self.answer(given, task, inputs), ("quantized::linear",) * linear)
        return given.judged(program)


def run(text: str, answer: Answer) -> Record:
    return run_case(cases_of(text)[0], Other(answer), "other").record


def outcome(record: Record, check: str) -> Outcome:
    return next(finding.outcome for finding in record.findings if finding.check == check)


def honest(given: Given, task: Task, inputs: tuple[Tensor, ...]) -> Tensor:
    assert given.bundled.debug is not None
    return given.bundled.debug.call(*inputs)  # type: ignore[return-value]


def exact(task: Task, inputs: tuple[Tensor, ...]) -> Tensor:
    """The exact results of `LAYER` in steps of the output."""
    return task.module.double()(inputs[0].double()) / 4


def numbers(integers: Tensor) -> Tensor:
    return ((integers.clamp(0, 255) - 121) * 4).float()


def half_up(v: Tensor) -> Tensor:
    return torch.floor(v + 0.5) + 121


def test_an_honest_answer_is_native_and_tells_its_rule() -> None:
    record = run(LAYER, honest)
    assert record.verdict is Verdict.NATIVE, record
    assert record.properties == {"rounding": "half_even"}
    assert set(record.histogram) == {"0"} and record.measures.exact == 96 == record.histogram["0"]


def test_another_rule_is_identified_and_right() -> None:
    record = run(LAYER, lambda given, task, inputs: numbers(half_up(exact(task, inputs))))
    assert record.verdict is Verdict.NATIVE, record
    # Of the integers of an unsigned type, which are never negative.
    assert record.properties == {"rounding": "half_up or half_away_shifted"}
    assert record.measures.tie == record.histogram["1"] > 0


def test_two_rules_in_one_tensor_are_wrong() -> None:
    """As where vectors are rounded by one rule and what is left over by another."""

    def mixed(given: Given, task: Task, inputs: tuple[Tensor, ...]) -> Tensor:
        v = exact(task, inputs)
        return numbers(torch.cat([half_up(v[:, :4]), v[:, 4:].round() + 121], 1))

    record = run(LAYER, mixed)
    assert record.properties == {"rounding": "none of them"}
    assert record.verdict is Verdict.WRONG and outcome(record, "rounding") is Outcome.FAILED


@pytest.mark.parametrize("text", [LAYER, RANDOM])
def test_a_quantum_too_much_is_wrong(text: str) -> None:
    def shifted(given: Given, task: Task, inputs: tuple[Tensor, ...]) -> Tensor:
        (exit,) = given.exits
        assert exit.grid is not None
        return honest(given, task, inputs) + exit.grid.scale

    record = run(text, shifted)
    assert record.verdict is Verdict.WRONG and outcome(record, "debug_equal") is Outcome.FAILED
    assert set(record.histogram) <= {"0", "1"} and record.histogram["1"] > 90  # the greatest integer has no next


def test_results_between_the_integers_are_wrong() -> None:
    record = run(LAYER, lambda given, task, inputs: (exact(task, inputs) * 4).float())
    assert record.verdict is Verdict.WRONG and outcome(record, "really_ran") is Outcome.FAILED


def test_inputs_lie_on_the_grid_so_that_no_backend_has_to_round_them() -> None:
    def looked_at(given: Given, task: Task, inputs: tuple[Tensor, ...]) -> Tensor:
        (grid,) = given.entries
        assert grid is not None
        steps = inputs[0].double() / grid.scale
        assert float((steps - steps.round()).abs().max()) < 1e-4
        return honest(given, task, inputs)

    record = run(RANDOM, looked_at)
    assert record.verdict is Verdict.NATIVE, record
    assert "rounding" not in record.properties  # no scale is a power of two


@pytest.mark.parametrize("answer", [lambda *_: torch.zeros(2, 2), lambda *_: torch.full((16, 6), torch.nan)])
def test_answers_of_another_shape_and_no_numbers(answer: Answer) -> None:
    assert run(LAYER, answer).verdict is Verdict.WRONG


def test_the_oracle_is_asked_once_about_the_example_and_again_about_other_inputs() -> None:
    task = task_of(cases_of(RANDOM)[0])
    given = given_graph(task, lambda step: nullcontext())
    own, asked = given.bundled, []

    def explain(form: str, inputs: Sequence[Tensor]) -> Explanation:
        asked.append(form)
        assert own.explain is not None
        return own.explain(form, inputs)

    assert own.debug is not None
    judged = replace(given, bundled=replace(own, explain=explain)).judged(own.debug)
    assert judged.explain is not None
    judged.explain("final", task.inputs)
    assert asked == ["final"]
    told = judged.explain("final", [2 * x for x in task.inputs])
    assert asked == ["final"] * 2
    assert tally(told.roundings).wrong == 0
    judged.explain("debug", task.inputs)
    assert asked == ["final", "final", "debug"]


def test_ties_within_the_graph_leave_accuracy_alone_to_judge() -> None:
    record = run(LAYERS, honest)
    assert record.verdict is Verdict.NATIVE, record
    assert "judged by accuracy alone" in record.notes[0]
    assert {finding.check for finding in record.findings}.isdisjoint({"debug_equal", "rounding"})


@pytest.mark.parametrize(
    ("backend", "rules"),
    [("qlib:reference", {"half_even"}), ("qlib", {"half_even", "half_even_shifted"})],  # by what oneDNN does here
)
def test_the_bundled_library_tells_its_rule_too(backend: str, rules: set[str]) -> None:
    record = run_case(cases_of(LAYER)[0], open_backend(backend), backend).record
    assert record.verdict is Verdict.NATIVE and record.properties["rounding"] in rules
