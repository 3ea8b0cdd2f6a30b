"""Every error that a user of the suite can meet.

ConformanceError                anything this package raises on purpose
├── SpecError                   a spec file is wrong; carries every mistake found in it (exit code 2)
├── UsageError                  a command or a call names something that does not exist (exit code 2)
├── EnvironmentTrouble          a missing package, an unwritable file: not the backend's fault (exit code 3)
├── Unsupported                 a backend says that it can't do this case
├── Crashed                     the process that a backend computes in has died
├── Inexpressible               the suite can't put a case to a backend
└── ReferenceFailed             what a backend is compared with failed, which is not the backend's fault
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class ConformanceError(Exception):
    """Root of the errors raised on purpose; `except ConformanceError` catches them all."""


@dataclass(frozen=True)
class Mistake:
    """One mistake in one spec file: where it is, what was found and what to do.

    `line` and `column` count from 1. `text` is the source line as it stands in the file.
    """

    path: str
    line: int
    column: int
    message: str
    text: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}"
        if not self.text:
            return f"{place}: {self.message}"
        caret = " " * (self.column - 1) + "^"
        gutter = f"{self.line:>5} | "
        return f"{place}: {self.message}\n{gutter}{self.text}\n{' ' * (len(gutter) - 2)}| {caret}"


class SpecError(ConformanceError):
    """A spec file is wrong; `mistakes` lists every mistake of the file, in reading order."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Mistake, ...]]]:
        return (SpecError, (self.mistakes,))


class UsageError(ConformanceError):
    """A command line or a call names something that does not exist."""


class EnvironmentTrouble(ConformanceError):  # noqa: N818  (OSError has taken EnvironmentError)
    """The machine or the environment is at fault: a package is missing, a file can't be written."""


class Unsupported(ConformanceError):  # noqa: N818  (a declared answer, not a fault)
    """Raised by a backend that can't do a case; whether it had declared so decides the verdict.

    `feature` is what it lacks, as its `About.lacks` says it; a refusal without one may be covered by the operators that
    the case expects.
    """

    def __init__(self, message: str, feature: str = "") -> None:
        self.feature = feature
        super().__init__(message)


class Crashed(ConformanceError):  # noqa: N818  (what happened, as the verdict says it)
    """Raised where a backend computes in a process of its own, which has died; the text says how."""


class Inexpressible(ConformanceError):  # noqa: N818  (a limit of the suite, no fault)
    """Raised where the suite can't put a case to a backend: the exchange format has no word for it, say."""


class ReferenceFailed(ConformanceError):  # noqa: N818  (what happened, to another backend)
    """Raised where the backend that others are compared with can't do a case, or gives no number."""


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str:
    """Return " Did you mean 'x'?" for the valid name most like `name`, or an empty string."""
    matches = get_close_matches(name, list(valid), n=1, cutoff=cutoff)
    return f" Did you mean {matches[0]!r}?" if matches else ""
