from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
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
from conformance.case import Case, expand
from conformance.errors import EnvironmentTrouble
from conformance.load import load
from conformance.pool import Job, Worker, run_jobs
from conformance.record import Record, Verdict

CASES = cases_of(LINEAR)

# A worker without torch: greets, answers each request with an empty record, and acts up in the third request.
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
    if number == 2:
        ACT
    else:
        answer(case)
"""
HELLO = 'say({"hello": {}})'


def launched(act: str = "answer(case)", hello: str = HELLO) -> Worker:
    script = WORKER.replace("HELLO", hello).replace("ACT", textwrap.indent(textwrap.dedent(act), " " * 8).strip())
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )
    return Worker("odd", process, stderr)


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

        def odd(backend: str, options: Sequence[str] = ()) -> Worker:
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
    "abort": ("print('boom: bad shape', file=sys.stderr, flush=True); os.abort()", "crash", "boom: bad shape"),
    "plain exit": ("sys.exit(0)", "crash", "exit status 0"),
    "exit with a status": ("os._exit(7)", "crash", "exit status 7"),
    "hang": ("time.sleep(1000)", "timeout", "no answer within 0.5 s"),
    "hang in the middle": ("print('{', end='', flush=True); time.sleep(1000)", "timeout", "no answer within 0.5 s"),
    "ignores signals": ("signal.signal(15, signal.SIG_IGN); time.sleep(1000)", "timeout", "no answer within 0.5 s"),
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
    ],
)
def test_an_end_in_the_hello_is_trouble_with_the_environment(
    hello: str, text: str, launch: Callable[..., list]
) -> None:
    workers = launch("pass", hello)
    with pytest.raises(EnvironmentTrouble, match="backend 'odd'") as caught:
        run()
    assert text in str(caught.value)
    assert all(ended(worker) for worker in workers)


def test_a_hello_that_never_comes(monkeypatch: pytest.MonkeyPatch, launch: Callable[..., list[Worker]]) -> None:
    monkeypatch.setattr(pool, "HELLO_SECONDS", 0.3)
    workers = launch("pass", "time.sleep(1000)")
    with pytest.raises(EnvironmentTrouble, match=r"no hello within 0\.3 s"):
        run()
    assert all(ended(worker) for worker in workers)


def test_what_was_recorded_before_a_restart_failed_has_been_yielded(
    monkeypatch: pytest.MonkeyPatch, launch: Callable[..., list[Worker]]
) -> None:
    launch("os.abort()")
    launch_one, starts = pool.launch, iter([True])

    def once(backend: str, options: Sequence[str] = ()) -> Worker:
        if next(starts, False):
            return launch_one(backend, options)
        raise EnvironmentTrouble("out of memory")

    monkeypatch.setattr(pool, "launch", once)
    records = []
    with pytest.raises(EnvironmentTrouble, match="out of memory"):
        for record in run_jobs([Job(case, "odd") for case in CASES], 1, 5.0):
            records.append(record)
    assert [str(record.verdict) for record in records] == ["native", "native", "crash"]


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
    assert (last.verdict, last.error) == (Verdict.TIMEOUT, "no answer within 0.3 s")
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
    launch("answer('x' * 2_000_000)")
    assert len(run(count=3)[2].subject.case) == 2_000_000


def test_much_on_standard_error_neither_blocks_nor_is_all_kept(launch: Callable[..., list[Worker]]) -> None:
    launch("sys.stderr.write('e' * 3_000_000 + 'the end'); sys.stderr.flush(); os.abort()")
    lost = run(count=3)[2]
    assert lost.verdict is Verdict.CRASH
    assert lost.error.endswith("the end") and len(lost.error) < pool.TAIL + 100


def test_a_real_worker_answers_with_the_records_of_this_process(tmp_path: Path) -> None:
    from conformance.backends import open_backend
    from conformance.engine import run_case

    cases = expand(load(written(tmp_path), vocabulary()))
    here = [run_case(case, open_backend("qlib"), "qlib").record for case in cases]
    there = list(run_jobs([Job(case, "qlib") for case in cases], 1, 60.0))
    assert [replace(record, seconds={}) for record in there] == [replace(record, seconds={}) for record in here]


def test_a_real_worker_says_what_it_does_not_know(tmp_path: Path) -> None:
    (case, *_) = expand(load(written(tmp_path), vocabulary()))
    gone: list[Case] = [replace(case, path=str(tmp_path / "gone.qspec.yaml")), replace(case, spec_id="gone")]
    with pytest.raises(EnvironmentTrouble, match="no backend is named 'qlibb'"):
        pool.start("qlibb")
    worker = pool.start("qlib")
    try:
        for asked in gone:
            record = worker.ask(asked, 60.0)
            assert record.verdict is Verdict.ERROR and "gone" in record.error
        assert worker.ask(case, 60.0).verdict is Verdict.NATIVE
    finally:
        worker.stop()
    assert worker.process.returncode == -signal.SIGKILL


def test_no_thread_is_left_behind(launch: Callable[..., list[Worker]]) -> None:
    launch("answer(case)")
    before = threading.active_count()
    run(workers=2)
    assert threading.active_count() == before
    assert os.getpid()
