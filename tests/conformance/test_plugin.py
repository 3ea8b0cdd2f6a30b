from __future__ import annotations

import textwrap
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from commands import verdicts
from small_specs import LINEAR, UNSUPPORTED, VERDICTS, written

from conformance import known_file
from conformance.backends import qlib as bundled

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("warm")

NAMES = [
    "linear_relu[qlib-static-export-bias=true]",
    "linear_relu[qlib-static-trace-bias=true]",
    "linear_relu[qlib-static-export-bias=false]",
    "linear_relu[qlib-static-trace-bias=false]",
    "linear[qlib-static-export]",
    "linear[qlib-dynamic-export]",
]
IDS = [f"small.qspec.yaml::{name}" for name in NAMES]


@pytest.fixture
def small(pytester: pytest.Pytester) -> Path:
    return written(pytester.path)


def collected(pytester: pytest.Pytester, *options: str) -> list[str]:
    lines = pytester.runpytest("--co", "-q", *options).outlines
    return [line for line in lines if "::" in line]


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


def test_an_expired_known_failure_fails_and_says_so(pytester: pytest.Pytester, small: Path, expected: Path) -> None:
    expected.write_text("- {case: small::linear, verdict: fallback, reason: floats, expires: 2020-01-01}\n")
    result = pytester.runpytest("--backend", "float-only", "-k", "linear[")
    result.assert_outcomes(failed=2, deselected=4)
    result.stdout.fnmatch_lines(["fallback: *; known until 2020-01-01: floats"])


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
