from __future__ import annotations

import html as entities
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import HOSTILE, details_of, hostile_record, index_of
from synthetic_records import TWELVE, make_record, make_records, make_run, make_subject

from conformance.diff import Change, Kind, Shift
from conformance.record import Measures, Record, Subject, Verdict
from conformance.report import html, summary
from conformance.report.rows import row_name

REPORT = Path(html.__file__).parent


@pytest.fixture(scope="module")
def many() -> list[Record]:
    return make_records(60)


def test_html_is_small_enough_for_2000_cases_on_12_backends() -> None:
    page = html.render(make_run(2000, TWELVE), make_records(2000, TWELVE))
    assert len(page.encode()) < 4_000_000


def test_html_loads_nothing() -> None:
    page = html.render(make_run(1), [make_record(make_subject(0))])
    # The only fragments of an address are `#...` links; a policy forbids the rest to any browser.
    assert {value[0] for value in re.findall(r'(?:href|src|action|srcset)="([^"]*)"', page)} == {"#"}
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|\beval\(", page)
    assert "default-src 'none'" in page


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80).map(lambda text: HOSTILE + text))
def test_html_lets_no_foreign_text_out_of_its_place(text: str) -> None:
    record = hostile_record(text)
    record = replace(record, subject=replace(record.subject, family=text), backend=text)
    page = html.render(make_run(1, (text,)), [record])
    assert "<img" not in page
    assert page.count("</script") == page.count("<script") == 3
    assert entities.unescape(page).count("<img") > 0
    assert any("<img" in str(value) for value in details_of(page)["values"])


def rebuilt(page: str) -> list[dict[str, object]]:
    """The records as `to_json` gives them, read back from the page as its script does."""
    raw = details_of(page)
    values, cases, records = raw["values"], raw["cases"], raw["records"]
    assert isinstance(values, list) and isinstance(cases, dict) and isinstance(records, dict)
    found = []
    for row in records["rows"]:
        data = dict(zip(records["fields"], row, strict=True))
        subject = [values[place] for place in cases["rows"][data["subject"]]]
        findings = [values[place] for place in data["findings"]]
        steps, *seconds = data["seconds"]
        special = {
            "subject": dict(zip(cases["fields"], subject, strict=True)),
            "findings": [dict(zip(("check", "outcome", "expected", "got"), row, strict=True)) for row in findings],
            "measures": dict(zip(raw["measures"], data["measures"], strict=True)),  # type: ignore[call-overload]
            "seconds": dict(zip(values[steps], seconds, strict=True)),
            "layers": [
                dict(zip(raw["layers"], layer, strict=True))  # type: ignore[call-overload]
                for layer in (values[data["layers"]] or {"rows": []})["rows"]
            ],
        }
        plain = {name: values[place] for name, place in data.items() if name not in special}
        found.append(plain | special)
    return found


def test_html_holds_every_record_whole(many: list[Record]) -> None:
    for record, data in zip(many, rebuilt(html.render(make_run(60), many)), strict=True):
        assert data.pop("change") is None
        back = Record.from_json(data)
        assert back.seconds == pytest.approx(record.seconds, rel=1e-4)
        for name in ("sqnr_db", "max_abs", "max_quanta", "debug_quanta", "exact", "tie", "wrong"):
            expected = getattr(record.measures, name)
            assert getattr(back.measures, name) == (expected and pytest.approx(expected, rel=1e-4))
        assert replace(back, seconds={}, measures=Measures()) == replace(record, seconds={}, measures=Measures())


def test_html_shows_an_infinite_sqnr_and_cuts_an_endless_error() -> None:
    record = make_record(make_subject(0), verdict=Verdict.CRASH)
    record = replace(record, measures=Measures(sqnr_db=float("inf")), error="begin" + "x" * 10**6 + "end")
    data = rebuilt(html.render(make_run(1), [record]))[0]
    assert data["measures"]["sqnr_db"] == "inf"  # type: ignore[index]
    error = str(data["error"])
    assert len(error) < 5000 and error.startswith("begin") and error.endswith("end")


def test_html_tells_the_families_without_javascript(many: list[Record]) -> None:
    page = html.render(make_run(60), many)
    table = re.search(r"<noscript>(.*?)</noscript>", page, re.S)
    assert table is not None
    for group in summary.tally(many, lambda record: (record.backend, record.subject.family)):
        backend, family = group.label
        assert f'<td>{backend}</td><th scope="row">{family}</th><td>{group.score}</td>' in table[1]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_html_colours_are_readable(scheme: int) -> None:
    """Contrast of at least 4.5, by the formula of WCAG 2.2, section 1.4.3."""
    block = re.findall(r":root \{(.*?)\}", (REPORT / "style.css").read_text(encoding="utf-8"), re.S)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    inks = {"text", "quiet", "link", *map(str, Verdict)}
    pairs = [(ink, ground) for ink in inks for ground in ("ground", "raised")] + [("text", "mark")]
    for ink, ground in pairs:
        dark, light = sorted((luminance(colours[ink]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_the_index_says_how_each_case_ended_on_each_backend(many: list[Record]) -> None:
    index = index_of(html.render(make_run(60), many))
    by_key = {(row_name(record.subject), record.backend): record for record in many}
    assert len(index["rows"]) == 60
    for name, *texts, _, places in index["rows"]:
        assert len(places) == len(index["backends"])
        for backend, place in zip(index["backends"], places, strict=True):
            record = by_key[name, backend]
            lead, (capture, verdict, failed, known, change) = index["cells"][place]
            assert (lead, capture, index["verdicts"][verdict][0]) == (0, record.subject.capture, record.verdict)
            assert (bool(failed), bool(known), change) == (record.failed, record.known is not None, "")
            subject = record.subject
            told = [subject.family, subject.mode, subject.dtype, subject.why]
            assert [index["texts"][text] for text in texts] == told


def test_a_case_that_a_backend_has_no_record_of_is_told_as_not_run() -> None:
    index = index_of(html.render(make_run(1, ("qlib", "other")), [make_record(make_subject(0))]))
    assert [row[-1] for row in index["rows"]] == [[0, -1]]


def test_changes_from_an_earlier_run_are_in_index_and_details() -> None:
    record = make_record(make_subject(0), verdict=Verdict.WRONG)
    change = Change(Kind.REGRESSED, "qlib", record.subject.case, (Shift("verdict", "native", "wrong"),))
    elsewhere = replace(change, backend="other")
    page = html.render(make_run(1, ("qlib",)), [record], [change, elsewhere])
    assert index_of(page)["cells"] == [[0, ["export", 2, 1, 0, "regressed"]]]
    assert rebuilt(page)[0]["change"] == ["regressed", [["verdict", "native", "wrong"]]]


def test_subjects_of_the_page_are_the_fields_of_subject() -> None:
    page = html.render(make_run(1), [make_record(make_subject(0))])
    assert details_of(page)["cases"]["fields"] == [field.name for field in fields(Subject)]


def test_what_a_library_prints_without_end_is_cut() -> None:
    record = replace(make_record(make_subject(0), verdict=Verdict.CRASH), stderr="begin" + "x" * 10**6 + "end")
    stderr = str(rebuilt(html.render(make_run(1), [record]))[0]["stderr"])
    assert len(stderr) < 5000 and stderr.startswith("begin") and stderr.endswith("end")
