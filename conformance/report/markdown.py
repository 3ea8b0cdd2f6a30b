"""Markdown tables, always short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tabulate import tabulate

from conformance.record import Record, Run, Verdict
from conformance.report import summary
from conformance.report.layers import decibels, story, title

# With these limits the longest possible report stays below the 60 000 bytes of a pull-request comment.
MOST_FAMILIES: Final = 40
MOST_COMBINATIONS: Final = 40
MOST_FAILURES: Final = 25
MOST_REASONS: Final = 15
MOST_BACKENDS: Final = 20
MOST_LAYERED: Final = 15
LONGEST: Final = 120
LABEL: Final = 48
FACT: Final = 300


def render(run: Run, records: Sequence[Record]) -> str:
    """Return the report in GitHub's Markdown, less than 60 000 bytes whatever the number of records."""
    missing = summary.missing(run, records)
    failed = summary.failures(records)
    known = summary.known_failures(records)
    layered = _layered(records)
    sections = [
        f"## Conformance: {summary.total(records).score} native",
        f"**Incomplete:** {missing} of {run.planned} planned records are missing." if missing else "",
        " · ".join(f"{label} {_code(value, FACT)}" for label, value in summary.facts(run)),
        "### By backend",
        _tallies(("backend",), summary.tally(records, summary.backend_of), MOST_BACKENDS),
        "### Families with failures" if failed else "",
        _failing_families(records),
        "### By mode and capture",
        _tallies(("backend", "mode", "capture"), summary.tally(records, _backend_mode_capture), MOST_COMBINATIONS),
        "### Layers" if layered else "",
        _layers(layered),
        f"### Failures: {len(failed)}",
        _failures(failed),
        f"### Known failures: {sum(len(group.cases) for group in known)}" if known else "",
        _known(known),
        " · ".join(_code(line, FACT) for line in summary.debts(run, records)[:MOST_BACKENDS]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _backend_and_family(record: Record) -> summary.Label:
    return summary.backend_of(record) + summary.family_of(record)


def _backend_mode_capture(record: Record) -> summary.Label:
    return summary.backend_of(record) + summary.mode_and_capture_of(record)


def _failing_families(records: Sequence[Record]) -> str:
    """Of each backend only the families in which something failed, most failures first."""
    scores = {group.label: group.score for group in summary.tally(records, _backend_and_family)}
    counts = summary.failing(records, _backend_and_family)
    rows = [
        [*(cell(part, LABEL) for part in label), str(count), scores[label]] for label, count in counts[:MOST_FAMILIES]
    ]
    return table(["backend", "family", "unexpected failures", "native"], rows, len(counts) - len(rows))


def _tallies(names: Sequence[str], tallies: Sequence[summary.Tally], most: int) -> str:
    seen = [verdict for verdict in summary.verdicts_seen(tallies) if verdict is not Verdict.NATIVE]
    rows = [
        [*(cell(part, LABEL) for part in group.label), group.score]
        + [str(group.counts.get(verdict, 0)) for verdict in seen]
        + [str(group.known)]
        for group in tallies[:most]
    ]
    return table([*names, "native", *seen, "known"], rows, len(tallies) - len(rows))


def _failures(failed: Sequence[Record]) -> str:
    rows = []
    for record in failed[:MOST_FAILURES]:
        complaint = summary.complaint(record)
        texts = (complaint.check, complaint.expected, "; ".join(filter(None, (complaint.lapsed, complaint.got))))
        verdict = f"{summary.GLYPHS[record.verdict]} {record.verdict}"
        subject = [cell(record.subject.case, LONGEST), cell(record.backend, LABEL)]
        rows.append([verdict, *subject, *(cell(text, LONGEST) for text in texts)])
    return table(["verdict", "case", "backend", "check", "expected", "got"], rows, len(failed) - len(rows))


def _lowest(record: Record) -> float:
    return min(layer.sqnr_db for layer in record.layers)


def _layered(records: Sequence[Record]) -> list[Record]:
    """The records that tell their layers, noisiest first; of a spec's captures and parameters the noisiest alone."""
    found: dict[summary.Label, Record] = {}
    for record in sorted((record for record in records if record.layers), key=_lowest):
        subject = record.subject
        found.setdefault((record.backend, subject.family, subject.spec, subject.mode), record)
    return list(found.values())


def _layers(records: Sequence[Record]) -> str:
    """Where the error of each case comes from."""
    rows = []
    for record in records[:MOST_LAYERED]:
        told = story(record.layers)
        worst = min(record.layers, key=lambda layer: layer.sqnr_db)
        places = [None if place is None else record.layers[place] for place in (told.dropped, told.parted)]
        rows.append(
            [cell(record.subject.case, LONGEST), cell(record.backend, LABEL), str(len(record.layers))]
            + [f"{decibels(worst.sqnr_db)} dB", cell(worst.tensor, LABEL)]
            + ["none" if layer is None else cell(title(layer), LONGEST) for layer in places]
        )
    heads = ["case", "backend", "layers", "lowest SQNR", "at", "largest drop", "debug and final part"]
    return table(heads, rows, len(records) - len(rows))


def _known(groups: Sequence[summary.KnownFailures]) -> str:
    rows = [
        [cell(group.reason, FACT), str(len(group.cases)), cell(group.cases[0], LONGEST)]
        for group in groups[:MOST_REASONS]
    ]
    return table(["reason", "records", "for example"], rows, len(groups) - len(rows))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], cut: int) -> str:
    """A table, nothing where there are no rows, and a line for the rows that were cut."""
    if not rows:
        return ""
    drawn = tabulate(rows, headers=headings, tablefmt="github", disable_numparse=True)
    # Padding shows only in the source, and would let one long cell multiply by the number of rows.
    heading, _, *body = [re.sub(r" {2,}", " ", line) for line in drawn.splitlines()]
    lines = [heading, "|---" * len(headings) + "|", *body]
    return "\n".join(lines) + (f"\n\n… and {cut} more" if cut > 0 else "")


def cell(text: str, limit: int) -> str:
    """`_code` for a table, where a bar would start the next column."""
    return _code(text.replace("|", "\\|"), limit)


def _code(text: str, limit: int) -> str:
    """A foreign text as a code span, so that no markup and no mention of a user comes out of it.

    `limit` counts bytes of UTF-8, as the limit of a comment does.
    """
    line = summary.one_line(text, limit).replace("`", "'").encode(errors="replace")
    shown = line.decode() if len(line) <= limit else line[:limit].decode(errors="ignore") + "…"
    return f"`{shown}`" if shown else ""
