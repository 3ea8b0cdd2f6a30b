"""A backend's accuracy beside that of the bundled library on the same case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from small_specs import case_of
from torch import Tensor

from conformance.backend import About, Backend, Quantized, Stage, Task
from conformance.backends import REFERENCE, open_backend
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand
from conformance.engine import Limits, run_case
from conformance.errors import Unsupported
from conformance.load import load
from conformance.places import bundled_specs
from conformance.record import Outcome, Record, Verdict

MODULE = """
module: nn.Linear(30, 20)
modes: [static]
capture: [export]
inputs: {x: {shape: [16, 30]}}
"""
ALONE = "{below_reference_db: 1}"
BESIDE_A_FLOOR = "{sqnr_db: 20, below_reference_db: 1}"


def case(accuracy: str) -> Case:
    return case_of(f"{MODULE}expect: {{accuracy: {accuracy}, debug_equal: none}}\n")


@dataclass(frozen=True)
class Noisier:
    """The bundled library with noise on its output that costs so many dB; `act` may raise instead."""

    loss_db: float = 0.0
    act: Callable[[], None] | None = None

    def about(self) -> About:
        return replace(open_backend("qlib").about(), name="noisier")

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        if self.act is not None:
            self.act()
        honest = open_backend("qlib").quantize(task, stage)
        module, grow = task.module, 10 ** (self.loss_db / 20)

        def call(x: Tensor) -> Tensor:
            with torch.no_grad():
                expected = module(x)
                got = honest.final.call(x)
            assert isinstance(got, Tensor)
            return expected + (got - expected) * grow

        final = replace(honest.final, call=call, quanta=(None,))
        return Quantized(honest.float_ops, final)


@dataclass(frozen=True)
class WithoutDebugForm:
    """The bundled library, which tells of itself what other engines do."""

    def about(self) -> About:
        return replace(open_backend("qlib").about(), name="right")

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        honest = open_backend("qlib").quantize(task, stage)
        return Quantized(honest.float_ops, honest.final)


def run(accuracy: str, backend: Backend, reference: Backend | None) -> Record:
    return run_case(case(accuracy), backend, "noisier", Limits(reference=reference)).record


@pytest.mark.parametrize(("loss", "verdict"), [(0.5, Verdict.NATIVE), (2.0, Verdict.WRONG)])
@pytest.mark.parametrize("accuracy", [ALONE, BESIDE_A_FLOOR])
def test_half_a_decibel_less_passes_and_two_are_caught(loss: float, verdict: Verdict, accuracy: str) -> None:
    record = run(accuracy, Noisier(loss), open_backend(REFERENCE))
    assert record.verdict is verdict
    assert record.measures.reference_sqnr_db - record.measures.sqnr_db == pytest.approx(loss, abs=0.01)
    assert "reference" in record.seconds


def test_without_the_key_the_reference_is_not_run() -> None:
    record = run("{sqnr_db: 20}", Noisier(2.0), Noisier(act=_never))
    assert record.verdict is Verdict.NATIVE
    assert record.measures.reference_sqnr_db is None and "reference" not in record.seconds


def test_the_reference_itself_is_compared_with_nothing() -> None:
    reference = open_backend(REFERENCE)
    assert run(ALONE, reference, open_backend(REFERENCE)).verdict is Verdict.VACUOUS
    record = run(BESIDE_A_FLOOR, reference, open_backend(REFERENCE))
    assert record.verdict is Verdict.NATIVE and "reference" not in record.seconds


def _never() -> None:
    raise AssertionError("nobody asked for it")


def _refuse() -> None:
    raise Unsupported("can't", "lstm")


@pytest.mark.parametrize("act", [_never, _refuse])
def test_a_failure_of_the_reference_is_an_error_and_not_the_backends_fault(act: Callable[[], None]) -> None:
    record = run(BESIDE_A_FLOOR, Noisier(), Noisier(act=act))
    assert (record.verdict, record.stage) == (Verdict.ERROR, "reference")
    assert record.error.startswith("the reference failed on this case")


def test_a_reference_that_gives_no_number_is_an_error_too() -> None:
    record = run(BESIDE_A_FLOOR, Noisier(), Noisier(loss_db=float("nan")))
    assert (record.verdict, record.stage) == (Verdict.ERROR, "reference")


def bundled_case(suite: str, spec: str) -> Case:
    cases = expand(load(bundled_specs() / f"{suite}.qspec.yaml", vocabulary()))
    return next(case for case in cases if case.spec_id == spec and case.capture == "export")


# Data whose 8-bit results are the float model's own: with a step of the output, and without.
UNSEEN = [("range", "all_zero"), ("range", "zero_weights"), ("linear_dynamic", "zeros")]


@pytest.mark.parametrize(("suite", "spec"), UNSEEN)
def test_a_case_that_can_not_show_8_bits_accuses_only_a_backend_that_names_no_kernel(suite: str, spec: str) -> None:
    case, limits = bundled_case(suite, spec), Limits(reference=open_backend(REFERENCE))
    right = run_case(case, WithoutDebugForm(), "right", limits).record
    assert (right.verdict, right.measures.max_abs) == (Verdict.NATIVE, 0.0), right.findings
    lying = run_case(case, open_backend("claims-everything"), "lying", limits).record
    assert lying.verdict is Verdict.FALLBACK
    assert [each.check for each in lying.findings if each.outcome is Outcome.FAILED] == ["really_ran"]


def test_a_reference_that_fails_where_no_spec_asks_for_it_tells_nothing() -> None:
    case = bundled_case("linear_dynamic", "zeros")
    record = run_case(case, WithoutDebugForm(), "right", Limits(reference=Noisier(act=_never))).record
    assert record.verdict is Verdict.FALLBACK and "reference" in record.seconds


def test_the_case_is_the_same_for_both() -> None:
    record = run(ALONE, Noisier(0.0), open_backend(REFERENCE))
    assert record.measures.sqnr_db == pytest.approx(record.measures.reference_sqnr_db, abs=1e-3)
