from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offered import offer
from synthetic_records import make_record, make_subject

from conformance import known_file
from conformance.errors import SpecError
from conformance.known import Known, apply, expected
from conformance.known_file import known_for, load_known, path_of, read_known
from conformance.matrix import short_text
from conformance.record import Debt, Record, Subject, Verdict
from conformance.yamltree import Scalar, Source

FILE = """\
# why this file is
- case: linear::huge_sum
  mode: static
  where: {bias: true, act: ["nn.ReLU()", nn.ReLU(inplace=True)], n: 3}
  verdict: wrong
  stage: judge
  reason: the bias is rounded to 16 bits
  link: https://example.org/issues/1
  versions: {torch: ">=2.13,<2.14"}
  expires: 2027-01-31
  since: 2026-01-31
- case: conv::grouped[static-export-groups=2]
  verdict: crash
  reason: no kernel for groups
"""
TODAY = datetime.date(2026, 11, 21)


def subject(case: str = "linear::huge_sum[static-export]", **parameters: str) -> Subject:
    spec, _, tail = case.partition("[")
    mode, capture = tail.rstrip("]").split("-")[:2]
    family, _, name = spec.partition("::")
    made = replace(make_subject(0), case=case, family=family, spec=name, mode=mode, capture=capture)
    return replace(made, parameters=parameters)


def record(
    case: str = "linear::huge_sum[static-export]",
    verdict: str = "wrong",
    stage: str | None = "judge",
    backend: str = "odd",
    **parameters: str,
) -> Record:
    made = make_record(subject(case, **parameters), verdict=Verdict(verdict))
    return replace(made, stage=stage, backend=backend)


def entry(**changes: object) -> Known:
    return Known.model_validate({"case": "linear::huge_sum", "verdict": "wrong", "reason": "rounds twice", **changes})


def mark(found: Record, entries: Sequence[Known], today: datetime.date = TODAY) -> Record:
    return apply(found, expected(entries, found.backend, {"odd": "1.2.3", "torch": "2.13.0+cpu"}, today))


def mistakes(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_known("odd.yaml", text)
    return [f"{each.line}:{each.column}: {each.message}" for each in caught.value.mistakes]


# ---- reading


def test_a_file_is_read() -> None:
    first, second = (each.known for each in read_known("odd.yaml", FILE).entries)
    assert (first.case, first.mode, first.capture) == ("linear::huge_sum", ("static",), None)
    assert dict(first.where) == {"bias": ("true",), "act": ("ReLU()", "ReLU(inplace=True)"), "n": ("3",)}
    assert (first.verdict, first.stage) == (Verdict.WRONG, "judge")
    assert (first.expires, first.since) == (datetime.date(2027, 1, 31), datetime.date(2026, 1, 31))
    assert first.text == "the bias is rounded to 16 bits (https://example.org/issues/1)"
    assert (second.verdict, second.stage, second.text) == (Verdict.CRASH, None, "no kernel for groups")


def test_each_entry_knows_its_place() -> None:
    places = [each.tree.source.mistake(each.tree.start, "") for each in read_known("odd.yaml", FILE).entries]
    assert [(place.line, place.column) for place in places] == [(2, 3), (12, 3)]


@pytest.mark.parametrize("text", ["", "[]", "# nothing yet\n", "\n  # none\n\n"])
def test_an_empty_file_and_a_missing_one_know_nothing(tmp_path: Path, text: str) -> None:
    assert read_known("odd.yaml", text).entries == ()
    assert load_known(tmp_path / "missing.yaml").entries == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {case: a::b, verdict: wrong}", "1:3: missing key 'reason': add what is missing"),
        ("- {case: a::b, verdict: wrong, reason: ''}", "1:40: expected at least 1 character, found text ''"),
        ("- {case: a::b, verdict: brash, reason: r}", "1:25: expected 'native', 'fallback', 'wrong'"),
        ("- {case: a::b, verdict: native, reason: r}", "1:25: expected the verdict of a failure, found 'native'"),
        ("- {case: a::b, verdict: wrong, reson: r}", "1:32: unknown key 'reson'. Did you mean 'reason'?"),
        ("- {case: a::b, mode: sttic, verdict: wrong, reason: r}", "1:22: expected 'static', 'dynamic'"),
        ("- {case: a::b, mode: [], verdict: wrong, reason: r}", "1:22: expected at least 1 in all"),
        ("- {case: a::b, expires: 2027-13-01, verdict: wrong, reason: r}", "1:25: expected a date such as 2027-01-31"),
        ("- {case: a::b, expires: 20270131, verdict: wrong, reason: r}", "1:25: expected a date such as 2027-01-31"),
        ("- {case: a::b, versions: {x: new}, verdict: wrong, reason: r}", "1:26: expected versions of x such as"),
        ("- {case: 'a::b[static-export]', mode: static, verdict: wrong, reason: r}", "1:3: the case's id says which"),
        ("case: a", "1:1: expected a list of known failures"),
        ("- just text", "1:3: expected a mapping with case, verdict and reason, found text 'just text'"),
        ("- {case: a", "the file is not valid YAML"),
        ("- {case: a::b, case: a::c, verdict: wrong, reason: r}", "1:16: key 'case' is given twice"),
        ("- !!python/object:os.system {}", "1:3: tag"),
    ],
)
def test_a_mistake_is_said_at_its_place(text: str, message: str) -> None:
    assert any(message in found for found in mistakes(text)), mistakes(text)


def test_all_mistakes_are_reported_at_once_in_order_with_their_lines() -> None:
    text = "- case: a::b\n  verdict: brash\n  reason: r\n- verdict: wrong\n  reson: r\n"
    found = mistakes(text)
    assert [each.partition(": ")[0] for each in found] == ["2:12", "4:3", "5:3"]
    with pytest.raises(SpecError, match=r"    2 \|   verdict: brash\n"):
        read_known("odd.yaml", text)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_bytes(b"- \xff")
    with pytest.raises(SpecError, match="expected UTF-8 text"):
        load_known(tmp_path / "odd.yaml")


@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=80))
def test_a_matrix_value_may_be_written_as_in_the_spec_and_as_in_the_id(value: str) -> None:
    shown = short_text(Scalar(Source("", value), 0, len(value), value, ()))
    for written in (value, shown):
        quoted = "'" + written.replace("'", "''") + "'"
        text = f"- {{case: a::b, where: {{act: {quoted}}}, verdict: wrong, reason: r}}"
        assert read_known("odd.yaml", text).entries[0].known.where["act"] == (shown,)


# ---- matching


@pytest.mark.parametrize(
    ("changes", "found", "matches"),
    [
        ({}, record(), True),
        ({"stage": "judge"}, record(), True),
        ({"stage": "lower"}, record(), False),
        ({}, record(stage="lower"), True),
        ({}, record(verdict="crash"), False),
        ({}, record("linear::huge_sums[static-export]"), False),
        ({"case": "linear::huge"}, record(), False),
        ({"case": "linear::huge_*"}, record(), False),
        ({"case": "linear::huge_sum[static-export]"}, record(), True),
        ({"case": "linear::huge_sum[static-trace]"}, record(), False),
        ({"case": "linear::huge_sum[static-*]"}, record(), False),
        ({"mode": "static", "capture": ["trace", "export"]}, record(), True),
        ({"mode": ["dynamic"]}, record(), False),
        ({"capture": "trace"}, record(), False),
        ({"where": {"bias": "true"}}, record(bias="true", n="1"), True),
        ({"where": {"bias": ["true", "false"], "n": "1"}}, record(bias="true", n="1"), True),
        ({"where": {"bias": "true", "n": "2"}}, record(bias="true", n="1"), False),
        ({"where": {"bias": "true"}}, record(), False),
        ({"target": "fast"}, record(backend="odd:fast"), True),
        ({"target": ["fast", "slow"]}, record(backend="odd:slow"), True),
        ({"target": "fast"}, record(backend="odd"), False),
        ({"target": "fast"}, record(backend="qlib"), True),
        ({"target": "reference"}, record(backend="qlib"), False),
        ({}, record(backend="odd:fast"), True),
        ({"versions": {"torch": ">=2.13,<2.14", "odd": "<2"}}, record(), True),
        ({"versions": {"torch": ">=2.13,<2.14", "odd": "<1"}}, record(), False),
        ({"versions": {"onnx": ">=0"}}, record(), False),
        ({"expires": "2026-11-21"}, record(), True),
        ({"expires": "2026-11-20"}, record(), False),
    ],
)
def test_a_known_failure_matches_whole_parameters_and_no_others(changes: dict, found: Record, matches: bool) -> None:
    known = entry(**changes)
    marked = mark(found, [known])
    assert marked.known == (known.text if matches else None)
    assert marked.failed is not matches


def test_a_known_failure_that_passes_fails_the_run() -> None:
    marked = mark(record(verdict="native", stage=None), [entry()])
    assert marked.known == "expected wrong: rounds twice"
    assert marked.unexpected_pass and marked.failed


def test_a_pass_after_the_entry_expired_is_a_pass() -> None:
    assert not mark(record(verdict="native", stage=None), [entry(expires="2026-01-01")]).failed


def test_a_failure_whose_entry_has_expired_says_so() -> None:
    marked = mark(record(), [entry(expires="2026-11-20")])
    assert marked.failed and marked.lapsed == "known until 2026-11-20: rounds twice"
    assert mark(record(verdict="crash"), [entry(expires="2026-11-20")]).lapsed is None


def test_another_failure_than_the_known_one_is_still_a_failure() -> None:
    marked = mark(record(verdict="timeout"), [entry()])
    assert marked.known is None and marked.failed


def test_the_entry_that_matches_counts_and_not_the_first_that_names_the_case() -> None:
    marked = mark(record(), [entry(verdict="crash", reason="dies"), entry(reason="rounds twice")])
    assert marked.known == "rounds twice"


def test_an_expected_fallback_is_no_pass() -> None:
    marked = mark(record(verdict="fallback"), [entry(verdict="fallback", reason="no kernel")])
    assert marked.known == "no kernel" and not marked.failed


def test_nothing_known_changes_nothing() -> None:
    assert mark(record(), []) == record()


def test_the_debt_counts_the_entries_of_the_target() -> None:
    entries = [
        entry(since="2026-03-01"),
        entry(expires="2026-01-01", since="2025-03-01"),
        entry(versions={"torch": "<2"}),
        entry(target="fast", since="2020-01-01"),
    ]
    versions = {"torch": "2.13.0"}
    assert expected(entries, "odd", versions, TODAY).debt == Debt("odd", 3, 1, 1, "2025-03-01")
    assert expected(entries, "odd:fast", versions, TODAY).debt == Debt("odd:fast", 4, 1, 1, "2020-01-01")


# ---- where the file is


def test_a_backend_with_a_target_shares_the_file_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "qlib.yaml").write_text(FILE)
    monkeypatch.setattr(known_file, "bundled_specs", lambda: tmp_path)
    assert len(known_for("qlib")) == len(known_for("qlib:reference")) == 2
    assert known_for("off-by-one") == ()


def test_a_backend_of_another_distribution_brings_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(tmp_path, monkeypatch)
    assert path_of("moody") == tmp_path / "expected" / "moody.yaml"
    assert known_for("moody") == ()
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "moody.yaml").write_text(FILE)
    assert len(known_for("moody:any")) == 2
    assert path_of("uninstalled") is None and known_for("uninstalled") == ()
