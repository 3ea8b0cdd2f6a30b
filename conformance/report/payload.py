"""The data of the HTML page: a small index that the matrix is drawn from, and everything else, packed."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, Final

from conformance.diff import Change
from conformance.record import Declared, Layer, Measures, Record, Run, Subject
from conformance.report import summary
from conformance.report.coverage import Asked, asked, capabilities, coverage, lacks, properties
from conformance.report.disagreement import disagree
from conformance.report.layers import story
from conformance.report.rows import Cell, row_name, rows

# A traceback says what it has to say at its two ends, and so does what a library prints.
LONGEST_ERROR: Final = 4000
# What a row of the index says after its name; the texts are places in `texts`.
ROW_TEXTS: Final = ("family", "mode", "dtype", "why")

Changes = Mapping[tuple[str, str], Change]


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


def index(run: Run, records: Sequence[Record], changes: Changes) -> dict[str, Any]:
    """Return what the matrix and its filters need, as plain JSON values.

    A row is its name, the places of `ROW_TEXTS` in `texts`, the place there of the captures by which backends disagree
    (an empty name for all together), and for each backend the place in `cells`, -1 where it has no record. A cell is
    which of its parts leads, then the parts: capture, place of the verdict, failed, known, kind of change.
    """
    texts, cells = Values(), Values()
    found: list[list[Any]] = []
    for row in rows(records):
        named = [texts.place(getattr(row.subject, name)) for name in ROW_TEXTS]
        views = {"": row, **{capture: row.by(capture) for capture in row.captures}}
        disagreeing = texts.place([name for name, view in views.items() if disagree(view)])
        own = map(row.cells.get, run.backends)
        places = [-1 if cell is None else cells.place(_parts(cell, changes)) for cell in own]
        found.append([row.name, *named, disagreeing, places])
    return {
        "backends": list(run.backends),
        "captures": sorted({record.subject.capture for record in records}),
        "verdicts": [[str(verdict), summary.GLYPHS[verdict]] for verdict in summary.ORDER],
        "texts": texts.rows,
        "cells": cells.rows,
        "rows": found,
    }


def _parts(cell: Cell, changes: Changes) -> list[Any]:
    """One cell of the index, its parts in the order of their captures."""
    parts: list[list[Any]] = []
    for capture, record in sorted(cell.records.items()):
        change = changes.get((record.backend, record.subject.case))
        flags = (int(record.failed), int(record.known is not None), str(change.kind) if change else "")
        parts.append([capture, summary.ORDER.index(record.verdict), *flags])
    return [sorted(cell.records).index(cell.leading.subject.capture), *parts]


def details(run: Run, records: Sequence[Record], changes: Changes) -> dict[str, Any]:
    """Return the data of the panels as plain JSON values.

    `values` holds every distinct value; `cases.rows` and `records.rows` hold places in it, in the order of `fields`;
    `cases.owners` says of each case which row of the index it is part of. In a record `subject` is a row of `cases`,
    `findings` a list of places, `measures` the numbers themselves in the order of `measures`, and `seconds` the place
    of the steps' names followed by the numbers.
    `layers` is the place of None, or of what `story` says of them and a row for each in the order of `layers`.
    `change` is the place of None, or of the kind of change and its shifts. `pages` has an entry for each backend.
    """
    values = Values()
    places = {row.name: place for place, row in enumerate(rows(records))}
    owners: list[int] = []
    cases: dict[str, int] = {}
    case_rows: list[list[int]] = []
    record_rows: list[list[Any]] = []
    own: dict[str, list[Record]] = {name: [] for name in run.backends}
    for record in records:
        own.setdefault(record.backend, []).append(record)
        subject = record.subject
        if subject.case not in cases:
            cases[subject.case] = len(case_rows)
            owners.append(places[row_name(subject)])
            case_rows.append([values.place(_plain(getattr(subject, key.name))) for key in fields(Subject)])
        change = changes.get((record.backend, subject.case))
        record_rows.append([*_row(record, cases[subject.case], values), values.place(_changed(change))])
    everything = asked(records)
    return {
        "measures": [key.name for key in fields(Measures)],
        "layers": [key.name for key in fields(Layer)],
        "values": values.rows,
        "cases": {"fields": [key.name for key in fields(Subject)], "rows": case_rows, "owners": owners},
        "records": {"fields": [*(key.name for key in fields(Record)), "change"], "rows": record_rows},
        "pages": {name: page(run, name, own[name], everything) for name in run.backends},
    }


def _row(record: Record, case: int, values: Values) -> list[Any]:
    """One record as a row; the columns that need their own form replace the place of their value."""
    special: dict[str, Any] = {
        "subject": case,
        "findings": [values.place([f.check, f.outcome, f.expected, f.got]) for f in record.findings],
        "measures": [_number(getattr(record.measures, key.name)) for key in fields(Measures)],
        "seconds": [values.place(list(record.seconds)), *map(_number, record.seconds.values())],
        "error": values.place(_shortened(record.error)),
        "stderr": values.place(_shortened(record.stderr)),
        "layers": values.place(_layers(record.layers)),
    }
    names = [key.name for key in fields(Record)]
    return [special[name] if name in special else values.place(_plain(getattr(record, name))) for name in names]


def _layers(layers: Sequence[Layer]) -> dict[str, Any] | None:
    if not layers:
        return None
    return {**asdict(story(layers)), "rows": [list(layer.to_json().values()) for layer in layers]}


def _changed(change: Change | None) -> list[Any] | None:
    return None if change is None else [change.kind, [[each.what, each.before, each.after] for each in change.shifts]]


def page(run: Run, backend: str, own: Sequence[Record], asked: Asked) -> dict[str, Any]:
    """Return what the page shows of one backend: declared and shown, properties, known failures, coverage.

    `own` are its records, and `asked` is what those of all backends expect.
    """
    said = run.declared.get(backend, Declared())
    covered = coverage(own, asked)
    known = summary.known_failures(own)
    grid = summary.by_mode_and_capture(own)
    return {
        "versions": dict(said.versions),
        "missing": list(said.missing),
        "score": summary.total(own).score,
        "grid": [
            list(grid.captures),
            [[mode, [group and [group.native, group.scored] for group in groups]] for mode, groups in grid.rows],
        ],
        "capabilities": [[*astuple(each), each.verdict] for each in capabilities(said, own)],
        "lacks": [list(astuple(each)) for each in lacks(said, own)],
        "properties": [[*astuple(each), each.contradicted] for each in properties(said, own)],
        "known": [[group.reason, len(group.cases), group.cases[0]] for group in known],
        "debts": [line for line in summary.debts(run, own) if line.startswith(f"{backend}: ")],
        "columns": [list(column) for column in covered.columns],
        "coverage": [[name, cells] for name, cells in covered.rows],
        "never_asked": covered.never_asked(),
        "never_native": covered.never_native(),
    }


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
    return _compact(data).replace("<", "\\u003c")


def pack(data: Any) -> str:
    """Return JSON deflated (RFC 1951, with the zlib header of RFC 1950) and in base64, for what is read later."""
    return base64.b64encode(zlib.compress(_compact(data).encode(), 9)).decode()


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)
