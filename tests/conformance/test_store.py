from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.environment import environment
from conformance.errors import EnvironmentTrouble, UsageError
from conformance.record import Finding, Measures, Outcome, Record, Run, Subject, Verdict
from conformance.store import Results, read, write_compressed, writing

SUBJECT = Subject("s::c[static-export]", "s", "c", "static", "export", {"b": "1"}, 7, "why", "s.qspec.yaml", 3, "id: c")
RECORD = Record(
    SUBJECT,
    "qlib",
    Verdict.WRONG,
    "judge",
    (Finding("ops", Outcome.FAILED, "a: 1", "none"),),
    measures=Measures(sqnr_db=40.5, exact=3),
    seconds={"build": 0.25},
    notes=("ünïcode \u2028 and a line\nbreak",),
)
HEAD = Run(environment(), ("qlib",), 3, "conformance run", "2026-01-01T00:00:00+00:00")


def records(count: int) -> tuple[Record, ...]:
    """So many records, each of a case of its own."""
    return tuple(replace(RECORD, subject=replace(SUBJECT, case=f"s::c{index:02}")) for index in range(count))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    with writing(path) as writer:
        writer.head(HEAD)
        writer.append(RECORD)
        writer.append(replace(RECORD, backend="other", verdict=Verdict.NATIVE))
    found = read(path)
    assert found.run == HEAD
    assert found.records == (RECORD, replace(RECORD, backend="other", verdict=Verdict.NATIVE))
    assert found.damaged == 0


def test_of_two_records_of_one_case_on_one_backend_and_of_two_heads_the_later_counts(tmp_path: Path) -> None:
    path, (first, second) = tmp_path / "r.jsonl", records(2)
    with writing(path) as writer:
        writer.head(HEAD)
        for record in (first, second, replace(first, backend="other")):
            writer.append(record)
        writer.head(replace(HEAD, command="again"))
        writer.append(replace(first, verdict=Verdict.NATIVE))
    found = read(path)
    assert found.records == (replace(first, verdict=Verdict.NATIVE), replace(first, backend="other"), second)
    assert (found.run.command, found.damaged) == ("again", 0)


def test_a_compressed_file_is_read_as_it_was_and_is_the_same_each_time(tmp_path: Path) -> None:
    path, again = tmp_path / "deep" / "r.jsonl.xz", tmp_path / "again.jsonl.xz"
    results = Results(HEAD, records(50))
    write_compressed(path, results)
    write_compressed(again, results)
    assert read(path) == results
    assert path.read_bytes() == again.read_bytes() and len(path.read_bytes()) < 2000


@pytest.mark.parametrize("spoilt", [lambda data: data[:-20], lambda data: b"no archive"])
def test_a_compressed_file_that_is_damaged_says_so(tmp_path: Path, spoilt: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "r.jsonl.xz"
    write_compressed(path, Results(HEAD, records(50)))
    path.write_bytes(spoilt(path.read_bytes()))
    with pytest.raises(UsageError, match="can't be read"):
        read(path)


def test_records_are_there_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with writing(path) as writer:
        writer.head(HEAD)
        writer.append(RECORD)
        assert read(path).records == (RECORD,)


def test_a_writer_that_is_killed_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from tests.conformance.test_store import HEAD, records
        from conformance.store import writing
        with writing(Path({str(path)!r})) as writer:
            writer.head(HEAD)
            for record in records(5):
                writer.append(record)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(path).records == records(5)


def test_a_line_that_was_cut_off_is_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with writing(path) as writer:
        writer.head(HEAD)
        writer.append(RECORD)
        writer.append(RECORD)
    path.write_bytes(path.read_bytes()[:-40])
    found = read(path)
    assert (found.records, found.damaged) == ((RECORD,), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error() -> None:
    with pytest.raises(EnvironmentTrouble, match="make room"), writing(Path("/dev/full")) as writer:
        writer.head(HEAD)


def test_files_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "other.txt").write_text("hello\n")
    with pytest.raises(UsageError, match="head of a run"):
        read(tmp_path / "other.txt")


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentTrouble, match="--output"), writing(tmp_path / "file" / "r.jsonl"):
        pass
