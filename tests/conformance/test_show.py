from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from small_specs import LINEAR, UNSUPPORTED, VERDICTS, case_of, cases_of

from conformance.backends import open_backend
from conformance.backends import qlib as bundled
from conformance.case import Case
from conformance.engine import Trial, run_case
from conformance.record import Outcome, Record, Verdict
from conformance.show import forms, graph_table, graphs_of, show, show_layers


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
            "    module: nn.Linear(30, 20)\n    qconfig: {default: default, types: {nn.Conv2d: null}}\n",
        )
    )[-1]
    assert "unused QConfig rule: types: nn.Conv2d" in shown(case)[1]


DEEP = """
    module: ["nn.Linear(16, 16)", nn.ReLU(), "nn.Linear(16, 16)", nn.ReLU(), "nn.Linear(16, 4)"]
    inputs: {x: {shape: [4, 16]}}
    capture: [export]
"""
# The step of the middle layer is as large as its values.
COARSE = """
    qconfig:
      default: default
      modules:
        "2":
          activation: {dtype: uint8}
          weight: {dtype: int8, symmetric: true}
          output: {dtype: uint8, observer: fixed, scale: 0.5, zero_point: 0}
"""


def layers_shown(body: str, name: str = "qlib", width: int = 160) -> str:
    out = io.StringIO()
    case, console = case_of(body), Console(file=out, width=width)
    show_layers(case, run_case(case, open_backend(name), name), console)
    return out.getvalue()


def test_layers_in_order_of_execution_and_where_the_error_came_from() -> None:
    text = layers_shown(DEEP + COARSE + "    expect: {ops: {quantized::linear: 2}}")
    rows = [line.split() for line in text.splitlines()]
    made_by = [row for row in rows if {"quantize_per_tensor", "linear_relu", "linear"} & set(row)]
    assert ["linear_relu" in row for row in made_by[:2]] == [False, True]
    (marked,) = [place for place, row in enumerate(rows) if row[:1] == ["▼"]]
    assert rows[marked][1] == "linear_1" and rows[marked + 1][:2] == ["linear", "0.5,"]
    assert "The largest drop of SQNR is" in text and "quantized::linear, 2)" in text
    assert "Debug and final form agree at all" in text


def test_layers_of_a_backend_that_has_none_and_of_a_case_that_stopped() -> None:
    body = DEEP + "    expect: {ops: {quantized::linear: 1}}"
    assert "this backend can't tell its layers" in layers_shown(body, "float-only")
    assert "did not get as far" in layers_shown(body, "undeclared-refusal")
    assert "nothing was quantized" in layers_shown(body + "\n    qconfig: {default: null}")


def test_layers_fit_a_narrow_terminal() -> None:
    text = layers_shown(DEEP + "    expect: {ops: {quantized::linear: 1}}", width=72)
    assert max(map(len, text.splitlines())) <= 72
    assert "scale, zero" in text and "linear_relu" in text


def test_a_layer_far_from_float_makes_a_case_wrong() -> None:
    case = case_of(DEEP + COARSE + "    expect: {layers: {sqnr_db: 25}}")
    record = run_case(case, open_backend("qlib"), "qlib").record
    assert record.verdict is Verdict.WRONG
    assert {finding.check: finding.outcome for finding in record.findings}["layers"] is Outcome.FAILED
    good = run_case(case_of(DEEP + "    expect: {layers: {sqnr_db: 25}}"), open_backend("qlib"), "qlib").record
    assert good.verdict is Verdict.NATIVE
    assert len(good.layers) == 4 and Record.from_json(json.loads(json.dumps(good.to_json()))) == good
