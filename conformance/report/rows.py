"""Rows of a matrix: a case over all its captures, and what each backend made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conformance.record import Record, Subject, Verdict
from conformance.report.summary import URGENCY


@dataclass(frozen=True)
class Cell:
    """What one backend made of a row: its records by capture, at least one."""

    records: Mapping[str, Record]

    @property
    def leading(self) -> Record:
        """The record that speaks for the cell: the most urgent, and one that is `unsupported` only where all are."""
        return min(self.records.values(), key=_precedence)


@dataclass(frozen=True)
class Row:
    """A case without its capture; `cells` has the backends with a record of it, at least one."""

    name: str
    cells: Mapping[str, Cell]

    @property
    def subject(self) -> Subject:
        """What a record of the row is about; only id, capture and fingerprint differ within it."""
        return next(iter(self.cells.values())).leading.subject

    @property
    def captures(self) -> list[str]:
        """The captures that any backend has a record of."""
        return sorted({capture for cell in self.cells.values() for capture in cell.records})

    def by(self, capture: str) -> Row:
        """Return the row as one capture alone gives it; `capture` is one of its own."""
        found = {name: cell.records.get(capture) for name, cell in self.cells.items()}
        return Row(self.name, {name: Cell({capture: record}) for name, record in found.items() if record is not None})


def rows(records: Sequence[Record]) -> list[Row]:
    """Join the records of cases that differ in their capture alone, in order of their first records."""
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for record in records:
        cells = found.setdefault(row_name(record.subject), {})
        cells.setdefault(record.backend, {})[record.subject.capture] = record
    return [Row(name, {backend: Cell(own) for backend, own in cells.items()}) for name, cells in found.items()]


def row_name(subject: Subject) -> str:
    """Return a case's id without its capture, such as `suite::spec[mode-key=value]`."""
    return subject.case.replace(f"[{subject.mode}-{subject.capture}", f"[{subject.mode}", 1)


def _precedence(record: Record) -> tuple[bool, int, bool]:
    return record.verdict is Verdict.UNSUPPORTED, URGENCY[record.verdict], not record.failed
