"""What is wrong with a file of known failures: entries that name nothing, have expired, or are not true any more."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conformance.errors import Mistake, nearest
from conformance.known_file import Entry, KnownFile
from conformance.phrase import find
from conformance.record import Record, Subject, Verdict
from conformance.tensorspec import KEY
from conformance.yamltree import mistake_at

MOST = 8


@dataclass(frozen=True)
class Evidence:
    """What a file is held against: every case that there is, and the records of a run of its backend, if there was one.

    `versions` are those of the run's backends, by the backend's name.
    """

    subjects: Sequence[Subject]
    today: datetime.date
    records: Sequence[Record] = ()
    versions: Mapping[str, Mapping[str, str]] | None = None


def mistakes_in(file: KnownFile, evidence: Evidence) -> list[Mistake]:
    """Return a mistake for each entry that must be changed or removed, in the file's order."""
    return [mistake for entry in file.entries for mistake in _mistakes(entry, evidence)]


def _mistakes(entry: Entry, evidence: Evidence) -> Iterator[Mistake]:
    known = entry.known
    nameless = list(_nameless(entry, evidence.subjects))
    yield from nameless
    if known.expired(evidence.today):
        message = f"expired on {known.expires}: look at it again, then remove it or give it a later date"
        yield _at(entry, message, "expires")
    for backend, versions in (evidence.versions or {}).items():
        for package in known.versions.keys() - versions.keys():
            said = ", ".join(f"{name} {version}" for name, version in versions.items()) or "none"
            hint = nearest(package, versions)
            message = f"backend {backend!r} says no version of {package!r}, only {said}: it can't hold.{hint}"
            yield _at(entry, message, "versions", package, KEY)
    if not nameless:
        yield from _stale(entry, evidence)


def _nameless(entry: Entry, subjects: Sequence[Subject]) -> Iterator[Mistake]:
    """Why an entry names no case, at the part of it that doesn't fit."""
    known = entry.known
    if any(known.chooses(subject) for subject in subjects):
        return
    whole = "[" in known.case
    own = [subject for subject in subjects if known.case == f"{subject.family}::{subject.spec}"]
    if whole or not own:
        there = {subject.case if whole else f"{subject.family}::{subject.spec}" for subject in subjects}
        hint = nearest(known.case, there) or " Write it as suite::spec, or as `conformance list cases` prints it."
        yield _at(entry, f"no {'case' if whole else 'spec'} is named {known.case!r}.{hint}", "case")
        return
    found = [
        *_unmet(entry, "mode", known.mode or (), {subject.mode for subject in own}),
        *_unmet(entry, "capture", known.capture or (), {subject.capture for subject in own}),
    ]
    parameters = {name for subject in own for name in subject.parameters}
    for name, values in known.where.items():
        if name in parameters:
            there = {subject.parameters[name] for subject in own if name in subject.parameters}
            found += _unmet(entry, f"where.{name}", values, there)
        else:
            hint = nearest(name, parameters) or f" It has {', '.join(sorted(parameters)) or 'none'}."
            found.append(_at(entry, f"{known.case} has no matrix value {name!r}.{hint}", "where", name, KEY))
    yield from found or [_at(entry, f"no case of {known.case} has all of these values: remove one")]


def _unmet(entry: Entry, place: str, values: Sequence[str], there: set[str]) -> Iterator[Mistake]:
    for value in values:
        if value not in there:
            few = ", ".join(sorted(there)[:MOST]) + (", ..." if len(there) > MOST else "")
            message = f"no case of {entry.known.case} has {place} {str(value)!r}, only {few}.{nearest(value, there)}"
            yield _at(entry, message, *place.split("."))


def _stale(entry: Entry, evidence: Evidence) -> Iterator[Mistake]:
    """What the records say of an entry that holds for them."""
    known, versions = entry.known, evidence.versions or {}
    if known.expired(evidence.today):
        return
    run = [
        record
        for record in evidence.records
        if known.names(record.subject, record.backend)
        and known.fits(versions.get(record.backend, {}))
        and record.verdict is not Verdict.ERROR
    ]
    others = [record for record in run if not known.matches(record)]
    if not others:
        return
    first = others[0]
    now = f"{first.subject.case} on {first.backend} is {_ending(first.verdict, first.stage)}"
    if len(others) == len(run):
        message = f"stale: none of the {len(run)} cases run is {_ending(known.verdict, known.stage)}, such as {now}"
        yield _at(entry, f"{message}: remove it, or say what is true now")
    else:
        message = f"stale in part: {len(others)} of the {len(run)} cases run differ, such as {now}"
        yield _at(entry, f"{message}: let it name the others only")


def _ending(verdict: Verdict, stage: str | None) -> str:
    return f"{verdict} in {stage}" if stage else str(verdict)


def _at(entry: Entry, message: str, *place: str) -> Mistake:
    return mistake_at(find(entry.tree, place), message)
