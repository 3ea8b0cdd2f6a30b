"""One self-contained HTML page with filters, a matrix of cases and backends, and a panel for each case."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from conformance.record import Measures, Record, Run, Subject
from conformance.report import summary

# A traceback says what it has to say at its two ends.
LONGEST_ERROR: Final = 4000


def render(run: Run, records: Sequence[Record]) -> str:
    """Return a page that needs no network and no other file; fragments such as `#verdict=wrong` link to a view."""
    here = files("conformance.report")
    script = "".join(here.joinpath(name).read_text(encoding="utf-8") for name in ("panel.js", "app.js"))
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template.filters["share"] = _segments
    page = template.from_string(here.joinpath("template.html.j2").read_text(encoding="utf-8"))
    return page.render(
        whole=summary.total(records),
        failed=len(summary.failures(records)),
        missing=summary.missing(run, records),
        facts=summary.facts(run),
        debts=summary.debts(run, records),
        backends=[_backend(name, records) for name in run.backends],
        order=summary.ORDER,
        glyphs=summary.GLYPHS,
        style=Markup(here.joinpath("style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        payload=Markup(embed(payload(run, records))),
    )


def _backend(name: str, records: Sequence[Record]) -> dict[str, Any]:
    own = [record for record in records if record.backend == name]
    return {"name": name, "whole": summary.total(own), "families": summary.tally(own, summary.family_of)}


def _segments(group: summary.Tally) -> list[tuple[str, int, str]]:
    """The parts of a bar as verdict, count and glyph; `error` has no part, because it is not scored."""
    seen = [verdict for verdict in summary.verdicts_seen([group]) if verdict != "error"]
    return [(str(verdict), group.counts[verdict], summary.GLYPHS[verdict]) for verdict in seen]


@dataclass
class Values:
    """JSON values, each kept once and named by its place: thousands of records share most of theirs."""

    rows: list[Any] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, value: Any) -> int:
        """Return the place of a value, which is added if it is new."""
        key = json.dumps(value)
        if key not in self.places:
            self.places[key] = len(self.rows)
            self.rows.append(value)
        return self.places[key]


def payload(run: Run, records: Sequence[Record]) -> dict[str, Any]:
    """Return the data of the page as plain JSON values.

    `values` holds every distinct value; `cases.rows` and `records.rows` hold places in it, in the order of
    `fields`. In a record `subject` is a row of `cases`, `findings` a list of places, `measures` the numbers
    themselves in the order of `measures`, and `seconds` the place of the steps' names followed by the numbers.
    """
    values = Values()
    cases: dict[str, int] = {}
    case_rows: list[list[int]] = []
    record_rows: list[list[Any]] = []
    for record in records:
        subject = record.subject
        if subject.case not in cases:
            cases[subject.case] = len(case_rows)
            case_rows.append([values.place(_plain(getattr(subject, key.name))) for key in fields(Subject)])
        record_rows.append(_row(record, cases[subject.case], values))
    return {
        "backends": list(run.backends),
        "verdicts": [[str(verdict), summary.GLYPHS[verdict]] for verdict in summary.ORDER],
        "measures": [key.name for key in fields(Measures)],
        "values": values.rows,
        "cases": {"fields": [key.name for key in fields(Subject)], "rows": case_rows},
        "records": {"fields": [key.name for key in fields(Record)], "rows": record_rows},
    }


def _row(record: Record, case: int, values: Values) -> list[Any]:
    """One record as a row; the columns that need their own form replace the place of their value."""
    special: dict[str, Any] = {
        "subject": case,
        "findings": [values.place([str(part) for part in astuple(finding)]) for finding in record.findings],
        "measures": [_number(number) for number in astuple(record.measures)],
        "seconds": [values.place(list(record.seconds)), *map(_number, record.seconds.values())],
        "error": values.place(_shortened(record.error)),
    }
    names = [key.name for key in fields(Record)]
    return [special[name] if name in special else values.place(_plain(getattr(record, name))) for name in names]


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _number(value: float | None) -> float | str | None:
    """Five significant digits; what JSON has no number for (an infinite SQNR) becomes text."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else str(value)


def _shortened(error: str | None) -> str | None:
    if error is None or len(error) <= LONGEST_ERROR:
        return error
    half = LONGEST_ERROR // 2
    return f"{error[:half]}\n[… {len(error) - 2 * half} characters left out …]\n{error[-half:]}"


def embed(data: Any) -> str:
    """Return JSON that may stand inside a script element: without `<`, no tag can end or open there."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
