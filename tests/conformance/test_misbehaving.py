from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from commands import Command
from small_specs import LINEAR, written

from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand
from conformance.errors import EnvironmentTrouble
from conformance.load import load
from conformance.pool import Acquaintances, Job, run_jobs
from conformance.record import Outcome, Record
from conformance.store import read

# How a case ends that each of them spoils.
TARGETS = {
    "kill": ("crash", "run", "killed by SIGKILL"),
    "exit": ("crash", "run", "exit status 0"),
    "orphan": ("crash", "run", "exit status 0"),
    "fork": ("native", None, ""),
    "twin": ("native", None, ""),
    "print": ("native", None, ""),
    "print-much": ("native", None, ""),
    "deaf": ("native", None, ""),
    "talk-over": ("error", "run", "Initialising..."),
    "allocate": ("wrong", "run", "MemoryError"),
}


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Two cases, static and dynamic, by a trace: a process's first export takes seconds."""
    text = LINEAR.replace("capture: [export]", "capture: [trace]")
    return [case for case in expand(load(written(tmp_path, text), vocabulary())) if case.spec_id == "linear"]


def spoiled(backend: str, cases: list[Case]) -> list[Record]:
    """The records of a backend's cases, with an honest one after them."""
    *found, last = run_jobs([*(Job(case, backend) for case in cases), Job(cases[0], "qlib")], 1, 60.0)
    assert str(last.verdict) == "native"
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_each_misbehaviour_costs_its_own_case(target: str, cases: list[Case]) -> None:
    start = time.monotonic()
    for record in spoiled(f"bad-process:{target}", cases[:1]):
        assert (str(record.verdict), record.stage) == TARGETS[target][:2], record.error
        assert TARGETS[target][2] in (record.error or "")
        assert record.verdict != "crash" or {"build", "capture", "lower", "run"} < set(record.seconds)
    assert time.monotonic() - start < 60, "nothing waits for a deadline"


def test_what_is_printed_is_kept_with_the_case(cases: list[Case]) -> None:
    for record in spoiled("bad-process:print", cases[:1]):
        assert "native code says \\xff" in record.stderr
    for record in spoiled("bad-process:print-much", cases[:1]):
        assert record.stderr.endswith("much") and "bytes before this are left out" in record.stderr
        assert len(record.stderr) < 5000


@pytest.mark.parametrize(("target", "verdict"), [("tensor", "wrong"), ("words", "fallback")])
def test_too_much_is_judged_and_not_kept(target: str, verdict: str, cases: list[Case]) -> None:
    for record in spoiled(f"too-much:{target}", cases[:1]):
        assert str(record.verdict) == verdict, record.error
        assert len(json.dumps(record.to_json())) < 200_000
    if target == "words":
        assert "executed operators: the first 500 of 1000000 entries are kept" in record.notes
        (ops,) = [finding for finding in record.findings if finding.check == "ops"]
        assert ops.outcome is Outcome.FAILED and "characters are left out" in ops.got


ABOUTS = {
    "raises": "OSError: libodd.so: cannot open shared object file",
    "exits": "the worker ended before its hello: exit status 5",
    "formless": "TypeError",
}


@pytest.mark.parametrize("target", ABOUTS)
def test_an_about_that_fails_is_trouble(target: str) -> None:
    trouble = Acquaintances().ask(f"bad-about:{target}")
    assert isinstance(trouble, EnvironmentTrouble)
    assert str(trouble).startswith(f"backend 'bad-about:{target}': ") and ABOUTS[target] in str(trouble)


def test_a_mode_that_is_declared_and_not_there_is_wrong(cases: list[Case]) -> None:
    static, dynamic = spoiled("bad-about:boasts", cases)
    assert (str(static.verdict), str(dynamic.verdict)) == ("native", "wrong")
    assert "NotImplementedError: mode dynamic" in str(dynamic.error)


@pytest.mark.parametrize("target", ["raises", "fickle"])
def test_other_backends_run_and_the_command_ends_with_3(target: str, conformance: Command, small: Path) -> None:
    backends = ["--backend", f"bad-about:{target}", "--backend", "qlib"]
    said = conformance("run", small, "-k", "linear[", *backends, "-o", "out")
    assert said.code == 3
    assert f"backend 'bad-about:{target}': " in said.err
    found = read(Path("out") / "results.jsonl")
    verdicts = sorted((record.backend, str(record.verdict), record.stage) for record in found.records)
    assert verdicts == [(f"bad-about:{target}", "error", "hello")] * 2 + [("qlib", "native", None)] * 2


@pytest.mark.parametrize("target", ["nan", "none", "more"])
def test_records_of_bad_outputs_can_be_written(target: str, conformance: Command, small: Path) -> None:
    said = conformance("run", small, "-k", "linear[", "--backend", f"bad-output:{target}", "-o", "out")
    assert said.code == 1
    assert [str(record.verdict) for record in read(Path("out") / "results.jsonl").records] == ["wrong"] * 2


def test_two_workers_lose_the_cases_that_end_them_and_no_other(conformance: Command, small: Path) -> None:
    ends = {"bad-process:kill": "crash", "crashes": "crash", "hangs": "timeout", "qlib": "native"}
    backends = [word for backend in ends for word in ("--backend", backend)]
    said = conformance("run", small, "-k", "linear[", "-n", "2", "--timeout", "16", *backends, "-o", "out")
    assert said.code == 1
    found = sorted((record.backend, str(record.verdict)) for record in read(Path("out") / "results.jsonl").records)
    assert found == sorted((backend, verdict) for backend, verdict in ends.items() for _ in range(2))
