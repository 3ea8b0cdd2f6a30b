from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
from small_specs import LINEAR, cases_of
from synthetic_records import make_record

from conformance.known_file import read_known
from conformance.known_lint import Evidence, mistakes_in
from conformance.record import Record, Subject, Verdict, subject_of

SUBJECTS = tuple(subject_of(case) for case in cases_of(LINEAR))
TODAY = datetime.date(2026, 11, 21)
WRONG = "verdict: wrong, reason: r"


def found(text: str, **evidence: object) -> list[str]:
    mistakes = mistakes_in(read_known("odd.yaml", text), Evidence(SUBJECTS, TODAY, **evidence))
    assert all(each.text in text.splitlines() for each in mistakes)
    return [f"{each.line}:{each.column}: {each.message}" for each in mistakes]


def record(subject: Subject, verdict: str = "wrong", backend: str = "odd") -> Record:
    made = make_record(subject, verdict=Verdict(verdict))
    return replace(made, backend=backend, stage=None if verdict == "native" else "judge")


@pytest.mark.parametrize(
    "entry",
    [
        "case: small::linear",
        "case: small::linear_relu, where: {bias: [true, false]}, capture: [trace, export], mode: static",
        "case: 'small::linear_relu[static-trace-bias=true]', expires: 2026-11-21",
        "case: small::linear, target: fast",
    ],
)
def test_entries_that_are_right(entry: str) -> None:
    assert found(f"- {{{entry}, {WRONG}}}") == []


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("case: small::liner", "1:10: no spec is named 'small::liner'. Did you mean 'small::linear'?"),
        ("case: linear_relu", "1:10: no spec is named 'linear_relu'. Did you mean 'small::linear_relu'?"),
        ("case: 'small::lin*'", "1:10: no spec is named 'small::lin*'."),
        (
            "case: 'small::linear_relu[static-trace-bias=treu]'",
            "1:10: no case is named 'small::linear_relu[static-trace-bias=treu]'. "
            "Did you mean 'small::linear_relu[static-trace-bias=true]'?",
        ),
        ("case: small::linear, mode: qat", "1:31: no case of small::linear has mode 'qat', only dynamic, static."),
        ("case: small::linear, capture: trace", "1:34: no case of small::linear has capture 'trace', only export."),
        (
            "case: small::linear_relu, where: {bais: true}",
            "1:38: small::linear_relu has no matrix value 'bais'. Did you mean 'bias'?",
        ),
        ("case: small::linear, where: {n: 1}", "1:33: small::linear has no matrix value 'n'. It has none."),
        (
            "case: small::linear_relu, where: {bias: 1}",
            "1:44: no case of small::linear_relu has where.bias '1', only false, true.",
        ),
        (
            "case: small::linear, expires: 2026-11-20",
            "1:34: expired on 2026-11-20: look at it again, then remove it or give it a later date",
        ),
    ],
)
def test_entries_that_name_nothing_or_have_expired(entry: str, mistake: str) -> None:
    (only,) = found(f"- {{{entry}, {WRONG}}}")
    assert only.startswith(mistake)


def test_values_that_never_meet() -> None:
    text = LINEAR.replace("bias: [true, false]}", "bias: [true, false], n: [1, 2], exclude: [{bias: true, n: 2}]}")
    subjects = tuple(subject_of(case) for case in cases_of(text.replace("30, 20, bias", "30, ${n}, bias")))
    file = read_known("odd.yaml", f"- {{case: small::linear_relu, where: {{bias: true, n: 2}}, {WRONG}}}")
    (mistake,) = mistakes_in(file, Evidence(subjects, TODAY))
    assert mistake.message == "no case of small::linear_relu has all of these values: remove one"


def test_every_mistake_of_a_file_is_found_in_order() -> None:
    text = f"- {{case: a::b, expires: 2020-01-01, {WRONG}}}\n- {{case: small::linear, mode: qat, {WRONG}}}\n"
    assert [each.split(":")[:2] for each in found(text)] == [["1", "10"], ["1", "25"], ["2", "31"]]


def test_versions_that_the_backend_does_not_say() -> None:
    text = f"- {{case: small::linear, versions: {{trch: '<2', torch: '<2'}}, {WRONG}}}"
    (mistake,) = found(text, versions={"odd": {"torch": "2.13.0"}})
    assert mistake.startswith("1:36: backend 'odd' says no version of 'trch', only torch 2.13.0: it can't hold.")
    assert mistake.endswith("Did you mean 'torch'?")


LINEARS = [subject for subject in SUBJECTS if subject.spec == "linear"]


@pytest.mark.parametrize(
    ("records", "mistake"),
    [
        ([], None),
        ([record(each) for each in LINEARS], None),
        ([record(LINEARS[0])], None),
        ([record(LINEARS[0]), record(LINEARS[1], "error")], None),
        (
            [record(each, "native") for each in LINEARS],
            "1:3: stale: none of the 2 cases run is wrong in judge, such as ",
        ),
        ([record(each, "crash") for each in LINEARS], "[static-export] on odd is crash in judge: remove it, or say"),
        (
            [record(LINEARS[0]), record(LINEARS[1], "native")],
            "1:3: stale in part: 1 of the 2 cases run differ, such as ",
        ),
        ([record(each, "native") for each in SUBJECTS if each.spec != "linear"], None),
    ],
)
def test_entries_that_are_not_true_any_more(records: list[Record], mistake: str | None) -> None:
    mistakes = found("- {case: small::linear, verdict: wrong, stage: judge, reason: r}", records=records)
    assert (mistakes == []) if mistake is None else (len(mistakes) == 1 and mistake in mistakes[0])


def test_an_entry_is_held_against_its_own_target_and_versions_only() -> None:
    records = [record(each, "native", "odd:fast") for each in LINEARS]
    versions = {"odd:fast": {"torch": "2.13.0"}}
    assert found(f"- {{case: small::linear, target: slow, {WRONG}}}", records=records, versions=versions) == []
    assert (
        found(f"- {{case: small::linear, versions: {{torch: '<2'}}, {WRONG}}}", records=records, versions=versions)
        == []
    )
    assert len(found(f"- {{case: small::linear, {WRONG}}}", records=records, versions=versions)) == 1
