"""A comparison of two results files as text for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final

from conformance.diff import Change, Difference, Kind
from conformance.report import summary
from conformance.report.markdown import cell, table

MOST: Final = 50
MEANINGS: Final[Mapping[Kind, str]] = {
    Kind.INCOMPARABLE: "The two files ask something else; run both with the same specs.",
    Kind.REGRESSED: "The verdict is worse.",
    Kind.IMPROVED: "The verdict is better.",
    Kind.CHANGED: "The verdict is the same, and what led to it is not.",
    Kind.REMOVED: "Only in the first file.",
    Kind.ADDED: "Only in the second file.",
}


def headline(difference: Difference) -> str:
    """One line: how many cases of each kind, and how many are as they were."""
    counts = [f"{len(difference.of(kind))} {kind}" for kind in Kind]
    return f"{', '.join(counts)}, {difference.same} as before"


def text(difference: Difference) -> str:
    """Return the comparison as plain text, one case a line under its kind."""
    lines = [headline(difference), *_circumstances(difference)]
    for kind in Kind:
        changes = difference.of(kind)
        if changes:
            lines += ["", f"{kind}: {len(changes)}. {MEANINGS[kind]}"]
        lines += [f"  {change.case} on {change.backend}: {_shifts(change)}" for change in changes[:MOST]]
        lines += [f"  … and {len(changes) - MOST} more"] if len(changes) > MOST else []
    return "\n".join(lines) + "\n"


def markdown(difference: Difference) -> str:
    """Return the comparison as Markdown tables, short enough for a comment on a pull request."""
    sections = [f"## {headline(difference)}", *_circumstances(difference)]
    for kind in Kind:
        changes = difference.of(kind)
        rows = [[cell(change.case, 120), cell(change.backend, 48), cell(_shifts(change), 300)] for change in changes]
        if rows:
            sections += [f"### {kind}: {len(rows)}", MEANINGS[kind]]
            sections += [table(["case", "backend", "what"], rows[: MOST // 2], len(rows) - MOST // 2)]
    return "\n\n".join(sections) + "\n"


def as_json(difference: Difference) -> str:
    """Return the whole comparison as one JSON object."""
    return json.dumps(asdict(difference), indent=2, ensure_ascii=False) + "\n"


FORMATS: Final[Mapping[str, Callable[[Difference], str]]] = {"terminal": text, "markdown": markdown, "json": as_json}


def _circumstances(difference: Difference) -> list[str]:
    lines = [summary.one_line(each, 200) for each in (*difference.software, *difference.machine)]
    if difference.missing:
        lines.append(f"incomplete: {difference.missing} planned records of the second file are missing")
    return lines


def _shifts(change: Change) -> str:
    """What changed, such as `verdict native → wrong; sqnr_db 41 → 12`; a missing side is left out."""
    parts = [f"{each.what} {' → '.join(filter(None, (each.before, each.after)))}" for each in change.shifts]
    known = [f"known: {change.known}"] if change.known else []
    return "; ".join(parts + known)
