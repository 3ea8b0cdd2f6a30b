from __future__ import annotations

import dataclasses
import signal
import time
from contextlib import AbstractContextManager

import pytest
import torch
from small_specs import LINEAR, UNSUPPORTED, VERDICTS, case_of, cases_of
from torch import Tensor

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import open_backend
from conformance.backends import qlib as bundled
from conformance.case import Case
from conformance.deadline import deadline
from conformance.engine import OURS, Stages, count, fresh, run_case, tensors
from conformance.errors import Inexpressible, Unsupported
from conformance.record import Record, Verdict

STAGES = ["build", "capture", "prepare", "calibrate", "convert", "lower", "quantize", "run", "judge"]


@dataclasses.dataclass(frozen=True)
class Scripted:
    """The bundled library with some things changed; `act` is called in the stage "prepare" with what a backend gets."""

    act: object = None
    about_changes: tuple[tuple[str, object], ...] = ()

    def about(self) -> About:
        return dataclasses.replace(open_backend("qlib").about(), **dict(self.about_changes))

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        if self.act is not None:
            with stage("prepare"):
                self.act(task)
        return open_backend("qlib").quantize(task, stage)


def first() -> Case:
    return cases_of(LINEAR)[0]


def raising(error: BaseException) -> object:
    def act(task: Task) -> None:
        raise error

    return act


def run(case: Case, backend: Backend | None = None, name: str = "qlib") -> Record:
    return run_case(case, backend or open_backend("qlib"), name).record


@pytest.mark.parametrize("case", cases_of(VERDICTS), ids=lambda case: case.spec_id)
def test_each_verdict_has_a_spec_that_leads_to_it(case: Case) -> None:
    record = run(case)
    assert str(record.verdict) == case.spec_id, record
    assert record.failed is (case.spec_id not in ("native", "unsupported"))


def test_a_mode_that_is_not_declared_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "MODES", frozenset({"static"}))
    record = run(cases_of(UNSUPPORTED)[0])
    assert record.verdict is Verdict.UNSUPPORTED and not record.findings
    assert record.error == "declares no mode qat"


def test_a_record_of_a_case_that_ran_says_all_about_it() -> None:
    case = first()
    record = run(case)
    assert record.verdict is Verdict.NATIVE
    assert (record.subject.case, record.subject.seed, record.backend, record.stage) == (
        case.id,
        case.seed,
        "qlib",
        None,
    )
    assert record.expected_ops == {"quantized::linear_relu": 1}
    assert record.float_ops == {"aten::linear": 1, "aten::relu": 1}
    assert record.executed_ops["quantized::linear_relu"] == 1
    assert "aten::linear" not in record.executed_ops
    assert record.native_ops
    assert list(record.seconds) == STAGES
    assert all(seconds >= 0 for seconds in record.seconds.values())
    assert record.measures.sqnr_db is not None and record.measures.sqnr_db > 30
    assert (record.measures.wrong, record.measures.debug_quanta) == (0, 0)
    assert record.measures.exact + record.measures.tie >= 4 * 30 + 4 * 20


def test_an_exception_of_the_backend_is_wrong_and_names_its_step() -> None:
    record = run(first(), Scripted(raising(RuntimeError("kernel not found"))))
    assert (record.verdict, record.stage) == (Verdict.WRONG, "prepare")
    assert "Traceback" in record.error and record.error.rstrip().endswith("RuntimeError: kernel not found")
    assert record.findings == ()
    assert record.subject.case == first().id


def test_an_exception_when_the_model_is_called_is_wrong_too() -> None:
    class Broken:
        def about(self) -> About:
            return open_backend("qlib").about()

        def quantize(self, task: Task, stage: Stage) -> Quantized:
            def call(*inputs: Tensor) -> object:
                raise ValueError("shape")

            return Quantized({"aten::linear": 1}, Program(call, ("quantized::linear",)))

    record = run(first(), Broken())
    assert (record.verdict, record.stage) == (Verdict.WRONG, "run")


def test_an_exception_in_our_own_steps_is_an_error() -> None:
    assert {"build", "reference", "judge"} == OURS
    record = run(next(case for case in cases_of(VERDICTS) if case.spec_id == "error"))
    assert (record.verdict, record.stage) == (Verdict.ERROR, "build")
    assert "Did you mean 'weight'?" in record.error


def test_the_end_of_the_process_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(first(), Scripted(raising(KeyboardInterrupt())))


@pytest.mark.parametrize(("lacks", "verdict"), [((), "wrong"), (("quantized::linear_relu",), "unsupported")])
def test_a_refusal_counts_as_declared_only_for_what_was_declared(lacks: tuple[str, ...], verdict: str) -> None:
    refusing = Scripted(raising(Unsupported("no kernel for that")), (("lacks", frozenset(lacks)),))
    record = run(first(), refusing)
    assert str(record.verdict) == verdict
    assert "no kernel for that" in record.error
    assert ("without having declared it" in record.error) is (verdict == "wrong")


def test_a_feature_that_a_refusal_names_counts_as_declared_where_it_was() -> None:
    act = raising(Unsupported("no groups here", "groups"))
    for lacks, expected in (({"groups"}, Verdict.UNSUPPORTED), ({"rows"}, Verdict.WRONG)):
        record = run_case(first(), Scripted(act, (("lacks", frozenset(lacks)),)), "scripted").record
        assert record.verdict is expected


def test_what_the_suite_can_not_express_is_not_held_against_a_backend() -> None:
    record = run_case(first(), Scripted(raising(Inexpressible("no word for that"))), "scripted").record
    assert (record.verdict, record.error) == (Verdict.UNSUPPORTED, "can't be put to this backend: no word for that")


def test_without_its_packages_a_backend_is_not_asked() -> None:
    absent = Scripted(raising(AssertionError("asked")), (("missing", ("engine", "tools")),))
    record = run_case(first(), absent, "scripted").record
    assert (record.verdict, record.error) == (Verdict.UNSUPPORTED, "not installed: engine, tools")


def test_what_is_declared_as_lacking_may_work_all_the_same() -> None:
    assert run(first(), Scripted(None, (("lacks", frozenset({"quantized::linear_relu"})),))).verdict is Verdict.NATIVE


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"modes": frozenset({"dynamic"})}, "declares no mode static"),
        ({"captures": frozenset({"trace"})}, "declares no capture export"),
    ],
)
def test_modes_and_captures_that_are_not_declared_are_never_tried(changes: dict[str, object], error: str) -> None:
    untouchable = Scripted(raising(AssertionError("must not be called")), tuple(changes.items()))
    record = run(first(), untouchable)
    assert (record.verdict, record.error) == (Verdict.UNSUPPORTED, error)


def test_what_a_backend_does_to_its_data_afterwards_does_not_reach_what_is_judged() -> None:
    class Vandal:
        def about(self) -> About:
            return open_backend("qlib").about()

        def quantize(self, task: Task, stage: Stage) -> Quantized:
            quantized = open_backend("qlib").quantize(task, stage)
            for tensor in [*task.inputs, *(x for batch in task.calibration for x in batch)]:
                tensor.zero_()
            return quantized

    assert run(first(), Vandal()).measures == run(first()).measures


def test_a_float_module_spoilt_by_the_backend_is_still_the_measure() -> None:
    def spoil(task: Task) -> None:
        with torch.no_grad():
            for parameter in task.module.parameters():
                parameter.zero_()

    assert run(first(), Scripted(spoil)).verdict is Verdict.WRONG


def test_inputs_example_and_calibration_share_no_memory() -> None:
    addresses: list[int] = []

    def note(task: Task) -> None:
        addresses.extend(x.data_ptr() for x in (*task.inputs, *(x for batch in task.calibration for x in batch)))

    run(first(), Scripted(note))
    assert len(addresses) == len(set(addresses)) >= 3


@pytest.mark.parametrize("capture", ["export", "trace"])
def test_a_module_that_overwrites_its_input(capture: str) -> None:
    case = case_of(f"""
        module:
          layers: {{fc: "nn.Linear(30, 20)"}}
          forward: |
            def forward(self, x):
                x.mul_(2).add_(1)
                return self.fc(x)
        inputs: {{x: {{shape: [4, 30]}}}}
        capture: [{capture}]
        expect: {{ops: {{quantized::linear: 1}}, accuracy: {{sqnr_db: 30}}}}
    """)
    assert run(case).verdict is Verdict.NATIVE


def test_what_a_backend_draws_is_the_same_in_each_run_and_leaves_no_trace() -> None:
    drawn: list[Tensor] = []
    before = torch.get_rng_state()
    for _ in range(2):
        run(first(), Scripted(lambda task: drawn.append(torch.rand(3))))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_case_gives_the_same_record_but_for_its_seconds() -> None:
    one, two = (dataclasses.replace(run(first()), seconds={}) for _ in range(2))
    assert one == two


def test_a_spec_that_never_ends_meets_its_deadline() -> None:
    case = case_of("""
        module:
          forward: |
            def forward(self, x):
                while True:
                    x = x + 1
                return x
        inputs: {x: {shape: [2]}}
        capture: [trace]
        timeout: 0.3
        expect: {debug_equal: 0 quanta}
    """)
    record = run(case)
    assert (record.verdict, record.error) == (Verdict.TIMEOUT, "not done within 0.3 s")
    assert run(first()).verdict is Verdict.NATIVE, "the timer is off again"


def test_a_timer_that_was_set_before_goes_on_afterwards() -> None:
    ours = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 50.0, 7.0)
    try:
        with deadline(5.0):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 5.0
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 40.0 < left <= 50.0 and interval == 7.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, ours)


def test_threads_and_random_state_are_left_as_they_were() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    run(first())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_backend_without_debug_form_and_explanation_is_judged_by_the_rest() -> None:
    class Bare:
        def about(self) -> About:
            return open_backend("qlib").about()

        def quantize(self, task: Task, stage: Stage) -> Quantized:
            full = open_backend("qlib").quantize(task, stage)
            return Quantized(full.float_ops, full.final)

    record = run(first(), Bare())
    assert record.verdict is Verdict.NATIVE
    assert {finding.check for finding in record.findings} >= {"ops", "absent", "accuracy", "really_ran"}
    assert (record.measures.exact, record.measures.debug_quanta) == (None, None)


def test_stages_add_up_and_remember_where_it_stopped() -> None:
    stages = Stages()

    def enter(name: str) -> AbstractContextManager[None]:
        return stages(name)

    with enter("a"):
        pass
    before = stages.seconds["a"]
    with enter("a"):
        sum(range(1000))
    with pytest.raises(KeyError), enter("b"):
        raise KeyError
    assert (list(stages.seconds), stages.current) == (["a", "b"], "b")
    assert stages.seconds["a"] > before


def test_what_passes_outside_of_the_steps_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    stages = Stages()
    with stages.rest("whole"), stages("part"):
        pass
    assert stages.seconds == {"part": 4.0, "whole": 3.0}


def test_tensors_of_nested_results_in_order() -> None:
    a, b, c = (torch.full((1,), float(n)) for n in range(3))
    found = tensors(([a, {"k": b}], 3, None, (c.requires_grad_(),)))
    assert [float(x) for x in found] == [0.0, 1.0, 2.0]
    assert not any(x.requires_grad for x in found)
    assert tensors(a) == (a,)


def test_counts_and_copies() -> None:
    assert list(count(("b", "a", "b")).items()) == [("a", 1), ("b", 2)]
    x = torch.ones(2)
    (copied,) = fresh([x])
    copied.zero_()
    assert torch.equal(x, torch.ones(2))
