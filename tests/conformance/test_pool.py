from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_specs import LINEAR, cases_of, written

from conformance import pool
from conformance.backends.qlib import vocabulary
from conformance.case import expand
from conformance.channel import LONGEST, TAIL, Channel
from conformance.errors import EnvironmentTrouble
from conformance.load import load
from conformance.pool import Acquaintances, Job, Seat, Terms, Worker, run_jobs
from conformance.record import Record, Verdict

CASES = cases_of(LINEAR)

# A worker without torch: greets, answers each request with an empty record, and acts up in the third case that it runs.
WORKER = """
import json, os, signal, sys, time

def say(value):
    print(json.dumps(value), flush=True)

def answer(case):
    empty = dict.fromkeys(("family", "spec", "mode", "capture", "why", "path", "yaml"), "")
    subject = {**empty, "case": case, "parameters": {}, "seed": 0, "line": 1}
    verdict = {"verdict": "native", "findings": [], "measures": {}, "notes": []}
    say({"record": {"subject": subject, "backend": "odd", **verdict}})

HELLO
for number, line in enumerate(sys.stdin):
    case = json.loads(line)["case"]
    say({"stage": "build"})
    say({"stage": "run"})
    if number == 2:
        ACT
    else:
        answer(case)
"""
HELLO = 'say({"hello": {"name": "odd"}})'


def launched(act: str = "answer(case)", hello: str = HELLO) -> Worker:
    script = WORKER.replace("HELLO", hello).replace("ACT", textwrap.indent(textwrap.dedent(act), " " * 8).strip())
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return Worker("odd", Channel(process))


def ended(worker: Worker) -> bool:
    for _ in range(100):
        if not worker.alive:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Worker]]:
    """Have the pool start workers that act as told; returns the list of those that were started."""

    def prepare(act: str, hello: str = HELLO) -> list[Worker]:
        workers: list[Worker] = []

        def odd(backend: str, terms: Terms) -> Worker:
            workers.append(launched(act, hello))
            workers[-1].backend = backend
            return workers[-1]

        monkeypatch.setattr(pool, "launch", odd)
        return workers

    return prepare


def run(count: int = 6, workers: int = 1, seconds: float = 5.0, backends: Sequence[str] = ("odd",)) -> list[Record]:
    return list(run_jobs([Job(case, backend) for backend in backends for case in CASES[:count]], workers, seconds))


ACTS = {
    "segmentation fault": ("os.kill(os.getpid(), signal.SIGSEGV)", "crash", "killed by SIGSEGV"),
    "kill -9 in the middle": (
        "print('{\"rec', end='', flush=True); os.kill(os.getpid(), 9)",
        "crash",
        "killed by SIGKILL",
    ),
    "abort": ("os.abort()", "crash", "killed by SIGABRT"),
    "plain exit": ("sys.exit(0)", "crash", "exit status 0"),
    "exit with a status": ("os._exit(7)", "crash", "exit status 7"),
    "hang": ("time.sleep(1000)", "timeout", "no answer within 0.25 s of the step 'run'"),
    "hang in the middle": (
        "print('{', end='', flush=True); time.sleep(1000)",
        "timeout",
        "no answer within 0.25 s of the step 'run'",
    ),
    "ignores signals": (
        "signal.signal(15, signal.SIG_IGN); time.sleep(1000)",
        "timeout",
        "no answer within 0.25 s of the step 'run'",
    ),
    "a step that takes too long": ("say({'stage': 'lower'}); time.sleep(1000)", "timeout", "0.4 s of the step 'lower'"),
    "all steps together": (
        "while True: say({'stage': 'lower'}); time.sleep(0.01)",
        "timeout",
        "no answer within 0.5 s",
    ),
    "dies and leaves a child with its pipes": ("if os.fork(): os._exit(0)\ntime.sleep(1000)", "crash", "exit status 0"),
    "a message without end": ("while True: os.write(1, b'x' * 65536)", "error", f"at most {LONGEST} bytes"),
    "a record of another case": ("answer('small::other')", "error", "found one of 'small::other'"),
    "closes its output and hangs": ("os.close(1); time.sleep(1000)", "crash", "closed its output"),
    "garbage": ("print('Loading model...', flush=True); answer(case)", "error", "Loading model..."),
    "garbage that is no text": ("os.write(1, bytes([255, 0, 10])); answer(case)", "error", "\\xff"),
    "JSON that is no message": ("print('[1, 2]', flush=True); answer(case)", "error", "[1, 2]"),
    "a record that is none": ("say({'record': {'verdict': 'great'}})", "error", "KeyError: 'findings'"),
    "a message of another kind": ("say({'status': 'busy'})", "error", "busy"),
    "trouble": ("say({'trouble': 'KeyError: no such case'})", "error", "KeyError: no such case"),
}


@pytest.mark.parametrize("act", ACTS)
def test_each_way_to_fail_costs_one_case(act: str, launch: Callable[..., list[Worker]]) -> None:
    code, verdict, text = ACTS[act]
    workers = launch(code)
    seconds = 0.5 if verdict == "timeout" else 20.0
    records = run(count=5, seconds=seconds)
    assert [str(record.verdict) for record in records] == ["native", "native", verdict, "native", "native"]
    lost = records[2]
    assert text in lost.error, lost.error
    assert lost.stage == ("lower" if "lower" in code else "run")
    assert 0 <= lost.seconds["build"] + lost.seconds["run"] <= lost.seconds["total"] < 5
    assert lost.subject.case == CASES[2].id
    assert lost.expected_ops == CASES[2].expect.ops
    assert lost.backend == "odd"
    assert all(ended(worker) for worker in workers)


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        ("sys.exit(5)", "exit status 5"),
        ("print('no licence', file=sys.stderr, flush=True); os.abort()", "no licence"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("say({'trouble': 'package odd is missing'})", "package odd is missing"),
        ("say({'welcome': 1})", "welcome"),
        ("print('Initialising...', flush=True)", "Initialising..."),
        ("say({'hello': {'name': 'odd', 'modes': ['static', 8]}})", "a hello with texts as modes"),
        ("say({'hello': ['odd']})", "did not keep to its protocol"),
    ],
)
def test_an_end_in_the_hello_is_trouble_with_the_environment(
    hello: str, text: str, launch: Callable[..., list]
) -> None:
    workers = launch("pass", hello)
    records = run()
    assert [(str(record.verdict), record.stage) for record in records] == [("error", "hello")] * 6
    assert {record.error for record in records} == {records[0].error}
    assert records[0].error.startswith("backend 'odd': ") and text in records[0].error
    assert len(workers) == 1, "it is not tried again"
    assert all(ended(worker) for worker in workers)


def test_a_hello_that_never_comes(monkeypatch: pytest.MonkeyPatch, launch: Callable[..., list[Worker]]) -> None:
    monkeypatch.setattr(pool, "HELLO_SECONDS", 0.3)
    workers = launch("pass", "time.sleep(1000)")
    assert {record.error for record in run()} == {"backend 'odd': no hello within 0.3 s"}
    assert all(ended(worker) for worker in workers)


def test_a_restart_that_fails_costs_the_cases_that_are_left(
    monkeypatch: pytest.MonkeyPatch, launch: Callable[..., list[Worker]]
) -> None:
    launch("os.abort()")
    launch_one, starts = pool.launch, iter([True])

    def once(backend: str, terms: Terms) -> Worker:
        if next(starts, False):
            return launch_one(backend, terms)
        raise EnvironmentTrouble("out of memory")

    monkeypatch.setattr(pool, "launch", once)
    records = list(run_jobs([Job(case, "odd") for case in CASES], 1, 5.0))
    assert [str(record.verdict) for record in records] == ["native", "native", "crash", "error", "error", "error"]
    assert records[-1].error == "out of memory"


def test_a_backend_that_says_something_else_in_a_later_hello(launch: Callable[..., list[Worker]]) -> None:
    workers = launch("os.abort()", 'say({"hello": {"name": "odd", "versions": {"odd": str(os.getpid())}}})')
    records = run(count=5)
    assert [str(record.verdict) for record in records] == ["native", "native", "crash", "error", "error"]
    assert "at first, and now" in records[3].error and "'odd': '" in records[3].error
    assert all(ended(worker) for worker in workers)


@pytest.mark.parametrize("act", ["answer(case); os._exit(1)", "os.close(0); answer(case); time.sleep(1000)"])
def test_a_worker_that_is_gone_before_a_case_begins_costs_none(act: str, launch: Callable[..., list[Worker]]) -> None:
    workers = launch(act)
    assert {str(record.verdict) for record in run(count=5)} == {"native"}
    assert len(workers) == 2
    assert all(ended(worker) for worker in workers)


def test_a_worker_that_always_ends_before_the_case_begins(launch: Callable[..., list[Worker]]) -> None:
    workers = launch("pass", f"{HELLO}; sys.stdin.readline(); sys.exit(0)")
    (record,) = run(count=1)
    assert (record.verdict, record.stage) == (Verdict.CRASH, "load")
    assert len(workers) == 2


@pytest.mark.parametrize("workers", [1, 2, 50])
def test_every_job_is_answered_once_however_many_workers(workers: int, launch: Callable[..., list[Worker]]) -> None:
    started = launch("answer(case)")
    records = run(workers=workers, backends=("odd", "even"))
    assert len(records) == 2 * len(CASES)
    assert {record.subject.case for record in records} == {case.id for case in CASES}
    assert all(ended(worker) for worker in started)
    assert {worker.backend for worker in started} == {"odd", "even"}


def test_no_jobs_no_workers(launch: Callable[..., list[Worker]]) -> None:
    assert run(count=0) == []


def test_a_case_has_its_own_deadline(launch: Callable[..., list[Worker]]) -> None:
    launch("time.sleep(1000)")
    cases = [*CASES[:2], replace(CASES[2], timeout=0.3)]
    start = time.monotonic()
    *_, last = run_jobs([Job(case, "odd") for case in cases], 1, 60.0)
    assert (last.verdict, last.error) == (Verdict.TIMEOUT, "no answer within 0.15 s of the step 'run'")
    assert time.monotonic() - start < 10


def test_what_the_worker_started_dies_with_it(launch: Callable[..., list[Worker]], tmp_path: Path) -> None:
    child = tmp_path / "pid"
    launch(f"if os.fork() == 0: open({str(child)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)")
    records = run(count=3, seconds=1.0)
    assert records[2].verdict is Verdict.TIMEOUT
    time.sleep(0.1)
    state = Path(f"/proc/{child.read_text()}/stat")
    assert not state.exists() or " Z " in state.read_text()


def test_leaving_early_stops_workers_at_once(launch: Callable[..., list[Worker]]) -> None:
    workers = launch("time.sleep(1000)")
    records = run_jobs([Job(case, "odd") for case in CASES], 2, 1000.0)
    next(records)
    time.sleep(0.3)
    start = time.monotonic()
    records.close()
    assert all(ended(worker) for worker in workers)
    assert time.monotonic() - start < 4


def test_a_long_answer_arrives_whole(launch: Callable[..., list[Worker]]) -> None:
    launch("say({'trouble': 'x' * 2_000_000 + 'the end'})")
    lost = run(count=3)[2]
    assert lost.error.endswith("the end") and "1994007 characters are left out" in lost.error


def test_much_on_standard_error_neither_blocks_nor_is_all_kept(launch: Callable[..., list[Worker]]) -> None:
    launch("sys.stderr.write('e' * 3_000_000 + 'the end'); sys.stderr.flush(); os.abort()")
    lost = run(count=3)[2]
    assert (lost.verdict, lost.error) == (Verdict.CRASH, "killed by SIGABRT")
    assert lost.stderr.startswith(f"[{3_000_007 - TAIL} bytes before this are left out]\neee")
    assert lost.stderr.endswith("the end") and len(lost.stderr) < TAIL + 100


PRINTS = r"os.write(2, b'line\r\nno \xff text \x1b[31m\0'); answer(case); os.write(2, b'late')"


def test_what_a_case_printed_is_its_own_whatever_the_verdict(launch: Callable[..., list[Worker]]) -> None:
    launch(PRINTS, f"os.write(2, b'early'); {HELLO}")
    records = run(count=4)
    assert {str(record.verdict) for record in records} == {"native"}
    printed = [record.stderr.removesuffix("late") for record in records]
    assert printed == ["", "", "line\nno \\xff text \\x1b[31m\\x00", ""]


def test_a_real_worker_answers_with_the_records_of_this_process_and_says_what_it_does_not_know(tmp_path: Path) -> None:
    from conformance.backends import open_backend
    from conformance.engine import run_case

    cases = expand(load(written(tmp_path), vocabulary()))
    here = [run_case(case, open_backend("qlib"), "qlib").record for case in cases]
    known = Acquaintances()
    assert "no backend is named 'qlibb'" in str(known.ask("qlibb"))
    seat = Seat(known)
    worker = seat.worker_of("qlib")
    try:
        for gone in (replace(cases[0], path=str(tmp_path / "gone.qspec.yaml")), replace(cases[0], spec_id="gone")):
            record = worker.ask(gone, 60.0)
            assert record is not None and record.verdict is Verdict.ERROR and "gone" in record.error
        there = [seat.ask(Job(case, "qlib"), 60.0) for case in cases]
        assert seat.worker is worker, "no case cost it its life"
    finally:
        seat.close()
    assert [replace(record, seconds={}) for record in there] == [replace(record, seconds={}) for record in here]
    assert worker.channel.process.returncode == -signal.SIGKILL


def test_no_thread_is_left_behind(launch: Callable[..., list[Worker]]) -> None:
    launch("answer(case)")
    before = threading.active_count()
    run(workers=2)
    assert threading.active_count() == before
    assert os.getpid()
