"""The pytest plug-in and processes: backends that end theirs, xdist's, and shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import verdicts
from offered import offer
from small_specs import VERDICTS, written

from conformance import __main__ as command_line
from conformance.merge import merge
from conformance.record import Verdict
from conformance.shard import Shard
from conformance.store import read

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def small(pytester: pytest.Pytester) -> Path:
    return written(pytester.path)


TORCHLESS = """
import sys

def pytest_sessionfinish():
    assert "torch" not in sys.modules, "torch was imported"
    print("no torch here")
"""


def test_torch_is_not_imported_where_no_case_runs(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(TORCHLESS)
    pytester.makepyfile("def test_a(): pass")
    written(pytester.path)
    result = pytester.runpytest_subprocess("-s", "-k", "test_a", "--conformance-results", "r.jsonl")
    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.fnmatch_lines(["*no torch here*"])


@pytest.mark.usefixtures("small")
def test_a_backend_of_its_own_process_loses_only_the_cases_that_kill_it(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "offered").mkdir()
    offer(tmp_path / "offered", monkeypatch)
    options = ["--backend", "moody", "-k", "export", "--conformance-results", "r.jsonl"]
    result = pytester.runpytest_subprocess("-n", "2", *options)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*crash in lower: killed by SIGKILL*"])
    result.stdout.no_fnmatch_line("*worker*crashed*")
    crashed = [case for (_, case), verdict in verdicts(pytester.path / "r.jsonl").items() if verdict is Verdict.CRASH]
    assert crashed == ["small::linear_relu[static-export-bias=true]"]


@pytest.mark.usefixtures("small")
def test_a_crash_and_a_hang_in_one_process(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("-k", "dynamic", "--backend", "crashes", "--backend", "hangs", "--case-timeout", "16")
    result.assert_outcomes(failed=2, deselected=10)
    result.stdout.fnmatch_lines(
        ["crash in run: killed by SIGSEGV", "timeout in run: no answer within 8 s of the step 'run'"]
    )


def test_the_results_are_those_of_the_command_line(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(pytester.path, VERDICTS, "verdicts")
    monkeypatch.setattr("sys.argv", ["conformance", "run", str(path), "--backend", "qlib", "--backend", "off-by-one"])
    with pytest.raises(SystemExit, match="1"):
        command_line.main()
    wanted = verdicts(pytester.path / "results" / "results.jsonl")
    assert len(wanted) == 10
    backends = ["--backend", "qlib", "--backend", "off-by-one"]
    pytester.runpytest(*backends, "--conformance-results", "one.jsonl")
    assert verdicts(pytester.path / "one.jsonl") == wanted
    pytester.runpytest_subprocess("-n", "2", *backends, "--conformance-results", "deep/two.jsonl")
    assert verdicts(pytester.path / "deep" / "two.jsonl") == wanted
    head = read(pytester.path / "deep" / "two.jsonl").run
    assert head.backends == ("qlib", "off-by-one") and head.command.startswith("pytest ")


@pytest.mark.usefixtures("small")
def test_results_that_can_not_be_written(pytester: pytest.Pytester) -> None:
    (pytester.path / "file").write_text("")
    result = pytester.runpytest("--conformance-results", "file/r.jsonl")
    assert result.ret in {pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR}
    assert "can't be written" in "\n".join([*result.outlines, *result.errlines])


@pytest.mark.usefixtures("small")
def test_shards_are_those_of_the_command_line_and_can_be_joined(pytester: pytest.Pytester) -> None:
    ids = []
    for index, run, extra in (("1", pytester.runpytest, ()), ("2", pytester.runpytest_subprocess, ("-n", "2"))):
        run("--shard", f"{index}/2", "-k", "linear_relu", "--conformance-results", f"{index}.jsonl", *extra)
        found = read(pytester.path / f"{index}.jsonl")
        assert (found.run.shard, len(found.run.cases), found.run.planned) == (f"{index}/2", 4, len(found.records))
        assert all(Shard(int(index), 2).holds(record.subject.case) for record in found.records)
        ids += [record.subject.case for record in found.records]
    assert sorted(ids) == sorted(found.run.cases)
    merged = merge([(Path(name), read(pytester.path / name)) for name in ("1.jsonl", "2.jsonl")])
    assert merged.missing == () and len(merged.results.records) == 4
    assert merged.results.run.versions["qlib"].keys() == {"qlib", "torch"}


@pytest.mark.usefixtures("small")
def test_a_choice_that_leaves_some_backends_of_a_case_is_no_plan(pytester: pytest.Pytester) -> None:
    options = ("--backend", "qlib", "--backend", "float-only", "-k", "float-only or linear_relu")
    pytester.runpytest(*options, "--conformance-results", "r.jsonl")
    assert read(pytester.path / "r.jsonl").run.cases == {}


@pytest.mark.usefixtures("small")
def test_what_is_no_shard_is_refused(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--shard", "3/2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected a shard as i/n*found '3/2'*"])
