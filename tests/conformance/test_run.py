from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from offered import offer
from small_specs import LINEAR, VERDICTS, written

from conformance import pool
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand
from conformance.errors import EnvironmentTrouble, UsageError
from conformance.known import Known
from conformance.load import load
from conformance.record import Record, Verdict
from conformance.run import Plan, execute, resume
from conformance.store import read


def cases(folder: Path, text: str = LINEAR) -> tuple[Case, ...]:
    return expand(load(written(folder, text), vocabulary()))


def run(plan: Plan, path: Path, known: Sequence[Known] = ()) -> list[Record]:
    return execute(plan, path, lambda backend: known, lambda record: None)


def in_order(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.backend, record.subject.case))


def verdicts(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    return {(record.backend, record.subject.case): str(record.verdict) for record in records}


def test_jobs_are_every_case_on_every_backend(tmp_path: Path) -> None:
    plan = Plan(cases(tmp_path), ("qlib", "float-only"))
    assert [(job.backend, job.case.id) for job in plan.jobs] == [
        (backend, case.id) for backend in plan.backends for case in plan.cases
    ]


def test_what_is_returned_is_what_was_shown_and_what_is_kept(tmp_path: Path) -> None:
    shown: list[Record] = []
    path = tmp_path / "deep" / "results.jsonl"
    plan = Plan(cases(tmp_path), ("qlib", "float-only"), command="conformance run x")
    records = execute(plan, path, lambda backend: (), shown.append)
    found = read(path)
    assert records == shown
    assert in_order(found.records) == in_order(records)
    assert found.damaged == 0
    assert (found.run.planned, found.run.backends, found.run.command) == (len(records), plan.backends, plan.command)
    assert found.run.started.endswith("+00:00")


def test_each_record_is_in_the_file_before_the_next_case_runs(tmp_path: Path) -> None:
    path, counts = tmp_path / "results.jsonl", []
    plan = Plan(cases(tmp_path), ("qlib",))
    execute(plan, path, lambda backend: (), lambda record: counts.append(len(read(path).records)))
    assert counts == list(range(1, len(plan.cases) + 1))


def test_workers_give_the_verdicts_of_this_process(tmp_path: Path) -> None:
    chosen = cases(tmp_path, VERDICTS)
    here = run(Plan(chosen, ("qlib",)), tmp_path / "1.jsonl")
    there = run(Plan(chosen, ("qlib",), workers=2), tmp_path / "2.jsonl")
    assert verdicts(here) == verdicts(there) == {("qlib", case.id): case.spec_id for case in chosen}
    ordered = {record.subject.case: record for record in there}
    for record in here:
        assert replace(ordered[record.subject.case], seconds={}) == replace(record, seconds={})


def test_one_backend_of_its_own_process_takes_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def run_jobs(
        jobs: Sequence[pool.Job], workers: int, seconds: float, known: pool.Acquaintances
    ) -> Generator[Record, None, None]:
        asked.append((len(jobs), workers))
        yield from ()

    monkeypatch.setattr(pool, "run_jobs", run_jobs)
    chosen = cases(tmp_path)[:2]
    assert run(Plan(chosen, ("qlib", "crashes")), tmp_path / "r.jsonl") == []
    assert asked == [(4, 1)]


def test_known_failures_are_those_of_the_records_backend(tmp_path: Path) -> None:
    entry = Known(case="small::linear_relu", verdict=Verdict.FALLBACK, reason="floats on purpose")
    known = {"float-only": [entry], "qlib": []}
    plan = Plan(cases(tmp_path), ("qlib", "float-only"))
    records = execute(plan, tmp_path / "r.jsonl", known.__getitem__, lambda record: None)
    for record in records:
        expected = record.backend == "float-only" and record.subject.spec == "linear_relu"
        assert record.known == ("floats on purpose" if expected else None)
        assert record.failed is (record.backend == "float-only" and not expected)
    assert in_order(read(tmp_path / "r.jsonl").records) == in_order(records)


def test_python_needs_the_option(tmp_path: Path) -> None:
    text = """\
spec: 1
suite: own
cases:
  - id: own
    why: a module of the user's
    module: {python: torch.nn:Identity}
    inputs: {x: {shape: [2]}}
    capture: [export]
    expect: {output: {shape: [2]}}
"""
    chosen = cases(tmp_path, text)
    refused, *_ = run(Plan(chosen, ("qlib",)), tmp_path / "1.jsonl")
    assert refused.verdict is Verdict.ERROR and "--allow-python" in refused.error
    for workers in (1, 2):
        plan = Plan(chosen, ("qlib",), workers=workers, terms=pool.Terms(("--allow-python",)))
        allowed, *_ = run(plan, tmp_path / "2.jsonl")
        assert allowed.verdict is Verdict.NATIVE, allowed


def test_a_backend_that_does_not_exist_costs_no_earlier_results(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(Plan(cases(tmp_path), ("qlib",)), path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="qlibb"):
        run(Plan(cases(tmp_path), ("qlib", "qlibb")), path)
    assert path.read_bytes() == before


def test_a_place_that_can_not_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown: list[Record] = []
    with pytest.raises(EnvironmentTrouble, match="can't be written"):
        execute(Plan(cases(tmp_path), ("qlib",)), tmp_path / "file" / "r.jsonl", lambda backend: (), shown.append)
    assert shown == []


def test_backends_of_others_cost_their_own_cases_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)
    plan = Plan(cases(tmp_path)[::2], ("moody", "chatty", "modest"))
    found = verdicts(run(plan, tmp_path / "r.jsonl"))
    for case in plan.cases:
        killed = case.spec_id == "linear_relu" and case.parameters["bias"] == "true"
        assert found["moody", case.id] == ("crash" if killed else "native")
        assert found["chatty", case.id] == "native"
        assert found["modest", case.id] == ("unsupported" if case.spec_id == "linear_relu" else "wrong")


def test_a_backend_that_dies_in_its_hello_costs_its_own_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)
    found = run(Plan(cases(tmp_path)[:2], ("dead", "chatty", "uninstalled")), tmp_path / "r.jsonl")
    told = [(record.backend, str(record.verdict), record.stage) for record in found]
    errors = [("dead", "error", "hello")] * 2, [("uninstalled", "error", "hello")] * 2
    assert told == [*errors[0], *[("chatty", "native", None)] * 2, *errors[1]]
    assert "exit status 9" in found[0].error and "no_such_package_of_test" in found[-1].error
    head = read(tmp_path / "r.jsonl").run
    assert head.declared["chatty"].versions and not head.declared["dead"].versions


def test_cases_of_a_backend_that_could_not_be_opened_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch)
    path, plan = tmp_path / "r.jsonl", Plan(cases(tmp_path)[:2], ("uninstalled", "float-only"))
    first = run(plan, path)
    again = resume(plan, path, lambda backend: (), lambda record: None)
    assert verdicts(again) == verdicts(first) and len(read(path).records) == 4, "it can still not be opened"
    before = path.read_bytes()

    (tmp_path / "no_such_package_of_test").mkdir()
    (tmp_path / "no_such_package_of_test" / "backend.py").write_text("from odd_backends_of_test import chatty as make")
    shown: list[Record] = []
    found = resume(plan, path, lambda backend: (), shown.append)
    assert verdicts(found) == {
        (backend, case.id): verdict
        for backend, verdict in (("uninstalled", "native"), ("float-only", "fallback"))
        for case in plan.cases
    }
    assert shown == found and len(found) == 4, "what is run again is not shown twice"
    after = read(path)
    assert path.read_bytes().startswith(before)
    assert in_order(after.records) == in_order(found)
    assert after.run.versions["uninstalled"] and after.run.planned == 4

    last = path.read_bytes()
    assert in_order(resume(plan, path, lambda backend: (), lambda record: None)) == in_order(found)
    assert path.read_bytes() == last, "nothing was left to do"
