"""The command line as tests run it: what it is asked and what it says; the fixture that runs it is in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conformance.record import Verdict
from conformance.store import read


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


def verdicts(path: Path) -> dict[tuple[str, str], Verdict]:
    """What a results file says, by backend and case."""
    return {(record.backend, record.subject.case): record.verdict for record in read(path).records}
