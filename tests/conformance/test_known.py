from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_records import make_record, make_subject

from conformance import known as module
from conformance.errors import SpecError
from conformance.known import Known, apply, known_for, load_known
from conformance.record import Record, Verdict

FILE = """\
- case: linear::huge_*
  verdict: wrong
  stage: judge
  reason: the bias is rounded to 16 bits
  link: https://example.org/issues/1
- case: "conv::grouped[static-export-groups=?]"
  verdict: crash
  reason: no kernel for groups
"""


def record(
    case: str = "linear::huge_sum[static-export]", verdict: str = "wrong", stage: str | None = "judge"
) -> Record:
    made = make_record(replace(make_subject(0), case=case), verdict=Verdict(verdict))
    return replace(made, stage=stage, known=None)


def entry(**changes: str | None) -> Known:
    return Known.model_validate({"case": "linear::huge_*", "verdict": "wrong", "reason": "rounds twice", **changes})


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    first, second = load_known(file(tmp_path, FILE))
    assert (first.case, first.verdict, first.stage) == ("linear::huge_*", Verdict.WRONG, "judge")
    assert first.text == "the bias is rounded to 16 bits (https://example.org/issues/1)"
    assert (second.verdict, second.stage, second.text) == (Verdict.CRASH, None, "no kernel for groups")


@pytest.mark.parametrize("text", ["", "[]", "# nothing yet\n"])
def test_an_empty_file_and_a_missing_one_know_nothing(tmp_path: Path, text: str) -> None:
    assert load_known(file(tmp_path, text)) == ()
    assert load_known(tmp_path / "missing.yaml") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {case: a, verdict: wrong}", "reason"),
        ("- {case: a, verdict: wrong, reason: ''}", "reason"),
        ("- {case: '', verdict: wrong, reason: r}", "case"),
        ("- {case: a, verdict: broken, reason: r}", "verdict"),
        ("- {case: a, verdict: wrong, reason: r, because: x}", "because"),
        ("case: a", "list"),
        ("- just text", "list"),
    ],
)
def test_an_entry_without_a_reason_or_with_a_mistake_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        load_known(path)
    assert caught.value.mistakes[0].path == str(path)


@pytest.mark.parametrize("text", ["- {case: a", "- a: b: c", "- a\n- \x07", "- !!python/object:os.system {}"])
def test_what_is_no_safe_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match="not valid YAML"):
        load_known(file(tmp_path, text))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_known(file(tmp_path, "- {case: a, verdict: broken, reason: r}\n- {verdict: wrong, reason: r}\n"))
    assert len(caught.value.mistakes) == 2


def test_mistakes_stand_at_their_entry(tmp_path: Path) -> None:
    text = "# known\n- {case: a, verdict: wrong, reason: r}\n- case: b\n  verdict: broken\n  reason: r\n- {case: c, verdict: wrong}\n- x\n"
    with pytest.raises(SpecError) as caught:
        load_known(file(tmp_path, text))
    assert [(m.line, m.column) for m in caught.value.mistakes] == [(4, 3), (6, 3), (7, 3)]
    with pytest.raises(SpecError) as caught:
        load_known(file(tmp_path, "\ncase: a\n"))
    assert [(m.line, m.column) for m in caught.value.mistakes] == [(2, 1)]


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({}, record(), True),
        ({"stage": "judge"}, record(), True),
        ({"stage": "lower"}, record(), False),
        ({}, record(stage="lower"), True),
        ({}, record(verdict="crash"), False),
        ({}, record(verdict="fallback"), False),
        ({}, record("linear::small_sum[static-export]"), False),
        ({"case": "linear::huge_sum"}, record(), False),
        ({"case": "linear::huge_sum[[]static-export]"}, record(), False),
        ({"case": "linear::huge_sum[static-export]"}, record(), True),
        ({"case": "linear::huge_sum[static-*]"}, record(), True),
        ({"case": "LINEAR::*"}, record(), False),
    ],
)
def test_a_known_failure_matches_by_case_verdict_and_stage(changes: dict, found: Record, expected: bool) -> None:
    known = entry(**changes)
    assert known.matches(found) is expected
    marked = apply(found, [known])
    assert marked.known == (known.text if expected else None)
    assert marked.failed is not expected


def test_a_known_failure_that_passes_fails_the_run() -> None:
    marked = apply(record(verdict="native", stage=None), [entry()])
    assert marked.known == "expected wrong: rounds twice"
    assert marked.unexpected_pass and marked.failed


def test_another_failure_than_the_known_one_is_still_a_failure() -> None:
    marked = apply(record(verdict="timeout"), [entry()])
    assert marked.known is None and marked.failed


def test_the_entry_that_matches_counts_and_not_the_first_that_names_the_case() -> None:
    marked = apply(record(), [entry(verdict="crash", reason="dies"), entry(reason="rounds twice")])
    assert marked.known == "rounds twice"


def test_an_expected_fallback_is_no_pass() -> None:
    marked = apply(record(verdict="fallback"), [entry(verdict="fallback", reason="no kernel")])
    assert marked.known == "no kernel" and not marked.failed


@given(st.text(alphabet="abc[]*?-=(),{}:", min_size=1, max_size=30))
def test_a_case_id_names_itself_when_it_holds_no_pattern(case: str) -> None:
    known = entry(case=case)
    assert known.names(record(case))
    if not set("*?") & set(case):
        assert not known.names(record(case + "x"))


def test_nothing_known_changes_nothing() -> None:
    assert apply(record(), []) == record()


def test_a_backend_with_a_target_shares_the_file_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "odd.yaml").write_text(FILE)
    monkeypatch.setattr(module, "bundled_specs", lambda: tmp_path)
    assert len(known_for("odd")) == len(known_for("odd:fast")) == 2
    assert known_for("even") == ()
