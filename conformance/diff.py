"""What changed from one results file to another, case by case; refuses to compare cases that ask something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from conformance.errors import UsageError
from conformance.record import Outcome, Record, Run, Verdict
from conformance.sameness import machine_differences, software_differences
from conformance.store import Results


class Kind(StrEnum):
    """How a case changed, the most urgent first."""

    INCOMPARABLE = "incomparable"
    REGRESSED = "regressed"
    IMPROVED = "improved"
    CHANGED = "changed"
    REMOVED = "removed"
    ADDED = "added"


# From good to bad: a declared lack is worth less than a right result, and more than a broken promise.
RANK: Final = (
    Verdict.NATIVE,
    Verdict.FALLBACK,
    Verdict.UNSUPPORTED,
    Verdict.VACUOUS,
    Verdict.WRONG,
    Verdict.TIMEOUT,
    Verdict.CRASH,
    Verdict.ERROR,
)

# Measures that are compared, and how far each may move without being mentioned. Seconds and ties are not: they differ
# from machine to machine.
TOLERANCES: Final[Mapping[str, float]] = {"sqnr_db": 1.0, "max_quanta": 0.01, "debug_quanta": 0.01, "wrong": 0.0}


@dataclass(frozen=True)
class Shift:
    """One thing of a case that is not what it was, in short texts."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Change:
    """One case on one backend that is not as it was; `known` is the reason that the later file expects it for."""

    kind: Kind
    backend: str
    case: str
    shifts: tuple[Shift, ...]
    known: str | None = None

    @property
    def counts(self) -> bool:
        """Whether it is a regression that nobody has declared."""
        return self.kind is Kind.REGRESSED and self.known is None


@dataclass(frozen=True)
class Difference:
    """All changes from one file to another.

    `same` counts the cases that are as they were. `software` and `machine` say in what the two runs differ.
    `missing` counts planned records that the later file lacks, because its run was interrupted.
    """

    changes: tuple[Change, ...]
    same: int
    software: tuple[str, ...]
    machine: tuple[str, ...]
    missing: int

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """The changes of one kind."""
        return tuple(change for change in self.changes if change.kind is kind)


def compare(before: Results, after: Results) -> Difference:
    """Compare two results files; raises UsageError where no case is in both."""
    one, other = _by_key(before.records), _by_key(after.records)
    both = [key for key in one if key in other]
    if not both:
        raise UsageError(
            f"expected results of the same backends and cases, found none in common: {_about(before.run)}, "
            f"and {_about(after.run)}"
        )
    found = [_alone(Kind.REMOVED, one[key]) for key in one if key not in other]
    found += [_alone(Kind.ADDED, other[key]) for key in other if key not in one]
    found += [change for key in both if (change := _change(one[key], other[key]))]
    order = list(Kind)
    return Difference(
        changes=tuple(sorted(found, key=lambda change: (order.index(change.kind), change.backend, change.case))),
        same=len(both) - sum(change.kind not in {Kind.ADDED, Kind.REMOVED} for change in found),
        software=tuple(software_differences(before.run, after.run)),
        machine=tuple(machine_differences(before.run, after.run)),
        missing=max(0, after.run.planned - len(other)),
    )


def _by_key(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    return {(record.backend, record.subject.case): record for record in records}


def _about(run: Run) -> str:
    return f"one file is of {', '.join(run.backends)} ({run.command})"


def _alone(kind: Kind, record: Record) -> Change:
    verdict = str(record.verdict)
    shift = Shift("verdict", verdict, "") if kind is Kind.REMOVED else Shift("verdict", "", verdict)
    return Change(kind, record.backend, record.subject.case, (shift,), record.known)


def _change(one: Record, other: Record) -> Change | None:
    if reasons := tuple(_incomparable(one, other)):
        return Change(Kind.INCOMPARABLE, one.backend, one.subject.case, reasons)
    shifts = tuple(_shifts(one, other))
    if not shifts:
        return None
    worse = RANK.index(other.verdict) - RANK.index(one.verdict)
    kind = Kind.REGRESSED if worse > 0 else Kind.IMPROVED if worse < 0 else Kind.CHANGED
    return Change(kind, one.backend, one.subject.case, shifts, None if other.unexpected_pass else other.known)


def _incomparable(one: Record, other: Record) -> Iterator[Shift]:
    """Why two records of one name answer different questions."""
    before, after = one.subject, other.subject
    if not (before.fingerprint and after.fingerprint) or before.fingerprint != after.fingerprint:
        yield Shift("version of the case", before.fingerprint or "not recorded", after.fingerprint or "not recorded")
    if before.seed != after.seed:
        yield Shift("seed", str(before.seed), str(after.seed))


def _shifts(one: Record, other: Record) -> Iterator[Shift]:
    if one.verdict is not other.verdict:
        yield Shift("verdict", str(one.verdict), str(other.verdict))
    if one.stage != other.stage:
        yield Shift("step", one.stage or "none", other.stage or "none")
    if (checks := _unmet(one)) != (now := _unmet(other)):
        yield Shift("failed checks", checks or "none", now or "none")
    for name, tolerance in TOLERANCES.items():
        before, after = getattr(one.measures, name), getattr(other.measures, name)
        if before is None and after is None:
            continue
        if before is None or after is None or abs(after - before) > tolerance:
            yield Shift(name, _number(before), _number(after))
    changed = {name for name in {*one.executed_ops, *other.executed_ops} if _count(one, name) != _count(other, name)}
    for name in sorted(changed):
        yield Shift(name, str(_count(one, name)), str(_count(other, name)))


def _unmet(record: Record) -> str:
    return ", ".join(finding.check for finding in record.findings if finding.outcome is not Outcome.HELD)


def _count(record: Record, name: str) -> int:
    return record.executed_ops.get(name, 0)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.5g}"
