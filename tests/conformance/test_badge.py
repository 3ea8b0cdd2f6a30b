from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from report_pages import HOSTILE
from synthetic_records import make_record, make_run, make_subject

from conformance.record import Record, Verdict
from conformance.report import badge_json, badge_svg

SVG = "{http://www.w3.org/2000/svg}"


def records_of(*verdicts: Verdict, known: str | None = None) -> list[Record]:
    records = [make_record(make_subject(n), verdict=verdict) for n, verdict in enumerate(verdicts)]
    return [replace(r, known=known) if r.verdict is not Verdict.NATIVE else r for r in records]


@pytest.mark.parametrize(
    ("records", "message", "colour"),
    [
        (records_of(Verdict.NATIVE, Verdict.NATIVE), "2 of 2 native", "brightgreen"),
        (records_of(Verdict.NATIVE, Verdict.UNSUPPORTED), "1 of 1 native", "brightgreen"),
        (records_of(Verdict.NATIVE, Verdict.WRONG, known="a reason"), "1 of 2 native", "yellow"),
        (records_of(Verdict.NATIVE, Verdict.WRONG), "1 of 2 native", "red"),
        (records_of(Verdict.NATIVE, Verdict.ERROR), "1 of 1 native", "red"),
        (records_of(Verdict.NATIVE), "1 of 1 native, incomplete", "lightgrey"),
        ([], "0 of 0 native, incomplete", "lightgrey"),
    ],
)
def test_the_badge_says_how_many_are_native_and_its_colour_whether_anything_failed(
    records: list[Record], message: str, colour: str
) -> None:
    run = make_run(2, ("qlib",))
    drawn = json.loads(badge_json.render(run, records))
    assert drawn == {"schemaVersion": 1, "label": "conformance: qlib", "message": message, "color": colour}
    root = ET.fromstring(badge_svg.render(run, records))
    whole = f"conformance: qlib: {message}"
    assert (root.attrib["role"], root.attrib["aria-label"], root.findtext(f"{SVG}title")) == ("img", whole, whole)
    assert [text.text for text in root.iter(f"{SVG}text")] == ["conformance: qlib", message]


def test_of_several_backends_the_badge_names_none() -> None:
    assert json.loads(badge_json.render(make_run(0, ("a", "b")), []))["label"] == "conformance"


def test_parts_of_the_picture_stand_side_by_side() -> None:
    root = ET.fromstring(badge_svg.render(make_run(1, ("qlib",)), records_of(Verdict.NATIVE)))
    left, right = root.findall(f"{SVG}rect")
    assert float(left.attrib["width"]) == float(right.attrib["x"])
    assert float(right.attrib["x"]) + float(right.attrib["width"]) == float(root.attrib["width"])
    for rect, text in zip((left, right), root.iter(f"{SVG}text"), strict=True):
        inner = float(text.attrib["x"]) - float(rect.attrib["x"])
        assert inner > 0 and inner + float(text.attrib["textLength"]) < float(rect.attrib["width"])


def test_a_hostile_name_of_a_backend_stays_text() -> None:
    root = ET.fromstring(badge_svg.render(make_run(1, (HOSTILE,)), []))
    assert len(list(root.iter())) == 7
    assert json.loads(badge_json.render(make_run(1, (HOSTILE,)), []))["label"].startswith("conformance: </script>")
