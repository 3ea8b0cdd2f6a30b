"""A process of its own for a backend, `python -m conformance.worker NAME`: reads requests, answers with records.

The protocol is JSON lines. First the worker says ``{"hello": {...}}`` or ``{"trouble": "..."}``. Each request
``{"path": SPEC FILE, "case": CASE ID}`` is answered with ``{"record": {...}}`` or ``{"trouble": "..."}``. Standard
output is kept for the protocol: what native libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from conformance.backend import Backend
from conformance.backends import open_backend
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand
from conformance.engine import Limits, run_case
from conformance.errors import ConformanceError
from conformance.load import load


@functools.lru_cache(maxsize=256)
def cases_of(path: str) -> dict[str, Case]:
    """The cases of one spec file by id, read once."""
    return {case.id: case for case in expand(load(Path(path), vocabulary()))}


def _say(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message, separators=(",", ":")) + "\n")
    channel.flush()


def serve(channel: TextIO, requests: TextIO, backend: Backend, name: str, limits: Limits) -> None:
    """Answer requests until they end."""
    for line in requests:
        try:
            request = json.loads(line)
            case = cases_of(request["path"])[request["case"]]
            _say(channel, {"record": run_case(case, backend, name, limits).record.to_json()})
        except (ConformanceError, ValueError, KeyError, TypeError) as error:
            _say(channel, {"trouble": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Open the backend named on the command line and serve."""
    parser = argparse.ArgumentParser(description="Run conformance cases in a process of their own.")
    parser.add_argument("backend")
    parser.add_argument("--allow-python", action="store_true")
    options = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        backend = open_backend(options.backend)
        hello = asdict(backend.about())
    except ConformanceError as error:
        _say(channel, {"trouble": str(error)})
        sys.exit(3)
    _say(channel, {"hello": {key: sorted(v) if isinstance(v, frozenset) else v for key, v in hello.items()}})
    # The deadline is kept by the process that asks, which can end this one whatever it is doing.
    serve(channel, sys.stdin, backend, options.backend, Limits(None, options.allow_python))


if __name__ == "__main__":
    main()
