"""Rows that join captures: what a cell says, what counts as a disagreement, and what the page does with both."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_pages import index_of
from synthetic_records import make_record, make_run, make_subject, recaptured

from conformance.diff import Change, Kind
from conformance.record import Record, Verdict
from conformance.report import html
from conformance.report.disagreement import disagree
from conformance.report.rows import row_name, rows

NATIVE, FALLBACK, WRONG, UNSUPPORTED = Verdict.NATIVE, Verdict.FALLBACK, Verdict.WRONG, Verdict.UNSUPPORTED


def captured(capture: str, backend: str = "qlib", verdict: Verdict = NATIVE) -> Record:
    return replace(make_record(recaptured(make_subject(0), capture), backend, verdict), properties={})


def test_a_row_is_a_case_without_its_capture_and_keeps_every_record() -> None:
    other = recaptured(make_subject(1), "trace")
    records = [captured("trace"), make_record(other), captured("export"), captured("export", "torch-jit")]
    first, second = rows(records)
    assert first.name == "activation::activation_relu_0[static-bias=true-relu=ReLU()-number=0]"
    assert {name: cell.records for name, cell in first.cells.items()} == {
        "qlib": {"trace": records[0], "export": records[2]},
        "torch-jit": {"export": records[3]},
    }
    assert first.captures == ["export", "trace"]
    assert [list(cell.records.values()) for cell in second.cells.values()] == [[records[1]]]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("s::relu[static-export]", "s::relu[static]"),
        ("s::relu[static-export-bounds=static-export]", "s::relu[static-bounds=static-export]"),
        ("named by somebody else", "named by somebody else"),
    ],
)
def test_the_name_of_a_row(case: str, name: str) -> None:
    assert row_name(replace(make_subject(0), case=case)) == name


@pytest.mark.parametrize(
    ("verdicts", "leading"),
    [
        ([NATIVE], NATIVE),
        ([UNSUPPORTED], UNSUPPORTED),
        ([UNSUPPORTED, UNSUPPORTED], UNSUPPORTED),
        ([UNSUPPORTED, NATIVE], NATIVE),
        ([NATIVE, FALLBACK], FALLBACK),
        ([Verdict.CRASH, WRONG, NATIVE], WRONG),
        ([Verdict.ERROR, UNSUPPORTED], Verdict.ERROR),
        ([FALLBACK, Verdict.ERROR], Verdict.ERROR),
    ],
)
def test_the_most_urgent_verdict_speaks_for_a_cell(verdicts: list[Verdict], leading: Verdict) -> None:
    captures = ("export", "trace", "script")
    for given in (verdicts, verdicts[::-1]):
        records = [captured(capture, verdict=verdict) for capture, verdict in zip(captures, given, strict=False)]
        (row,) = rows(records)
        assert row.cells["qlib"].leading.verdict is leading


def test_of_equal_verdicts_the_one_that_counts_against_the_run_speaks() -> None:
    known = replace(captured("export", verdict=WRONG), known="a reason")
    (row,) = rows([known, captured("trace", verdict=WRONG)])
    assert row.cells["qlib"].leading.subject.capture == "trace"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        # Each knows a capture of its own.
        ([captured("export", "a"), captured("trace", "b", WRONG)], True),
        ([captured("export", "a"), captured("trace", "b")], False),
        # What a backend declares that it lacks by one capture takes nothing from the other.
        ([captured("export", "a"), captured("trace", "b"), captured("export", "b", UNSUPPORTED)], False),
        # One backend is no disagreement, whatever its captures give.
        ([captured("export", "a"), captured("trace", "a", WRONG)], False),
        ([captured("export", "a"), captured("trace", "a", WRONG), captured("export", "b")], True),
    ],
)
def test_joined_verdicts_disagree(records: list[Record], expected: bool) -> None:
    (row,) = rows(records)
    assert disagree(row) is expected


def test_the_index_joins_captures_and_says_by_which_of_them_backends_disagree() -> None:
    records = [
        captured("export", "a"),
        captured("trace", "a", WRONG),
        captured("export", "b"),
        captured("export", "c", UNSUPPORTED),
        captured("trace", "c", UNSUPPORTED),
    ]
    change = Change(Kind.REGRESSED, "a", records[1].subject.case, ())
    index = index_of(html.render(make_run(2, ("a", "b", "c", "d")), records, [change]))
    ((name, *_, disagreeing, places),) = index["rows"]
    assert name == row_name(records[0].subject)
    assert index["captures"] == ["export", "trace"]
    # `a` is wrong by trace alone, by which nobody else says anything.
    assert index["texts"][disagreeing] == [""]
    cells = [None if place < 0 else index["cells"][place] for place in places]
    native, wrong, unsupported = (
        [verdict for verdict, _ in index["verdicts"]].index(each) for each in (NATIVE, WRONG, UNSUPPORTED)
    )
    assert cells == [
        [1, ["export", native, 0, 0, ""], ["trace", wrong, 1, 0, "regressed"]],
        [0, ["export", native, 0, 0, ""]],
        [0, ["export", unsupported, 0, 0, ""], ["trace", unsupported, 0, 0, ""]],
        None,
    ]
