"""Counts, scores and failures of a run: what every report format shows, computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from conformance.record import Outcome, Record, Run, Verdict

# Verdicts in the order of columns and bars: the good one first, `error` last because it is never part of a score.
ORDER: Final = (
    Verdict.NATIVE,
    Verdict.FALLBACK,
    Verdict.WRONG,
    Verdict.VACUOUS,
    Verdict.CRASH,
    Verdict.TIMEOUT,
    Verdict.UNSUPPORTED,
    Verdict.ERROR,
)

# A sign beside the word, so that colour is never the only difference.
GLYPHS: Final[Mapping[Verdict, str]] = {
    Verdict.NATIVE: "✓",
    Verdict.FALLBACK: "~",
    Verdict.WRONG: "✗",
    Verdict.VACUOUS: "○",
    Verdict.CRASH: "!",
    Verdict.TIMEOUT: "∞",
    Verdict.UNSUPPORTED: "–",
    Verdict.ERROR: "?",
}

# Failures are listed by how much they ask for attention: lists get cut, and a wrong integer must not be cut first.
URGENCY: Final[Mapping[Verdict, int]] = {
    Verdict.WRONG: 0,
    Verdict.CRASH: 1,
    Verdict.TIMEOUT: 2,
    Verdict.VACUOUS: 3,
    Verdict.ERROR: 4,
    Verdict.FALLBACK: 5,
    Verdict.UNSUPPORTED: 6,
    Verdict.NATIVE: 7,
}

SEED_RULE: Final = "sha256 of suite, spec and parameters"

Label = tuple[str, ...]


@dataclass(frozen=True)
class Tally:
    """How the records of one group ended; `known` counts the known failures among them."""

    label: Label
    counts: Mapping[Verdict, int]
    known: int

    @property
    def native(self) -> int:
        """The n of "n of m"."""
        return self.counts.get(Verdict.NATIVE, 0)

    @property
    def scored(self) -> int:
        """The m of "n of m": all records but `error` and what the backend declared that it lacks."""
        return sum(self.counts.values()) - self.errors - self.counts.get(Verdict.UNSUPPORTED, 0)

    @property
    def errors(self) -> int:
        """Records that say nothing about the backend."""
        return self.counts.get(Verdict.ERROR, 0)

    @property
    def score(self) -> str:
        """The score as text, such as "47 of 50 (94 %)"."""
        return share(self.native, self.scored)


@dataclass(frozen=True)
class KnownFailures:
    """The known failures that share one reason."""

    reason: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Complaint:
    """Why a record is no success, in one line: the check or step, what it expected and what it got.

    `lapsed` says until when it was a known failure, empty where it was none.
    """

    check: str
    expected: str
    got: str
    lapsed: str = ""

    def __str__(self) -> str:
        found = f"expected {self.expected}, got {self.got}" if self.expected else self.got
        return f"{self.check}: {found}" + (f"; {self.lapsed}" if self.lapsed else "")


def share(part: int, whole: int) -> str:
    """Say how many of how many, such as "47 of 50 (94 %)"; rounded down, so that 100 % means all of them."""
    if whole == 0:
        return "0 of 0"
    percent = 100 * part // whole
    shown = "< 1" if part and not percent else str(percent)
    return f"{part} of {whole} ({shown} %)"


def backend_of(record: Record) -> Label:
    """Key of `tally`: the backend."""
    return (record.backend,)


def family_of(record: Record) -> Label:
    """Key of `tally`: the operator family."""
    return (record.subject.family,)


def mode_of(record: Record) -> Label:
    """Key of `tally`: the mode."""
    return (record.subject.mode,)


def mode_and_capture_of(record: Record) -> Label:
    """Key of `tally`: mode and capture."""
    return (record.subject.mode, record.subject.capture)


def tally(records: Sequence[Record], key: Callable[[Record], Label]) -> list[Tally]:
    """Count the verdicts of each group, groups in order of their labels."""
    groups: dict[Label, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return [total(groups[label], label) for label in sorted(groups)]


def total(records: Sequence[Record], label: Label = ("total",)) -> Tally:
    """Count the verdicts of all records as one group."""
    counts = Counter(record.verdict for record in records)
    return Tally(label, dict(counts), sum(is_known_failure(record) for record in records))


@dataclass(frozen=True)
class Grid:
    """Counts by mode and capture: a row for each mode, a tally for each of `captures` (None: no case) and for all."""

    captures: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tally | None, ...]], ...]


def by_mode_and_capture(records: Sequence[Record]) -> Grid:
    """Count the records of each mode, by capture and together."""
    cells = {group.label: group for group in tally(records, mode_and_capture_of)}
    captures = tuple(sorted({capture for _, capture in cells}))
    rows = tuple(
        (mode.label[0], (*(cells.get((*mode.label, capture)) for capture in captures), mode))
        for mode in tally(records, mode_of)
    )
    return Grid(captures, rows)


def failing(records: Sequence[Record], key: Callable[[Record], Label]) -> list[tuple[Label, int]]:
    """List the groups that have records which count against the run, with how many, the most first."""
    counts = Counter(key(record) for record in records if record.failed)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def verdicts_seen(tallies: Sequence[Tally]) -> list[Verdict]:
    """List the verdicts that need a column: those with any count, in display order."""
    return [verdict for verdict in ORDER if any(group.counts.get(verdict) for group in tallies)]


def is_known_failure(record: Record) -> bool:
    """Tell whether the record failed as a known failure said it would."""
    return record.known is not None and record.verdict is not Verdict.NATIVE


def failures(records: Sequence[Record]) -> list[Record]:
    """List the records that count against the run, the most urgent verdicts first."""
    failed = (record for record in records if record.failed)
    return sorted(failed, key=lambda r: (URGENCY[r.verdict], r.backend, r.subject.family, r.subject.case))


def known_failures(records: Sequence[Record]) -> list[KnownFailures]:
    """Group the known failures by reason, the most frequent reason first."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record.known is not None and is_known_failure(record):
            reasons.setdefault(record.known, []).append(record.subject.case)
    groups = [KnownFailures(reason, tuple(cases)) for reason, cases in reasons.items()]
    return sorted(groups, key=lambda group: (-len(group.cases), group.reason))


def debts(run: Run, records: Sequence[Record]) -> list[str]:
    """Say of each backend that has known failures how many entries list them, how many cases that covers, how old."""
    lines = []
    for debt in run.debt:
        covered = sum(is_known_failure(record) for record in records if record.backend == debt.backend)
        entries = "1 entry covers" if debt.entries == 1 else f"{debt.entries} entries cover"
        parts = [
            f"{debt.backend}: {entries} {covered} case{'' if covered == 1 else 's'}",
            f"the oldest of {debt.oldest}" if debt.oldest else "",
            f"{debt.expired} expired" if debt.expired else "",
            f"{debt.elsewhere} for other versions" if debt.elsewhere else "",
        ]
        lines += [", ".join(filter(None, parts))] if debt.entries else []
    return lines


def complaint(record: Record) -> Complaint:
    """Say in one line why a record is no success: its first finding that did not hold, else the end of its error."""
    if record.unexpected_pass:
        return Complaint("known", f"to fail ({record.known})", "a pass; remove it from the known failures")
    for finding in record.findings:
        if finding.outcome is not Outcome.HELD:
            return Complaint(finding.check, finding.expected, finding.got, record.lapsed or "")
    lines = [line for line in (record.error or "").splitlines() if line.strip()]
    last = lines[-1] if lines else f"{record.verdict}, nothing was reported"
    return Complaint(record.stage or "run", "", last, record.lapsed or "")


def missing(run: Run, records: Sequence[Record]) -> int:
    """Count the records that an interrupted run still owes; a run that did not know its length owes none."""
    return max(0, run.planned - len(records))


def facts(run: Run) -> list[tuple[str, str]]:
    """List what a reader needs to judge or repeat the run, as pairs of label and value."""
    environment = run.environment
    packages = dict(environment.packages)
    torch = packages.pop("torch", "not recorded")
    others = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    rows = [
        ("torch", torch),
        ("Python", environment.python),
        ("CPU", environment.cpu),
        ("instruction set", environment.isa),
        ("platform", environment.platform),
        ("suite", environment.suite),
        ("shard", run.shard or ""),
        ("seed", SEED_RULE),
        ("started", run.started),
        ("packages", others),
        ("command", run.command),
    ]
    return [(label, value) for label, value in rows if value]


def one_line(text: str, limit: int) -> str:
    """Put a text on one line of at most `limit` characters, without control characters."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
