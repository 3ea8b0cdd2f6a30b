from __future__ import annotations

import io

import pytest
from rich.console import Console
from small_specs import LINEAR, UNSUPPORTED, VERDICTS, cases_of

from conformance.backends import open_backend
from conformance.backends import qlib as bundled
from conformance.case import Case
from conformance.engine import Trial, run_case
from conformance.record import Verdict
from conformance.show import forms, graph_table, graphs_of, show


def shown(case: Case, name: str = "qlib", width: int = 160) -> tuple[Trial, str]:
    out = io.StringIO()
    trial = show(case, open_backend(name), name, Console(file=out, width=width))
    return trial, out.getvalue()


def first() -> Case:
    return cases_of(LINEAR)[0]


def test_all_about_a_case() -> None:
    trial, text = shown(first())
    assert trial.record.verdict is Verdict.NATIVE
    for part in (first().id, f"seed {first().seed}", "backend qlib", "small.qspec.yaml:6", "id: linear_relu"):
        assert part in text, part
    assert "(0): Linear(in_features=30, out_features=20, bias=True)" in text
    for heading in ("float", "debug", "final"):
        assert heading in text
    assert "aten.linear" in text and "qlib.linear_relu" in text
    assert "held     accuracy: expected sqnr_db >= 30" in text
    assert "milliseconds: build" in text


def test_the_yaml_is_shown_as_it_stands_with_its_brackets() -> None:
    _, text = shown(first())
    for line in first().yaml.splitlines():
        assert line.rstrip() in text


def test_the_three_graphs_stand_side_by_side() -> None:
    trial = run_case(first(), open_backend("qlib"), "qlib")
    assert list(forms(trial)) == ["float", "debug", "final"]
    table = graph_table(trial, 160)
    assert [column.header for column in table.columns] == ["float", "debug", "final"]
    assert table.row_count == max(len(text.splitlines()) for text in forms(trial).values())


def test_a_narrow_terminal_folds_and_loses_nothing() -> None:
    _, text = shown(first(), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "qlib.linear_relu" in text.replace("\n", "").replace(" ", "").replace("│", "") or "linear_relu" in text


def test_a_case_that_stopped_early_shows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {case.spec_id: case for case in cases_of(VERDICTS)}
    trial, text = shown(cases["error"])
    assert trial.quantized is None and forms(trial) == {}
    assert "error in build: parameters: 'wieght' names no parameter" in text
    assert "float" not in text.split("error in build")[0]
    monkeypatch.setattr(bundled, "MODES", frozenset({"static"}))
    assert "declares no mode qat" in shown(cases_of(UNSUPPORTED)[0])[1]


def test_the_operators_that_were_expected_and_those_that_ran() -> None:
    _, text = shown(first(), "float-only")
    assert "fallback: ops: expected quantized::linear_relu: 1; got aten::linear: 1, aten::relu: 1" in text
    row = next(line for line in text.splitlines() if line.startswith("quantized::linear_relu ") and "<--" in line)
    assert row.split() == ["quantized::linear_relu", "1", "0", "<--"]


def test_graphs_for_a_failing_test_are_debug_and_final() -> None:
    text = graphs_of(run_case(first(), open_backend("qlib"), "qlib"))
    assert text.startswith("\n\ndebug graph:\n") and "\n\nfinal graph:\n" in text
    assert "float graph" not in text
    assert graphs_of(Trial(run_case(first(), open_backend("qlib"), "qlib").record)) == ""


def test_notes_are_shown() -> None:
    case = cases_of(
        LINEAR.replace(
            "    module: nn.Linear(30, 20)\n",
            "    module: nn.Linear(30, 20)\n    qconfig: {default: default, modules: {gone: null}}\n",
        )
    )[-1]
    assert "unused QConfig rule: modules: gone" in shown(case)[1]
