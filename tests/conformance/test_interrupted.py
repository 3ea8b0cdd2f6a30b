from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from commands import Command
from offered import offer
from small_specs import LINEAR, written

from conformance.record import Record
from conformance.store import Writer, read


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words of a command line that runs sixty cases, each of a tenth of a second or more."""
    offer(tmp_path, monkeypatch)
    spec = LINEAR.replace("bias: [true, false]", f"bias: [true], n: {list(range(1, 31))}").replace(
        "30, 20, ", "30, ${n}, "
    )
    return str(written(tmp_path, spec, "many")), "--backend", "slow"


# Ctrl-C works whatever the test runner has done with its signals.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from conformance.__main__ import main
main()
"""


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "-o", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def recorded(folder: Path) -> int:
    path = folder / "results.jsonl"
    return path.read_bytes().count(b'{"record"') if path.exists() else 0


def children(pid: int) -> list[int]:
    """The processes that any of its threads has started."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def gone(pid: int) -> bool:
    with suppress(OSError):
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


def test_results_of_a_run_that_was_killed_are_readable(tmp_path: Path, many: tuple[str, ...]) -> None:
    process = started(tmp_path, "-n", "2", *many)
    try:
        assert wait_for(lambda: recorded(tmp_path) >= 5)
        served = children(process.pid)
    finally:
        process.kill()
        process.communicate()
    found = read(tmp_path / "results.jsonl")
    assert found.run.planned > len(found.records) >= 5
    assert found.damaged <= 1
    assert len(served) >= 2
    assert all(wait_for(lambda pid=pid: gone(pid), 20.0) for pid in served), "workers end with the one they work for"


def test_an_interrupted_run_keeps_its_results(tmp_path: Path, many: tuple[str, ...]) -> None:
    process = started(tmp_path, "-n", "2", *many)
    assert wait_for(lambda: recorded(tmp_path) >= 5)
    served = children(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"interrupted; what was recorded until now is kept in {tmp_path}/results.jsonl; go on with\n" in err
    assert "Traceback" not in err
    found = read(tmp_path / "results.jsonl")
    assert found.run.planned > len(found.records) >= 5 and found.damaged == 0
    assert f"Incomplete: {62 - len(found.records)} of 62 planned records are missing." in out
    assert all(wait_for(lambda pid=pid: gone(pid), 5.0) for pid in served)
    assert_resumed(tmp_path, err.strip().splitlines()[-1])


def assert_resumed(folder: Path, command: str) -> None:
    """The command that was printed runs what is missing, and that alone."""
    results = folder / "results.jsonl"
    before = results.read_bytes()
    words = shlex.split(command)
    assert words[1:3] == ["run", "-o"] and words[-2:] == ["--resume", str(results)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words[1:]], capture_output=True, text=True, check=False)
    assert results.read_bytes().startswith(before)
    found = read(results)
    assert len(found.records) == len({record.subject.case for record in found.records}) == 62
    assert (done.returncode, done.stderr) == (int(any(record.failed for record in found.records)), "")
    assert "of 62" in done.stdout and "Incomplete" not in done.stdout


def test_a_run_in_this_process_is_interrupted_and_goes_on_likewise(
    conformance: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Writer.append

    def interrupting(writer: Writer, record: Record) -> None:
        append(writer, record)
        if recorded(tmp_path / "results") == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "append", interrupting)
        said = conformance("run", small)
    assert said.code == 130 and "Incomplete: 2 of 6 planned records are missing." in said.out
    assert "what was recorded until now is kept in results/results.jsonl; go on with\n" in said.err
    assert said.err.endswith("--resume results/results.jsonl\n")
    results = tmp_path / "results" / "results.jsonl"
    before = results.read_bytes()
    assert conformance("run", small, "--resume", results).code == 0
    assert results.read_bytes().startswith(before) and recorded(tmp_path / "results") == 6


def test_an_interruption_before_the_first_record_costs_no_earlier_results(
    tmp_path: Path, many: tuple[str, ...]
) -> None:
    (tmp_path / "results.jsonl").write_text("an earlier run's\n")
    process = started(tmp_path, "--backend", "hangs", str(written(tmp_path)))
    assert wait_for(lambda: bool(children(process.pid)))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; nothing was recorded yet" in err


def test_an_interrupted_run_leaves_no_hanging_worker(tmp_path: Path) -> None:
    process = started(tmp_path / "o", "--backend", "hangs", str(written(tmp_path)))
    try:
        assert wait_for(lambda: bool(children(process.pid)))
        time.sleep(4.0)  # the import of torch, and on into the hang
        served = children(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert served and all(wait_for(lambda pid=pid: gone(pid), 5.0) for pid in served)
