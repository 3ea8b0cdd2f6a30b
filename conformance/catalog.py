"""What `conformance list` prints: each of the suite's tables with one line an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from conformance.backends import line_of, offered
from conformance.errors import EnvironmentTrouble, UsageError, nearest
from conformance.record import Record, Run
from conformance.report import FORMATS


def _first(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


def _checks() -> dict[str, str]:
    from conformance.checks import CHECKS

    return {name: _first(kind.run.__doc__) for name, kind in CHECKS.items()}


def _bundled(table: str) -> Callable[[], dict[str, str]]:
    def lines() -> dict[str, str]:
        from conformance.backends import qlib

        return qlib.table_lines(table)

    return lines


def _backends() -> dict[str, str]:
    def line(name: str) -> str:
        try:
            return line_of(name)
        except EnvironmentTrouble as error:
            return str(error)

    return {name: line(name) for name in offered()}


CATALOGS: Mapping[str, Callable[[], dict[str, str]]] = {
    "ops": _bundled("ops"),
    "observers": _bundled("observers"),
    "modes": _bundled("modes"),
    "qconfigs": _bundled("qconfigs"),
    "backends": _backends,
    "checks": _checks,
    "formats": lambda: {name: _first(import_module(module).__doc__) for name, (module, _) in FORMATS.items()},
}


def catalog(what: str) -> dict[str, str]:
    """The entries of one table with their one-line descriptions."""
    return CATALOGS[what]()


def renderer(name: str) -> Callable[[Run, Sequence[Record]], str]:
    """The function that renders a report format; raises UsageError for one that does not exist."""
    if name not in FORMATS:
        raise UsageError(f"no format is named {name!r}.{nearest(name, FORMATS)} Expected one of: {', '.join(FORMATS)}")
    render: Callable[[Run, Sequence[Record]], str] = import_module(FORMATS[name][0]).render
    return render
