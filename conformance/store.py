"""Results files: JSON lines, one head and then one record a line, each appended at once."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from conformance.errors import EnvironmentTrouble, UsageError, nearest
from conformance.record import Debt, Declared, Environment, Record, Run

# A results file of this suffix is compressed; it is written whole, and can't be gone on with.
COMPRESSED = ".xz"


@dataclass(frozen=True)
class Results:
    """The contents of a results file; `damaged` counts lines that could not be read, such as one that was cut off."""

    run: Run
    records: tuple[Record, ...]
    damaged: int = 0


@dataclass(frozen=True)
class Writer:
    """Appends to a results file; each line is one write, so that a reader sees whole lines whenever the writer dies."""

    path: Path
    descriptor: int

    def head(self, run: Run) -> None:
        """Write the head: first, and again where a run that goes on knows more of its backends."""
        self._line({"run": asdict(run)})

    def append(self, record: Record) -> None:
        """Write one record; raises EnvironmentTrouble where the disk is full, and the earlier lines stay readable."""
        self._line({"record": record.to_json()})

    def _line(self, value: dict[str, Any]) -> None:
        data = _text(value).encode()
        start = os.fstat(self.descriptor).st_size
        try:
            written = os.write(self.descriptor, data)
            if written != len(data):
                raise OSError(f"wrote {written} of {len(data)} bytes")
        except OSError as error:
            with suppress(OSError):  # what is no regular file can't be cut; a partial line is passed over when read
                os.ftruncate(self.descriptor, start)
            raise EnvironmentTrouble(
                f"{self.path}: could not append a record ({error}); {start} bytes of earlier records are kept: "
                "make room and run again"
            ) from error


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Open a new results file, replacing an earlier one; raises EnvironmentTrouble where it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    except OSError as error:
        raise EnvironmentTrouble(f"{path}: can't be written ({error}); choose another place with --output") from error
    try:
        yield Writer(path, descriptor)
    finally:
        os.close(descriptor)


def write_all(path: Path, results: Results) -> None:
    """Write a whole results file, replacing an earlier one."""
    with writing(path) as writer:
        writer.head(results.run)
        for record in results.records:
            writer.append(record)


@contextmanager
def appending(path: Path) -> Iterator[Writer]:
    """Open a results file to go on with it; a last line that was cut off is removed first.

    Raises EnvironmentTrouble where it can't be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        raise EnvironmentTrouble(f"{path}: can't be written ({error}); run again without --resume") from error
    try:
        os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
        yield Writer(path, descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Results:
    """Read a results file, also one whose writer was killed; lines that can't be read are counted and passed over.

    Lines are only ever appended: of two heads, and of two records of one case on one backend, the later one counts, and
    none that asked something else than the head plans. The records come in the order of the specs.

    Raises UsageError for a file that is missing or has no head.
    """
    try:
        lines = _bytes_of(path).split(b"\n")
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise UsageError(f"{path}: can't be read ({error}); expected a results file of 'conformance run'") from error
    run, found, damaged = None, dict[tuple[str, str], Record](), 0
    for line in filter(None, lines):
        try:
            value = json.loads(line)
            if "run" in value:
                run = _run(value["run"])
            else:
                record = Record.from_json(value["record"])
                found[record.backend, record.subject.case] = record
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if run is None:
        raise UsageError(
            f"{path}: expected a results file that starts with the head of a run, found none; a run that was stopped "
            "before its first case starts again without --resume"
        )
    # Workers finish in any order; readers want the specs' own.
    asked = (record for record in found.values() if as_planned(record, run))
    records = sorted(asked, key=lambda each: (each.subject.path, each.subject.line, each.subject.case))
    return Results(run, tuple(records), damaged)


def as_planned(record: Record, run: Run) -> bool:
    """Whether a record asked what the head of its file plans for its case, where that says anything of it."""
    return run.cases.get(record.subject.case, record.subject.fingerprint) == record.subject.fingerprint


def _bytes_of(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == COMPRESSED else path.read_bytes()


def write_compressed(path: Path, results: Results) -> None:
    """Write a whole results file as `read` takes it back where its name ends in ``.xz``: the same bytes each time."""
    lines = [{"run": asdict(results.run)}, *({"record": record.to_json()} for record in results.records)]
    data = "".join(_text(line) for line in lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(data))
    except OSError as error:
        raise EnvironmentTrouble(f"{path}: can't be written ({error})") from error


def _text(value: dict[str, Any]) -> str:
    # NaN and infinity are no JSON: a record holds None instead, and anything else is a mistake to be found here.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def meant(backends: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of a file's backends that are named, a name without a target meaning each; all where none is named.

    Raises UsageError for a name of none.
    """
    unknown = [name for name in names if not any(name in _names(each) for each in backends)]
    if unknown:
        raise UsageError(
            f"no results of {', '.join(unknown)}.{nearest(unknown[0], backends)} The file has those of "
            f"{', '.join(backends)}"
        )
    return tuple(each for each in backends if not names or not _names(each).isdisjoint(names))


def _names(backend: str) -> set[str]:
    return {backend, backend.partition(":")[0]}


def of_backends(results: Results, names: Sequence[str]) -> Results:
    """Only what is about the backends that are meant by these names; raises what `meant` does."""
    run = results.run
    chosen = meant(run.backends, names)
    narrowed = replace(
        run,
        backends=chosen,
        planned=run.planned // max(1, len(run.backends)) * len(chosen),
        debt=tuple(debt for debt in run.debt if debt.backend in chosen),
    )
    return replace(
        results, run=narrowed, records=tuple(record for record in results.records if record.backend in chosen)
    )


def _run(value: dict[str, Any]) -> Run:
    environment = Environment(**value.pop("environment"))
    debt = tuple(Debt(**each) for each in value.pop("debt", ()))
    said = {name: _declared(each) for name, each in value.pop("declared", {}).items()}
    return Run(environment=environment, debt=debt, declared=said, **{**value, "backends": tuple(value["backends"])})


def _declared(value: dict[str, Any]) -> Declared:
    listed: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}
    return Declared(**listed)
