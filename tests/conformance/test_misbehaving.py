from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from commands import Command
from small_specs import LINEAR, written

from conformance.backends import BUILTIN
from conformance.backends.qlib import vocabulary
from conformance.case import expand
from conformance.load import load
from conformance.pool import Job, run_jobs
from conformance.record import Outcome, Record
from conformance.store import read

# How a case ends that each of them spoils: verdict, step, and what its error says.
ENDS = {
    "bad-process:kill": ("crash", "run", "killed by SIGKILL"),
    "bad-process:exit": ("crash", "run", "exit status 0"),
    "bad-process:orphan": ("crash", "run", "exit status 0"),
    "bad-process:fork": ("native", None, ""),
    "bad-process:twin": ("native", None, ""),
    "bad-process:print": ("native", None, ""),
    "bad-process:print-much": ("native", None, ""),
    "bad-process:deaf": ("native", None, ""),
    "bad-process:talk-over": ("error", "run", "Initialising..."),
    "bad-process:allocate": ("wrong", "run", "MemoryError"),
    "too-much:tensor": ("wrong", "judge", ""),
    "too-much:words": ("fallback", "judge", ""),
    "bad-about:boasts": ("native", None, ""),
    "qlib": ("native", None, ""),
}
# The records of each backend, with the seconds that each took.
Ended = Mapping[str, Sequence[tuple[Record, float]]]
# No case waits for its deadline, which is this many seconds.
SECONDS = 60.0


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One run of all of them, one after the other and an honest one last.

    A static case each, and a dynamic one of the backend that boasts of that mode, by a trace: a process's first export
    takes seconds.
    """
    text = LINEAR.replace("capture: [export]", "capture: [trace]")
    path = written(tmp_path_factory.mktemp("specs"), text)
    static, dynamic = (case for case in expand(load(path, vocabulary())) if case.spec_id == "linear")
    boasting = ["bad-about:boasts"]
    jobs = [Job(case, name) for name in ENDS for case in ([static, dynamic] if name in boasting else [static])]
    found: dict[str, list[tuple[Record, float]]] = {}
    before = time.monotonic()
    for record in run_jobs(jobs, 1, SECONDS):
        found.setdefault(record.backend, []).append((record, (now := time.monotonic()) - before))
        before = now
    return found


def test_every_process_that_misbehaves_is_here() -> None:
    here = {name for name in ENDS if name.startswith("bad-process:")}
    assert here == {f"bad-process:{target}" for target in BUILTIN["bad-process"].targets}


@pytest.mark.parametrize("backend", ENDS)
def test_each_misbehaviour_costs_its_own_case(backend: str, ended: Ended) -> None:
    record, seconds = ended[backend][0]
    verdict, stage, text = ENDS[backend]
    assert (str(record.verdict), record.stage) == (verdict, stage), record.error
    assert text in (record.error or "")
    assert record.verdict != "crash" or {"build", "capture", "lower", "run"} < set(record.seconds)
    assert seconds < SECONDS, "nothing waits for a deadline"


def test_what_is_printed_is_kept_with_the_case(ended: Ended) -> None:
    little, much = (ended[f"bad-process:{target}"][0][0].stderr for target in ("print", "print-much"))
    assert "native code says \\xff" in little
    assert much.endswith("much") and "bytes before this are left out" in much
    assert len(much) < 5000


def test_too_much_is_judged_and_not_kept(ended: Ended) -> None:
    tensor, words = (ended[f"too-much:{target}"][0][0] for target in ("tensor", "words"))
    assert all(len(json.dumps(record.to_json())) < 200_000 for record in (tensor, words))
    assert "executed operators: the first 500 of 1000000 entries are kept" in words.notes
    (ops,) = [finding for finding in words.findings if finding.check == "ops"]
    assert ops.outcome is Outcome.FAILED and "characters are left out" in ops.got


def test_a_mode_that_is_declared_and_not_there_is_wrong(ended: Ended) -> None:
    static, dynamic = (record for record, _ in ended["bad-about:boasts"])
    assert (str(static.verdict), str(dynamic.verdict)) == ("native", "wrong")
    assert "NotImplementedError: mode dynamic" in str(dynamic.error)


# What is said of each whose `about()` fails.
ABOUTS = {
    "raises": "OSError: libodd.so: cannot open shared object file",
    "exits": "the worker ended before its hello: exit status 5",
    "formless": "TypeError",
    "fickle": "at first, and now",
}


def test_an_about_that_fails_is_trouble_and_other_backends_run(conformance: Command, small: Path) -> None:
    names = {f"bad-about:{target}": text for target, text in ABOUTS.items()}
    backends = [word for name in [*names, "qlib"] for word in ("--backend", name)]
    said = conformance("run", small, "-k", "linear[", *backends, "-o", "out")
    assert said.code == 3
    found = read(Path("out") / "results.jsonl")
    verdicts = sorted((record.backend, str(record.verdict), record.stage) for record in found.records)
    assert verdicts == sorted([(name, "error", "hello") for name in names] * 2) + [("qlib", "native", None)] * 2
    for name, text in names.items():
        assert f"backend {name!r}: " in said.err
        assert all(text in str(record.error) for record in found.records if record.backend == name)


@pytest.mark.parametrize("target", ["nan", "none", "more"])
def test_records_of_bad_outputs_can_be_written(target: str, conformance: Command, small: Path) -> None:
    said = conformance("run", small, "-k", "linear[", "--backend", f"bad-output:{target}", "-o", "out")
    assert said.code == 1
    assert [str(record.verdict) for record in read(Path("out") / "results.jsonl").records] == ["wrong"] * 2


def test_two_workers_lose_the_cases_that_end_them_and_no_other(conformance: Command, small: Path) -> None:
    ends = {"bad-process:kill": "crash", "hangs": "timeout", "qlib": "native"}
    backends = [word for backend in ends for word in ("--backend", backend)]
    said = conformance("run", small, "-k", "linear[", "-n", "2", "--timeout", "16", *backends, "-o", "out")
    assert said.code == 1
    found = sorted((record.backend, str(record.verdict)) for record in read(Path("out") / "results.jsonl").records)
    assert found == sorted((backend, verdict) for backend, verdict in ends.items() for _ in range(2))
