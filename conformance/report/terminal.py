"""Tables and short failure lines for a terminal of 80 columns or more."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.record import Record, Run, Verdict
from conformance.report import summary

WIDTH: Final = 80
MOST_FAILURES: Final = 20
MOST_REASONS: Final = 10
# Of more backends than this only one table is shown, a line for each.
FEW: Final = 4

# Long words are broken by hand: with every verdict present the table still fits into 80 columns.
HEADINGS: Final[Mapping[Verdict, str]] = {
    Verdict.FALLBACK: "fall-\nback",
    Verdict.WRONG: "wrong",
    Verdict.VACUOUS: "vacu-\nous",
    Verdict.CRASH: "crash",
    Verdict.TIMEOUT: "time-\nout",
    Verdict.UNSUPPORTED: "unsup-\nported",
    Verdict.ERROR: "error",
}

STYLES: Final[Mapping[Verdict, str]] = {
    Verdict.NATIVE: "green",
    Verdict.FALLBACK: "yellow",
    Verdict.WRONG: "bold red",
    Verdict.VACUOUS: "yellow",
    Verdict.CRASH: "bold magenta",
    Verdict.TIMEOUT: "magenta",
    Verdict.UNSUPPORTED: "bright_black",
    Verdict.ERROR: "cyan",
}


def render(run: Run, records: Sequence[Record]) -> str:
    """Return the report as plain text of at most 80 columns, without colours."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    print_to(console, run, records)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def print_to(console: Console, run: Run, records: Sequence[Record]) -> None:
    """Print the report in the width and with the colours of `console`."""
    if len(run.backends) > FEW:
        console.print(Text(f"{summary.total(records).score} native", style="bold"))
        console.print(_tallies("backend", summary.tally(records, summary.backend_of)), "", sep="\n")
        console.print(_backends_by_mode(run, records), "", sep="\n")
        _print_failing_families(console, records)
    for backend in run.backends if len(run.backends) <= FEW else ():
        own = [record for record in records if record.backend == backend]
        title = f"{summary.one_line(backend, 40)}: {summary.total(own).score} native"
        families = _tallies("family", summary.tally(own, summary.family_of))
        console.print(Text(title, style="bold"), families, "", _modes(own), "", sep="\n")
    _print_failures(console, summary.failures(records))
    _print_known(console, summary.known_failures(records))
    for line in summary.debts(run, records):
        console.print(Text(f"Known failures of {line}"))
    missing = summary.missing(run, records)
    if missing:
        console.print(Text(f"Incomplete: {missing} of {run.planned} planned records are missing.", style="bold red"))


def _tallies(heading: str, groups: Sequence[summary.Tally]) -> Table:
    """A row for each group and a total."""
    seen = [verdict for verdict in summary.verdicts_seen(groups) if verdict is not Verdict.NATIVE]
    known = sum(group.known for group in groups)
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        show_footer=True,
    )
    native = f"{sum(group.native for group in groups)} of {sum(group.scored for group in groups)}"
    table.add_column(heading, footer="total", overflow="fold")
    table.add_column("native", footer=native, justify="right", no_wrap=True)
    for verdict in seen:
        count = str(sum(group.counts.get(verdict, 0) for group in groups))
        table.add_column(HEADINGS[verdict], footer=count, justify="right", no_wrap=True, style=STYLES[verdict])
    if known:
        table.add_column("known", footer=str(known), justify="right", no_wrap=True)
    for group in groups:
        counts = [str(group.counts.get(verdict) or "·") for verdict in seen]
        extra = [str(group.known or "·")] if known else []
        table.add_row(Text(summary.one_line(group.label[0], WIDTH)), _count(group), *counts, *extra)
    return table


def _print_failing_families(console: Console, records: Sequence[Record]) -> None:
    """Where many backends fail: a line for each family, with how often each of them does."""
    counts = summary.failing(records, lambda record: (record.subject.family, record.backend))
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for (family,), _ in summary.failing(records, summary.family_of):
        shown = [f"{summary.one_line(backend, 40)} {count}" for (own, backend), count in counts if own == family]
        lines.add_row(Text(summary.one_line(family, 40)), Text(", ".join(shown)))
    if counts:
        console.print(Text("Unexpected failures by family", style="bold"), lines, "", sep="\n")


def _modes(records: Sequence[Record]) -> Table:
    """How many cases of one backend are native, by mode and capture."""
    grid = summary.by_mode_and_capture(records)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("mode", overflow="fold")
    for capture in (*grid.captures, "all captures"):
        table.add_column(Text(summary.one_line(capture, WIDTH)), justify="right", overflow="fold")
    for mode, groups in grid.rows:
        table.add_row(
            Text(summary.one_line(mode, WIDTH)), *("·" if group is None else _count(group) for group in groups)
        )
    return table


def _backends_by_mode(run: Run, records: Sequence[Record]) -> Table:
    """How many cases of each backend are native, by mode."""
    cells = {
        group.label: group for group in summary.tally(records, lambda record: (record.backend, record.subject.mode))
    }
    modes = sorted({mode for _, mode in cells})
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("native by mode", overflow="fold")
    for mode in modes:
        table.add_column(Text(summary.one_line(mode, WIDTH)), justify="right", overflow="fold")
    for backend in run.backends:
        counts = [_count(cells[backend, mode]) if (backend, mode) in cells else "·" for mode in modes]
        table.add_row(Text(summary.one_line(backend, WIDTH)), *counts)
    return table


def _count(group: summary.Tally) -> str:
    """Without the percentage, which stands above the table: the columns of all verdicts must fit beside it."""
    return f"{group.native} of {group.scored}"


def _print_failures(console: Console, failed: Sequence[Record]) -> None:
    if not failed:
        console.print("No unexpected failures.\n")
        return
    console.print(Text(f"Failures: {len(failed)}", style="bold"))
    lines = Table.grid(padding=(0, 1, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for record in failed[:MOST_FAILURES]:
        verdict = Text(f"{summary.GLYPHS[record.verdict]} {record.verdict}", style=STYLES[record.verdict])
        lines.add_row(verdict, Text(_line(record)))
    console.print(lines)
    if len(failed) > MOST_FAILURES:
        console.print(f"… and {len(failed) - MOST_FAILURES} more")
    console.print()


def _line(record: Record) -> str:
    """One failure in a few words: backend, case, and what its first failed check expected and got."""
    complaint = summary.complaint(record)
    short = summary.Complaint(
        summary.one_line(complaint.check, 24),
        summary.one_line(complaint.expected, 60),
        summary.one_line(complaint.got, 80),
        summary.one_line(complaint.lapsed, 80),
    )
    return f"{summary.one_line(record.subject.case, 120)} on {summary.one_line(record.backend, 24)}, {short}"


def _print_known(console: Console, groups: Sequence[summary.KnownFailures]) -> None:
    if not groups:
        return
    console.print(Text(f"Known failures: {sum(len(group.cases) for group in groups)}", style="bold"))
    lines = Table.grid(padding=(0, 1, 0, 0))
    lines.add_column(justify="right", no_wrap=True)
    lines.add_column(overflow="fold")
    for group in groups[:MOST_REASONS]:
        lines.add_row(str(len(group.cases)), Text(summary.one_line(group.reason, 160)))
    console.print(lines)
    if len(groups) > MOST_REASONS:
        console.print(f"… and {len(groups) - MOST_REASONS} more reasons")
