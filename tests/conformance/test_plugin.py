from __future__ import annotations

import textwrap
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from offered import offer
from small_specs import LINEAR, UNSUPPORTED, VERDICTS, cases_of, written

from conformance import __main__ as command_line
from conformance import known_file
from conformance.backends import open_backend
from conformance.backends import qlib as bundled
from conformance.engine import run_case
from conformance.merge import merge
from conformance.record import Verdict
from conformance.shard import Shard
from conformance.store import read

pytest_plugins = ["pytester"]

NAMES = [
    "linear_relu[qlib-static-export-bias=true]",
    "linear_relu[qlib-static-trace-bias=true]",
    "linear_relu[qlib-static-export-bias=false]",
    "linear_relu[qlib-static-trace-bias=false]",
    "linear[qlib-static-export]",
    "linear[qlib-dynamic-export]",
]
IDS = [f"small.qspec.yaml::{name}" for name in NAMES]


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Have all of torch that a case needs imported: what is imported within a pytester session is dropped after it."""
    for case in cases_of(LINEAR):
        assert run_case(case, open_backend("qlib"), "qlib").record.verdict is Verdict.NATIVE


@pytest.fixture
def small(pytester: pytest.Pytester) -> Path:
    return written(pytester.path)


def collected(pytester: pytest.Pytester, *options: str) -> list[str]:
    lines = pytester.runpytest("--co", "-q", *options).outlines
    return [line for line in lines if "::" in line]


def verdicts(path: Path) -> dict[tuple[str, str], Verdict]:
    return {(record.backend, record.subject.case): record.verdict for record in read(path).records}


# ---- collection


@pytest.mark.usefixtures("small")
def test_one_item_for_each_case_under_a_name_that_can_be_typed(pytester: pytest.Pytester) -> None:
    assert collected(pytester) == IDS
    for one in IDS[:2]:
        pytester.runpytest(one).assert_outcomes(passed=1)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["-m", "dynamic"], [5]),
        (["-m", "static and not capture_trace"], [0, 2, 4]),
        (["-m", "conformance"], range(6)),
        (["-m", "qat or capture_script"], []),
        (["-k", "linear_relu and trace"], [1, 3]),
        (["--mode", "dynamic"], [5]),
        (["--mode", "dynamic", "--mode", "static"], range(6)),
        (["--mode", "static", "-k", "not linear_relu"], [4]),
    ],
)
def test_items_are_selected_as_any_others(pytester: pytest.Pytester, options: list[str], chosen: list[int]) -> None:
    assert collected(pytester, "--strict-markers", *options) == [IDS[n] for n in chosen]


@pytest.mark.usefixtures("small")
def test_each_backend_has_its_items(pytester: pytest.Pytester) -> None:
    found = collected(pytester, "--backend", "qlib", "--backend", "float-only", "-k", "linear_relu")
    assert found == [*IDS[:4], *(name.replace("[qlib-", "[float-only-") for name in IDS[:4])]


def test_other_yaml_files_are_left_alone(pytester: pytest.Pytester) -> None:
    (pytester.path / "small.yaml").write_text(LINEAR)
    assert collected(pytester) == []


def test_mistakes_of_a_spec_are_a_collection_error_with_their_lines(pytester: pytest.Pytester, small: Path) -> None:
    written(pytester.path, LINEAR.replace("    module: nn.Linear(30, 20)", "    modul: nn.Liner(30, 20)"), "bad")
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR collecting bad.qspec.yaml*",
            "*bad.qspec.yaml:18:5: unknown key 'modul'*",
            "*modul: nn.Liner(30, 20)",
            "*^*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    pytester.runpytest(str(small), "-k", "dynamic").assert_outcomes(passed=1, deselected=5)


TORCHLESS = """
import sys

def pytest_sessionfinish():
    assert "torch" not in sys.modules, "torch was imported"
    print("no torch here")
"""


def test_torch_is_not_imported_where_nothing_runs(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(TORCHLESS)
    pytester.makepyfile("def test_a(): pass")
    result = pytester.runpytest_subprocess("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*no torch here*"])
    written(pytester.path)
    result = pytester.runpytest_subprocess("--co", "-q", "-s", "--conformance-results", "r.jsonl")
    assert result.ret == 0
    result.stdout.fnmatch_lines([IDS[0], "*no torch here*"])


# ---- verdicts


def test_native_cases_pass(pytester: pytest.Pytester, small: Path) -> None:
    pytester.runpytest("--strict-markers").assert_outcomes(passed=6)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled library as if it declared no training; in this process only."""
    monkeypatch.setattr(bundled, "MODES", frozenset({"static", "dynamic"}))


@pytest.mark.usefixtures("no_training")
def test_outcomes_by_verdict(pytester: pytest.Pytester) -> None:
    written(pytester.path, VERDICTS, "verdicts")
    written(pytester.path, UNSUPPORTED, "unsupported")
    result = pytester.runpytest("-rsf")
    result.assert_outcomes(passed=1, failed=4, skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*unsupported: declares no mode qat", "FAILED *::fallback[[]qlib-static-export] - fallback: ops: *"]
    )
    for name in ("wrong", "error", "vacuous"):
        result.stdout.fnmatch_lines([f"FAILED verdicts.qspec.yaml::{name}[[]qlib-static-export] - {name}*"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "backend",
    ["always-wrong", "off-by-one", "float-only", "claims-everything", "undeclared-refusal", "first-call-only"],
)
def test_every_miniature_fails_every_case(pytester: pytest.Pytester, backend: str) -> None:
    result = pytester.runpytest("--backend", backend, "--conformance-results", "r.jsonl")
    result.assert_outcomes(failed=6)
    expected = "fallback" if backend in {"float-only", "claims-everything"} else "wrong"
    assert [str(verdict) for verdict in verdicts(pytester.path / "r.jsonl").values()] == [expected] * 6


@pytest.mark.usefixtures("small")
def test_a_failure_says_in_its_first_line_what_is_wrong_then_the_operators_then_the_graph(
    pytester: pytest.Pytester,
) -> None:
    result = pytester.runpytest("--backend", "off-by-one", "-k", "linear_relu and export and true")
    start = next(n for n, line in enumerate(result.outlines) if line.startswith("___"))
    report = result.outlines[start + 1 :]
    assert report[0].startswith("wrong: debug_equal: expected 0 quanta but for ties; got ")
    assert len(report[0]) < 160
    result.stdout.fnmatch_lines(
        [
            "wrong: debug_equal: *",
            "case     small::linear_relu[[]static-export-bias=true]",
            "why      the pattern that every backend has",
            "failed   debug_equal: expected 0 quanta but for ties",
            "*got *",
            "operator *expected *got",
            "quantized::linear_relu * 1 * 1",
            "debug graph:",
            "*aten.linear*",
            "final graph:",
            "*qlib.linear_relu*",
        ]
    )
    result.stdout.no_fnmatch_line("*site-packages*")
    summary = next(line for line in result.outlines if line.startswith("FAILED "))
    assert " - wr" in summary, "the summary cuts it off at 80 columns"


@pytest.mark.usefixtures("small")
def test_operators_that_are_missing_are_marked(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--backend", "float-only", "-k", "linear_relu and export and true")
    result.stdout.fnmatch_lines(["aten::linear * 1", "quantized::linear_relu * 1 * 0  <--"])


@pytest.mark.usefixtures("small")
def test_first_failure_last_failed_and_junit(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--backend", "always-wrong", "-x").assert_outcomes(failed=1)
    pytester.runpytest("--backend", "qlib", "--backend", "always-wrong").assert_outcomes(passed=6, failed=6)
    again = collected(pytester, "--lf", "--backend", "qlib", "--backend", "always-wrong")
    assert again == [one.replace("[qlib-", "[always-wrong-") for one in IDS]
    pytester.runpytest("--junitxml=j.xml", "--backend", "qlib", "--backend", "always-wrong")
    cases = ET.parse(pytester.path / "j.xml").getroot().findall(".//testcase")
    assert [case.get("name") for case in cases[:6]] == NAMES
    assert sum(case.find("failure") is not None for case in cases) == 6
    failure = cases[-1].find("failure")
    assert failure is not None and str(failure.get("message")).startswith("wrong: ")
    assert (pytester.path / "j.xml").stat().st_size < 100_000, "records are not dumped into properties"


def test_python_modules_need_the_option(pytester: pytest.Pytester) -> None:
    text = LINEAR.replace("    module: nn.Linear(30, 20)\n", "    module: {python: own_of_test:make}\n")
    written(pytester.path, text)
    (pytester.path / "own_of_test.py").write_text("import torch\ndef make(): return torch.nn.Linear(30, 20)\n")
    pytester.syspathinsert()
    result = pytester.runpytest("-k", "linear[")
    result.assert_outcomes(failed=2, deselected=4)
    result.stdout.fnmatch_lines(["error in build: *--allow-python*"])
    pytester.runpytest("-k", "linear[", "--allow-python").assert_outcomes(passed=2, deselected=4)


@pytest.mark.usefixtures("small")
def test_a_backend_that_does_not_exist(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--backend", "qlibb")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no backend is named 'qlibb'*Did you mean 'qlib'?*"])


# ---- known failures


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the known failures of `float-only`."""
    monkeypatch.setattr(known_file, "bundled_specs", lambda: tmp_path)
    (tmp_path / "expected").mkdir()
    return tmp_path / "expected" / "float-only.yaml"


def test_known_failures_are_expected(pytester: pytest.Pytester, small: Path, expected: Path) -> None:
    expected.write_text("- {case: 'small::linear_relu', verdict: fallback, stage: judge, reason: no integers here}\n")
    result = pytester.runpytest("--backend", "float-only", "-rx")
    result.assert_outcomes(xfailed=4, failed=2)
    result.stdout.fnmatch_lines(["XFAIL small.qspec.yaml::linear_relu*no integers here*"])


def test_a_known_failure_of_another_kind_still_fails(pytester: pytest.Pytester, small: Path, expected: Path) -> None:
    expected.write_text(
        "- {case: small::linear, verdict: wrong, reason: r}\n"
        "- {case: small::linear_relu, verdict: fallback, stage: lower, reason: r}\n"
    )
    pytester.runpytest("--backend", "float-only").assert_outcomes(failed=6)


def test_a_known_failure_that_passes_fails(pytester: pytest.Pytester, small: Path, expected: Path) -> None:
    expected.with_name("qlib.yaml").write_text("- {case: 'small::linear', verdict: wrong, reason: was broken}\n")
    result = pytester.runpytest()
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["passes, but expected wrong: was broken: remove the known failure"])


@pytest.mark.usefixtures("no_training")
def test_an_unsupported_case_that_is_known_to_be_is_expected(pytester: pytest.Pytester, expected: Path) -> None:
    written(pytester.path, UNSUPPORTED, "unsupported")
    expected.with_name("qlib.yaml").write_text("- {case: 'verdicts::unsupported', verdict: unsupported, reason: qat}\n")
    pytester.runpytest("-k", "unsupported").assert_outcomes(xfailed=1)


# ---- processes


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
@pytest.mark.parametrize(
    ("backend", "seconds", "line"),
    [
        ("crashes", "60", "crash in run: killed by SIGSEGV"),
        ("hangs", "16", "timeout in run: no answer within 8 s of the step 'run'"),
    ],
)
def test_a_crash_and_a_hang_in_one_process(pytester: pytest.Pytester, backend: str, seconds: str, line: str) -> None:
    result = pytester.runpytest("-k", "dynamic", "--backend", backend, "--case-timeout", seconds)
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines([line])


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


# ---- for tools that know test functions only


def test_the_decorator(pytester: pytest.Pytester) -> None:
    (pytester.path / "specs").mkdir()
    written(pytester.path / "specs", LINEAR)
    pytester.makepyfile(
        textwrap.dedent("""
            import pytest
            import conformance

            @conformance.parametrize("specs/small.qspec.yaml")
            def test_all(case):
                record = conformance.check(case)
                assert record.verdict == "native"

            @conformance.parametrize("specs/small.qspec.yaml", modes=["dynamic"])
            def test_findings_are_told(case):
                with pytest.raises(AssertionError, match="fallback: ops: expected quantized::linear_dynamic: 1"):
                    conformance.check(case, backend="float-only")
        """)
    )
    here = ["-p", "no:conformance-items", "--ignore=specs"]
    result = pytester.runpytest("-v", *here)
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["*::test_all[[]linear_relu[[]qlib-static-export-bias=true]] PASSED*"])


def test_the_decorator_on_a_file_with_mistakes(pytester: pytest.Pytester) -> None:
    (pytester.path / "specs").mkdir()
    written(pytester.path / "specs", "spec: 2\n")
    pytester.makepyfile(
        "import conformance\n@conformance.parametrize('specs/small.qspec.yaml')\ndef test_all(case): pass"
    )
    result = pytester.runpytest("--ignore=specs")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*SpecError*specs/small.qspec.yaml:1:*"])


# ---- shards


@pytest.mark.parametrize("extra", [(), ("-n", "2")])
def test_shards_are_those_of_the_command_line_and_can_be_joined(
    pytester: pytest.Pytester, small: Path, extra: tuple[str, ...]
) -> None:
    ids = []
    for index in ("1", "2"):
        options = ("--shard", f"{index}/2", "-k", "linear_relu", "--conformance-results", f"{index}.jsonl")
        pytester.runpytest_subprocess(*options, *extra)
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


def test_an_expired_known_failure_fails_and_says_so(pytester: pytest.Pytester, small: Path, expected: Path) -> None:
    expected.write_text("- {case: small::linear, verdict: fallback, reason: floats, expires: 2020-01-01}\n")
    result = pytester.runpytest("--backend", "float-only", "-k", "linear[")
    result.assert_outcomes(failed=2, deselected=4)
    result.stdout.fnmatch_lines(["fallback: *; known until 2020-01-01: floats"])
