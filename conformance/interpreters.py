"""`--python NAME=PATH`: the interpreters of backends that live in other environments."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

from conformance.errors import UsageError


def interpreters(given: Sequence[str], backends: Iterable[str]) -> dict[str, str]:
    """The interpreters by the name of their backend, which is what stands before its colon.

    Raises UsageError for a text that is no NAME=PATH, a path that can't be executed, and a backend that is not run.
    """
    found: dict[str, str] = {}
    run = {backend.partition(":")[0] for backend in backends}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path or name in found:
            raise UsageError(f"--python: expected NAME=PATH with each NAME once, found {text!r}")
        if "all" not in run and name not in run:
            raise UsageError(f"--python {text}: no backend {name!r} is run; expected one of {', '.join(sorted(run))}")
        executable = shutil.which(path)
        if executable is None:
            raise UsageError(f"--python {text}: {path!r} is no program that can be run")
        found[name] = executable
    return found
