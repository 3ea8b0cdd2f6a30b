from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from synthetic_records import make_record, make_records, make_run, make_subject

from conformance.diff import RANK, Change, Kind, Shift, compare
from conformance.errors import UsageError
from conformance.record import Finding, Measures, Outcome, Record, Verdict
from conformance.report import difference
from conformance.store import Results

SUBJECT = replace(make_subject(0), fingerprint="f" * 16)
BEFORE = make_record(SUBJECT)


def results(*records: Record, planned: int = 0) -> Results:
    return Results(replace(make_run(1, ("qlib",)), planned=planned), records)


def change(before: Record, after: Record) -> Change | None:
    found = compare(results(before), results(after))
    assert found.same + len(found.changes) == 1
    return found.changes[0] if found.changes else None


def measured(**numbers: float | None) -> Record:
    return replace(BEFORE, measures=replace(Measures(40.0, 0.1, 1.0, 0.0, 78, 2, 0), **numbers))


def test_equal_records_are_as_before_whatever_their_seconds() -> None:
    assert change(BEFORE, replace(BEFORE, seconds={"run": 100.0}, notes=("x",))) is None


@pytest.mark.parametrize("better", range(len(RANK) - 1))
def test_every_worse_verdict_is_a_regression(better: int) -> None:
    good, bad = (replace(BEFORE, verdict=RANK[index]) for index in (better, better + 1))
    down, up = change(good, bad), change(bad, good)
    assert down is not None and up is not None
    assert (down.kind, up.kind) == (Kind.REGRESSED, Kind.IMPROVED)
    assert down.shifts == (Shift("verdict", str(good.verdict), str(bad.verdict)),)
    assert down.counts and not up.counts


def test_every_verdict_has_a_rank() -> None:
    assert set(RANK) == set(Verdict)


def test_a_regression_that_the_second_file_knows_does_not_count() -> None:
    found = change(BEFORE, replace(BEFORE, verdict=Verdict.WRONG, known="declared"))
    assert found is not None
    assert (found.kind, found.known, found.counts) == (Kind.REGRESSED, "declared", False)


@pytest.mark.parametrize(
    ("numbers", "shift"),
    [
        ({"sqnr_db": 39.0}, None),
        ({"sqnr_db": 41.0}, None),
        ({"sqnr_db": 38.9}, Shift("sqnr_db", "40", "38.9")),
        ({"sqnr_db": 41.1}, Shift("sqnr_db", "40", "41.1")),
        ({"sqnr_db": None}, Shift("sqnr_db", "40", "none")),
        ({"max_quanta": 1.001}, None),
        ({"max_quanta": 2.0}, Shift("max_quanta", "1", "2")),
        ({"debug_quanta": 1.0}, Shift("debug_quanta", "0", "1")),
        ({"wrong": 1}, Shift("wrong", "0", "1")),
        ({"tie": 3, "exact": 77, "max_abs": 0.2}, None),
    ],
)
def test_measures_that_moved_are_a_change_of_no_verdict(numbers: dict[str, float | None], shift: Shift | None) -> None:
    found = change(measured(), measured(**numbers))
    assert (found and (found.kind, found.shifts)) == (shift and (Kind.CHANGED, (shift,)))


def test_operators_steps_and_checks_are_compared() -> None:
    one = replace(BEFORE, executed_ops={"a": 1, "b": 2})
    found = change(one, replace(one, executed_ops={"b": 1, "c": 1}))
    assert found is not None and found.shifts == (Shift("a", "1", "0"), Shift("b", "2", "1"), Shift("c", "0", "1"))
    wrong = replace(BEFORE, verdict=Verdict.WRONG, stage="judge")
    other = replace(wrong, stage="lower", findings=(Finding("ops", Outcome.FAILED, "a", "b"),))
    found = change(wrong, other)
    assert found is not None and found.kind is Kind.CHANGED
    assert found.shifts == (Shift("step", "judge", "lower"), Shift("failed checks", "none", "ops"))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda subject: replace(subject, fingerprint="0" * 16), ["version of the case"]),
        (lambda subject: replace(subject, fingerprint=""), ["version of the case"]),
        (lambda subject: replace(subject, seed=1), ["seed"]),
        (lambda subject: replace(subject, seed=1, fingerprint="1"), ["version of the case", "seed"]),
    ],
)
def test_cases_that_ask_something_else_are_not_compared(spoil: Callable, what: list[str]) -> None:
    other = replace(BEFORE, subject=spoil(SUBJECT), verdict=Verdict.CRASH)
    for found in (change(BEFORE, other), change(other, BEFORE)):
        assert found is not None and found.kind is Kind.INCOMPARABLE
        assert [shift.what for shift in found.shifts] == what


def test_files_without_fingerprints_are_incomparable_even_when_equal() -> None:
    old = replace(BEFORE, subject=replace(SUBJECT, fingerprint=""))
    found = change(old, old)
    assert found is not None and found.kind is Kind.INCOMPARABLE


def test_a_moved_spec_is_comparable() -> None:
    assert change(BEFORE, replace(BEFORE, subject=replace(SUBJECT, line=99, path="x", why="y", yaml="z"))) is None


def test_added_removed_and_missing_ones() -> None:
    other = make_record(replace(make_subject(1), fingerprint="e"))
    third = make_record(replace(make_subject(2), fingerprint="d"))
    found = compare(results(BEFORE, other), results(BEFORE, third, planned=5))
    assert [(each.kind, each.case) for each in found.changes] == [
        (Kind.REMOVED, other.subject.case),
        (Kind.ADDED, third.subject.case),
    ]
    assert (found.same, found.missing) == (1, 3)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UsageError, match="none in common"):
        compare(results(BEFORE), results(replace(BEFORE, backend="other")))


def test_other_versions_and_machines_are_listed_and_no_obstacle() -> None:
    one, other = results(BEFORE), results(BEFORE)
    environment = replace(other.run.environment, cpu="Other CPU", packages={"torch": "2.14.0"})
    found = compare(one, replace(other, run=replace(other.run, environment=environment)))
    assert "package: torch 2.13.0, now 2.14.0" in found.software
    assert found.machine == ("machine: CPU Example CPU @ 2.40 GHz, now Other CPU",)
    assert found.changes == ()


def big() -> tuple[Results, Results]:
    records = [replace(each, subject=replace(each.subject, fingerprint="f")) for each in make_records(600, ("qlib",))]
    worse = [replace(each, verdict=Verdict.CRASH) for each in records]
    return results(*records), results(*worse)


@pytest.mark.parametrize("name", difference.FORMATS)
def test_each_format_says_what_changed(name: str) -> None:
    found = compare(results(BEFORE), results(replace(BEFORE, verdict=Verdict.WRONG, known="a | reason")))
    shown = difference.FORMATS[name](found)
    for text in (SUBJECT.case, "qlib", "regressed", "native", "wrong", "reason"):
        assert text in shown, text


def test_long_comparisons_are_cut_where_people_read_them_and_whole_in_json() -> None:
    found = compare(*big())
    count = len(found.of(Kind.REGRESSED))
    assert count > 500
    assert len(difference.FORMATS["markdown"](found).encode()) < 60_000
    for name in ("terminal", "markdown"):
        assert f"… and {count - (50 if name == 'terminal' else 25)} more" in difference.FORMATS[name](found)
    assert len(json.loads(difference.FORMATS["json"](found))["changes"]) == len(found.changes)


def test_no_change_is_one_line() -> None:
    shown = difference.text(compare(results(BEFORE), results(BEFORE)))
    assert shown == "0 incomparable, 0 regressed, 0 improved, 0 changed, 0 removed, 0 added, 1 as before\n"
