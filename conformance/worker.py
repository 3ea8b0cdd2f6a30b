"""A process of its own for a backend, `python -m conformance.worker NAME`: reads requests, answers with records.

See docs/protocol.md. Standard output is kept for the protocol: what native libraries print goes to standard error.
Nothing but the standard library is imported before `main`, so that another environment can say what it lacks.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from conformance.backend import About, Backend, Quantized, Stage, Task
    from conformance.case import Case

# The exit status after trouble.
TROUBLE = 3
# Characters of what a backend raises where it is opened.
MOST = 4000
# A backend that allocates without end gets an error, before it takes the machine down; no case needs a tenth of this.
MEMORY = 8 << 30


@dataclass(frozen=True)
class Mouth:
    """Where this process speaks: children that a backend forks have it too, and must not."""

    channel: TextIO
    owner: int

    def say(self, message: dict[str, Any]) -> None:
        """Send one message; ends the process where it is not the one that was started."""
        if os.getpid() != self.owner:
            os._exit(0)
        self.channel.write(json.dumps(message, separators=(",", ":")) + "\n")
        self.channel.flush()


@dataclass(frozen=True)
class Introduced:
    """A backend that has said what it is: to look up versions again would take longer than many a case."""

    backend: Backend
    said: About

    def about(self) -> About:
        """What the hello says."""
        return self.said

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """As the backend does."""
        return self.backend.quantize(task, stage)


@functools.lru_cache(maxsize=256)
def cases_of(path: str) -> dict[str, Case]:
    """The cases of one spec file by id, read once."""
    from conformance.backends.qlib import vocabulary
    from conformance.case import expand
    from conformance.load import load

    return {case.id: case for case in expand(load(Path(path), vocabulary()))}


def serve(say: Callable[[dict[str, Any]], None], requests: Iterable[str], backend: Backend, options: Any) -> None:
    """Answer requests until they end."""
    from conformance.backends import REFERENCE, open_backend
    from conformance.engine import Limits, run_case
    from conformance.errors import ConformanceError

    # The deadline is kept by the process that asks, which can end this one whatever it is doing.
    limits = Limits(None, options.allow_python, open_backend(REFERENCE))
    for line in requests:
        try:
            request = json.loads(line)
            case = cases_of(request["path"])[request["case"]]
            record = run_case(case, backend, options.backend, limits, lambda step: say({"stage": step})).record
            say({"record": record.to_json()})
        except (ConformanceError, ValueError, KeyError, TypeError) as error:
            say({"trouble": f"{type(error).__name__}: {error}"})


def hello_of(about: About) -> dict[str, Any]:
    """What a backend says of itself, as JSON; `conformance.backend.about_of` is its inverse."""
    from conformance.backend import declared

    return {"name": about.name, **asdict(declared(about)), "python": platform.python_version()}


def open_here(name: str) -> Introduced:
    """Make the backend and ask it once. Raises ImportError, ConformanceError, or whatever `about()` raises."""
    from conformance.backends import open_backend

    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    backend = open_backend(name)
    return Introduced(backend, backend.about())


def main() -> None:
    """Open the backend named on the command line and serve."""
    parser = argparse.ArgumentParser(description="Run conformance cases in a process of their own.")
    parser.add_argument("backend")
    parser.add_argument("--allow-python", action="store_true")
    options = parser.parse_args()
    mouth = Mouth(os.fdopen(os.dup(1), "w", encoding="utf-8"), os.getpid())
    os.dup2(2, 1)
    _limit_memory()
    try:
        backend = open_here(options.backend)
        mouth.say({"hello": hello_of(backend.said)})
    except ModuleNotFoundError as error:
        mouth.say({"trouble": f"{sys.executable} has no module {error.name!r}: install it there ({error})"})
        sys.exit(TROUBLE)
    except Exception as error:  # a backend's own about() may raise anything
        mouth.say({"trouble": f"{type(error).__name__}: {error}"[:MOST]})
        sys.exit(TROUBLE)
    serve(mouth.say, sys.stdin, backend, options)


def _limit_memory() -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))


if __name__ == "__main__":
    main()
