"""What the commands share: how they end, which cases they are about, and writing files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conformance.case import Case, expand, select
from conformance.errors import EnvironmentTrouble, Mistake, SpecError, UsageError
from conformance.load import discover, load
from conformance.places import bundled_specs

# As expected; a conformance failure; a mistake in a command or a file; trouble with the environment; Ctrl-C.
OK, FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130


def cases_of(
    specs: Sequence[Path], modes: Sequence[str] = (), captures: Sequence[str] = (), text: str = ""
) -> tuple[Case, ...]:
    """The cases of the given spec files or folders, or of the bundled ones; all mistakes in them are reported."""
    from conformance.backends.qlib import vocabulary

    paths = discover(list(specs) or [bundled_specs()])
    if not paths:
        raise UsageError(f"no *.qspec.yaml file in {', '.join(map(str, specs))}")
    mistakes: list[Mistake] = []
    cases: list[Case] = []
    for path in paths:
        try:
            cases += expand(load(path, vocabulary()))
        except SpecError as error:
            mistakes += error.mistakes
    if mistakes:
        raise SpecError(mistakes)
    chosen = tuple(select(cases, modes=modes, captures=captures, text=text))
    if not chosen:
        raise UsageError(f"none of the {len(cases)} cases is left by --mode, --capture and -k")
    return chosen


def write(path: Path, text: str) -> Path:
    """Write a text file and the folders it needs; raises EnvironmentTrouble where that can't be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentTrouble(f"{path}: can't be written ({error})") from error
    return path
