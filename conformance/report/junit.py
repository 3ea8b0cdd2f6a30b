"""JUnit XML (xunit2) for the dashboards of continuous integration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from xml.etree import ElementTree as ET

from conformance.record import Record, Run, Verdict
from conformance.report import summary

# What a dashboard makes of each verdict; None is a success. A known failure is skipped, whatever its verdict.
ELEMENTS: Final[Mapping[Verdict, str | None]] = {
    Verdict.NATIVE: None,
    Verdict.FALLBACK: "failure",
    Verdict.WRONG: "failure",
    Verdict.VACUOUS: "failure",
    Verdict.CRASH: "error",
    Verdict.TIMEOUT: "error",
    Verdict.ERROR: "error",
    Verdict.UNSUPPORTED: "skipped",
}

# Everything outside the production Char of XML 1.0.
FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(run: Run, records: Sequence[Record]) -> str:
    """Return a `testsuites` document with one `testsuite` for each operator family."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record.subject.family, []).append(record)
    root = ET.Element("testsuites", {"name": "conformance", **_totals(records)})
    for family in sorted(families):
        members = families[family]
        attributes = {"name": _safe(family), **_totals(members), "timestamp": _safe(run.started)}
        suite = ET.SubElement(root, "testsuite", {**attributes, "skipped": str(_count(members, "skipped"))})
        _add_properties(suite, run)
        for record in members:
            _add_case(suite, record)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _element(record: Record) -> str | None:
    if record.unexpected_pass:
        return "failure"
    return "skipped" if summary.is_known_failure(record) else ELEMENTS[record.verdict]


def _count(records: Sequence[Record], element: str) -> int:
    return sum(_element(record) == element for record in records)


def _totals(records: Sequence[Record]) -> dict[str, str]:
    return {
        "tests": str(len(records)),
        "failures": str(_count(records, "failure")),
        "errors": str(_count(records, "error")),
        "time": f"{sum(sum(record.seconds.values()) for record in records):.6f}",
    }


def _add_properties(suite: ET.Element, run: Run) -> None:
    properties = ET.SubElement(suite, "properties")
    for label, value in summary.facts(run):
        ET.SubElement(properties, "property", {"name": label, "value": _safe(value)})


def _add_case(suite: ET.Element, record: Record) -> None:
    subject = record.subject
    attributes = {
        "classname": _safe(f"{record.backend}.{subject.family}"),
        "name": _safe(subject.case),
        "time": f"{sum(record.seconds.values()):.6f}",
    }
    case = ET.SubElement(suite, "testcase", attributes)
    element = _element(record)
    if element is None:
        return
    message = summary.one_line(str(summary.complaint(record)), 500)
    if summary.is_known_failure(record):
        message = summary.one_line(f"known failure ({record.verdict}): {record.known}", 500)
    outcome = ET.SubElement(case, element, {"message": _safe(message), "type": str(record.verdict)})
    outcome.text = _safe(_details(record))


def _details(record: Record) -> str:
    """The text behind the message: place, every finding, and the error as it was reported."""
    subject = record.subject
    lines = [f"{subject.path}:{subject.line}", f"why: {subject.why}"]
    lines += [f"{f.check}: {f.outcome}, expected {f.expected}, got {f.got}" for f in record.findings]
    return "\n".join(lines + ([record.error] if record.error else []))


def _safe(text: str) -> str:
    """The text with what XML can't hold replaced by U+FFFD."""
    return FORBIDDEN.sub("\ufffd", text)
