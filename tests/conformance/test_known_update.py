from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_records import make_record, make_subject

from conformance.errors import UsageError
from conformance.known import Known
from conformance.known_file import read_known
from conformance.known_update import appended, entry_text, groups
from conformance.record import Finding, Outcome, Record, Subject, Verdict

TODAY = datetime.date(2026, 11, 21)
BIASES, NUMBERS = ("true", "false"), ("1", "2", "nn.ReLU(a, b): #x")


def subject(mode: str, capture: str, bias: str, n: str, spec: str = "relu") -> Subject:
    case = f"linear::{spec}[{mode}-{capture}-bias={bias}-n={n}]"
    made = replace(make_subject(0), case=case, family="linear", spec=spec, mode=mode, capture=capture)
    return replace(made, parameters={"bias": bias, "n": n})


SUBJECTS = [subject(*row) for row in product(("static", "dynamic"), ("export", "trace"), BIASES, NUMBERS[:2])]


def failure(of: Subject, verdict: str = "wrong", stage: str | None = "judge", backend: str = "odd") -> Record:
    return replace(make_record(of, verdict=Verdict(verdict)), stage=stage, backend=backend)


def entries(failed: Sequence[Record], subjects: Sequence[Subject] = SUBJECTS) -> list[Known]:
    text = "".join(entry_text(group, None, TODAY) for group in groups(failed, subjects))
    return [entry.known for entry in read_known("odd.yaml", text).entries]


@given(st.sets(st.integers(0, len(SUBJECTS) - 1), min_size=1))
def test_entries_name_what_failed_and_nothing_else(chosen: set[int]) -> None:
    failed = [failure(SUBJECTS[index]) for index in sorted(chosen)]
    known = entries(failed)
    named = {subject.case for subject in SUBJECTS for entry in known if entry.names(subject, "odd")}
    assert named == {record.subject.case for record in failed}
    assert len(known) <= len(failed)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (lambda each: True, {"case": "linear::relu"}),
        (lambda each: each.mode == "static", {"case": "linear::relu", "mode": ("static",)}),
        (
            lambda each: each.capture == "trace" and each.parameters["bias"] == "true",
            {"case": "linear::relu", "capture": ("trace",), "where": {"bias": ("true",)}},
        ),
    ],
)
def test_failures_that_are_alike_become_one_entry(keep: object, expected: dict[str, object]) -> None:
    (known,) = entries([failure(each) for each in SUBJECTS if keep(each)])  # type: ignore[operator]
    said = {name: getattr(known, name) for name in known.model_fields_set - {"reason"}}
    assert {**said, "where": dict(known.where)} == {
        "where": {},
        **expected,
        "verdict": Verdict.WRONG,
        "stage": "judge",
        "since": TODAY,
    }


def test_a_single_case_is_named_by_its_id() -> None:
    (known,) = entries([failure(SUBJECTS[3])])
    assert known.case == SUBJECTS[3].case


def test_failures_that_differ_stay_apart() -> None:
    known = entries([failure(each, "crash" if each.mode == "static" else "wrong") for each in SUBJECTS])
    assert [(entry.mode, entry.verdict) for entry in known] == [(("static",), "crash"), (("dynamic",), "wrong")]
    assert len(entries([failure(each, stage=each.capture) for each in SUBJECTS])) == 2


def test_two_boxes_and_no_more_than_they_need() -> None:
    chosen = [each for each in SUBJECTS if each.mode == "static" or each.parameters["n"] == "2"]
    assert len(entries([failure(each) for each in chosen])) == 2


def test_cases_that_were_not_run_are_not_named() -> None:
    """A run of the static cases only says nothing of the dynamic ones."""
    (known,) = entries([failure(each) for each in SUBJECTS if each.mode == "static"])
    assert not any(known.names(each, "odd") for each in SUBJECTS if each.mode == "dynamic")


def test_values_of_one_axis_that_some_cases_lack() -> None:
    bare = replace(SUBJECTS[0], case="linear::relu[static-export]", parameters={})
    other = replace(SUBJECTS[0], case="linear::relu[static-trace]", capture="trace", parameters={})
    (known,) = entries([failure(bare)], [*SUBJECTS, bare, other])
    assert known.case == bare.case


@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1, max_size=40))
def test_any_matrix_value_is_written_so_that_it_is_read(value: str) -> None:
    value = value.replace("[", "(").replace("]", ")").replace("nn.", "")
    odd = [
        subject("static", capture, bias, n) for capture in ("export", "trace") for bias in BIASES for n in (value, "0z")
    ]
    failed = [failure(each) for each in odd if each.parameters["n"] == value]
    (known,) = entries(failed, odd)
    assert [each for each in odd if known.names(each, "odd")] == [record.subject for record in failed]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_reason_is_written_so_that_it_is_read(reason: str) -> None:
    text = entry_text(groups([failure(SUBJECTS[0])], SUBJECTS)[0], reason, TODAY)
    assert read_known("odd.yaml", text).entries[0].known.reason == reason


def test_the_reason_is_the_first_failed_finding_and_the_target_is_kept() -> None:
    found = (Finding("ops", Outcome.HELD, "a", "a"), Finding("accuracy", Outcome.FAILED, "30 dB: or more", "11 dB"))
    (known,) = entries([replace(failure(SUBJECTS[0], backend="odd:fast"), findings=found)])
    assert (known.reason, known.target) == ("accuracy: expected 30 dB: or more, got 11 dB", ("fast",))


def test_a_case_of_other_specs_is_refused() -> None:
    with pytest.raises(UsageError, match="--specs"):
        groups([failure(subject("static", "export", "true", "9"))], SUBJECTS)


# ---- text

ENTRY = "- case: a::b\n  verdict: wrong\n  reason: r\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        ENTRY,
        ENTRY.rstrip("\n"),
        f"# first\n\n{ENTRY}  # about the entry\n# at the end\n\n",
        ENTRY.replace("\n", "\r\n"),
        "  " + ENTRY.replace("\n", "\n  ").rstrip(" "),
        "\ufeff" + ENTRY,
        ENTRY.replace("reason: r\n", "reason: |\n    two\n    lines\n"),
        ENTRY.replace("reason: r\n", "reason: |+\n    kept\n\n\n"),
        "- {case: a::b, verdict: wrong, reason: r}\n",
    ],
)
def test_what_stands_in_a_file_stays_byte_for_byte(text: str) -> None:
    file = read_known("odd.yaml", text)
    whole = appended(text, file, [ENTRY, ENTRY.replace("a::b", "c::d")])
    assert whole.startswith(text)
    added = [entry.known for entry in read_known("odd.yaml", whole).entries]
    assert added[:-2] == [entry.known for entry in file.entries]
    assert [known.case for known in added[-2:]] == ["a::b", "c::d"]
    if "\r\n" in text:
        assert whole.count("\n") == whole.count("\r\n")


@pytest.mark.parametrize("text", ["[]", "[{case: a::b, verdict: wrong, reason: r}]\n"])
def test_a_list_in_brackets_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="brackets"):
        appended(text, read_known("odd.yaml", text), [ENTRY])
