"""How large a record may be: a backend that says very much must exhaust neither the memory nor the results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from conformance.record import Finding, Record

Value = TypeVar("Value")

# Of a text, the beginning and the end are kept: of a traceback, say, which ends with what went wrong.
HEAD, TAIL = 3000, 3000
# Of a name, of the entries of a table, and of a list.
NAME, ENTRIES = 200, 500


def short(text: str) -> str:
    """The text, or its beginning and its end with the number of characters between them that are left out."""
    left = len(text) - HEAD - TAIL
    return text if left <= 0 else f"{text[:HEAD]}\n[{left} characters are left out]\n{text[-TAIL:]}"


def bounded(record: Record) -> Record:
    """The record with long texts and tables cut; its notes say which tables were."""
    cut = [
        f"{what}: the first {ENTRIES} of {len(values)} entries are kept"
        for what, values in (
            ("executed operators", record.executed_ops),
            ("float operators", record.float_ops),
            ("native operators", record.native_ops),
            ("layers", record.layers),
            ("notes", record.notes),
        )
        if len(values) > ENTRIES
    ]
    return replace(
        record,
        findings=tuple(Finding(f.check, f.outcome, short(f.expected), short(f.got)) for f in record.findings),
        error=None if record.error is None else short(record.error),
        executed_ops=_few(record.executed_ops),
        float_ops=_few(record.float_ops),
        native_ops=_few(record.native_ops),
        seconds=_few(record.seconds),
        properties={name: text[:NAME] for name, text in _few(record.properties).items()},
        histogram=_few(record.histogram),
        notes=(*map(short, record.notes[:ENTRIES]), *cut),
        layers=record.layers[:ENTRIES],
    )


def _few(table: Mapping[str, Value]) -> dict[str, Value]:
    return dict(_first(table))


def _first(table: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    for number, (name, value) in enumerate(table.items()):
        if number == ENTRIES:
            return
        yield name if len(name) <= NAME else f"{name[:NAME]}...", value
