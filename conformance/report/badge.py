"""What a badge says: a label, a score and a colour that goes by whether anything failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from conformance.record import Record, Run
from conformance.report import summary

LONGEST = 60


class Colour(Enum):
    """The colours of badges: the name by which shields know each, and its value, on which white text is readable."""

    GREEN = ("brightgreen", "#237804")
    YELLOW = ("yellow", "#7d6200")
    RED = ("red", "#b3201a")
    GREY = ("lightgrey", "#5a6068")


@dataclass(frozen=True)
class Badge:
    """A label such as "conformance: qlib" beside a message such as "47 of 50 native"."""

    label: str
    message: str
    colour: Colour


def badge(run: Run, records: Sequence[Record]) -> Badge:
    """Sum up a run: green where all is native, red where something failed unexpectedly, grey where it is incomplete."""
    names = f": {run.backends[0]}" if len(run.backends) == 1 else ""
    whole = summary.total(records)
    missing = summary.missing(run, records)
    message = f"{whole.native} of {whole.scored} native" + (", incomplete" if missing else "")
    return Badge(summary.one_line(f"conformance{names}", LONGEST), message, _colour(whole, missing, records))


def _colour(whole: summary.Tally, missing: int, records: Sequence[Record]) -> Colour:
    if any(record.failed for record in records):
        return Colour.RED
    if missing or not whole.scored:
        return Colour.GREY
    return Colour.GREEN if whole.native == whole.scored else Colour.YELLOW
