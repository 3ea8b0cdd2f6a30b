"""Writing new entries into a file of known failures, without touching a byte of what stands there."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

from conformance.errors import UsageError
from conformance.known_file import KnownFile, read_known
from conformance.record import Record, Subject, Verdict
from conformance.report import summary
from conformance.yamltree import scalar_value

LONGEST_REASON = 300
_BARE = re.compile(r"[A-Za-z0-9_.]+(::[A-Za-z0-9_.]+)?")

# A name of an axis, such as "mode" or a name of the matrix (after a dot), to the values on it.
Box = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Group:
    """Cases of one spec that one entry can name, and one of their records; without a box, a case by its id."""

    record: Record
    box: Box | None
    count: int


def groups(failed: Sequence[Record], subjects: Sequence[Subject]) -> list[Group]:
    """Gather failures of one backend into as few entries as name these and no other of all cases.

    Failures are alike where spec, verdict and step are. Raises UsageError for a case that is not among `subjects`.
    """
    there = {subject.case for subject in subjects}
    alike: dict[tuple[str, str, Verdict, str | None], list[Record]] = {}
    for record in failed:
        subject = record.subject
        if subject.case not in there:
            raise UsageError(f"no case is named {subject.case!r} in the specs: name the specs of that run by --specs")
        alike.setdefault((subject.family, subject.spec, record.verdict, record.stage), []).append(record)
    found: list[Group] = []
    for (family, spec, _, _), records in alike.items():
        inside = {record.subject.case for record in records}
        own = [subject for subject in subjects if (subject.family, subject.spec) == (family, spec)]
        found += _cover(records, [subject for subject in own if subject.case not in inside])
    return found


def _cover(records: Sequence[Record], others: Sequence[Subject]) -> Iterator[Group]:
    """Boxes that hold the records' cases and none of the others: one if it can be, else split along an axis."""
    subjects = [record.subject for record in records]
    box = _box(subjects)
    for axis in list(box):
        smaller = {name: values for name, values in box.items() if name != axis}
        if not any(_holds(smaller, subject) for subject in others):
            box = smaller
    if len(records) == 1 and box:
        yield Group(records[0], None, 1)
    elif not any(_holds(box, subject) for subject in others) and all(all(values) for values in box.values()):
        yield Group(records[0], box, len(records))
    else:
        for part in min(_splits(records), key=lambda parts: _impure(parts, others)):
            yield from _cover(part, others)


def _axes(subject: Subject) -> dict[str, str]:
    return {
        "mode": subject.mode,
        "capture": subject.capture,
        **{f".{name}": text for name, text in subject.parameters.items()},
    }


def _box(subjects: Sequence[Subject]) -> Box:
    """The values of each axis; an empty text where a case has none, which no entry can say."""
    rows = [_axes(subject) for subject in subjects]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: tuple(dict.fromkeys(row.get(name, "") for row in rows)) for name in names}


def _holds(box: Box, subject: Subject) -> bool:
    values = _axes(subject)
    return all(values.get(name, "") in allowed for name, allowed in box.items())


def _splits(records: Sequence[Record]) -> Iterator[list[list[Record]]]:
    for axis, values in _box([record.subject for record in records]).items():
        if len(values) > 1:
            yield [[each for each in records if _axes(each.subject).get(axis, "") == value] for value in values]


def _impure(parts: Sequence[Sequence[Record]], others: Sequence[Subject]) -> int:
    boxes = [_box([record.subject for record in part]) for part in parts]
    return sum(any(_holds(box, subject) for subject in others) for box in boxes)


def entry_text(group: Group, reason: str | None, today: datetime.date) -> str:
    """One entry as YAML. The reason is the first failed finding unless one is given."""
    record, subject = replace(group.record, lapsed=None), group.record.subject
    target = record.backend.partition(":")[2]
    box = group.box or {}
    where = ", ".join(f"{name[1:]}: {_values(values)}" for name, values in box.items() if name.startswith("."))
    rows = {
        "case": _quoted(subject.case if group.box is None else f"{subject.family}::{subject.spec}"),
        "mode": _values(box.get("mode", ())),
        "capture": _values(box.get("capture", ())),
        "where": f"{{{where}}}" if where else "",
        "target": _quoted(target) if target else "",
        "verdict": str(record.verdict),
        "stage": _quoted(record.stage) if record.stage else "",
        "reason": _quoted(reason or summary.one_line(str(summary.complaint(record)), LONGEST_REASON)),
        "since": today.isoformat(),
    }
    return "- " + "\n  ".join(f"{key}: {text}" for key, text in rows.items() if text) + "\n"


def _values(values: Sequence[str]) -> str:
    texts = [_value(value) for value in values]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]" if texts else ""


def _value(text: str) -> str:
    """A matrix value: these are compared as text, so that a number that is written as itself needs no quotes."""
    bare = text in {"true", "false"} or (_BARE.fullmatch(text) and str(scalar_value(text)) == text)
    return text if bare else _quoted(text)


def _quoted(text: str) -> str:
    """The text as YAML, in quotes unless it is read as text without them."""
    if _BARE.fullmatch(text) and scalar_value(text) == text:
        return text
    return str(yaml.dump(text, default_style='"', allow_unicode=True, width=float("inf"))).rstrip("\n")


def appended(text: str, file: KnownFile, entries: Sequence[str]) -> str:
    """Return `text`, of which `file` was read, with entries added at its end in the indentation of its list.

    Raises UsageError where the list is written in brackets or the document is closed, so that nothing can follow.
    """
    root = file.root
    indentation = 0
    if root is not None:
        if file.source.text[root.start] == "[":
            raise UsageError(f"{file.source.path}: expected entries that start with '- ', found a list in brackets")
        indentation = root.start - file.source.text.rfind("\n", 0, root.start) - 1
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = [" " * indentation + line for entry in entries for line in entry.splitlines()]
    gap = "" if not text or text.endswith("\n") else newline
    whole = text + gap + "".join(line + newline for line in lines)
    if len(read_known(file.source.path, whole).entries) != len(file.entries) + len(entries):
        raise UsageError(f"{file.source.path}: entries can't be added at its end: remove what closes its list")
    return whole
