"""The file of a backend's known failures: where it is, and reading it with the place of every entry.

One rule: it is `expected/NAME.yaml`, in the suite's specs for a backend that the suite brings, and beside the module
that the entry point names for one that another distribution offers. `qlib:reference` shares the file of `qlib`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conformance.backends import BUILTIN, offered
from conformance.errors import Mistake, SpecError
from conformance.known import Expected, Known, apply, expected
from conformance.matrix import MAX_TEXT, short_text
from conformance.phrase import mistakes_of
from conformance.places import bundled_specs
from conformance.record import Record
from conformance.yamltree import Fields, Items, Node, Scalar, Source, kind, mistake_at, parse, plain

FOLDER = "expected"
# A long value as an id holds it: cut, and told apart by a hash.
_CUT = re.compile(rf".{{{MAX_TEXT}}}[0-9a-f]{{6}}")


@dataclass(frozen=True)
class Entry:
    """One known failure and the place in its file where it stands."""

    known: Known
    tree: Fields


@dataclass(frozen=True)
class KnownFile:
    """A file of known failures; `root` is its list as written, None where it holds none yet."""

    source: Source
    root: Items | None
    entries: tuple[Entry, ...]


def path_of(backend: str) -> Path | None:
    """The file of a backend's known failures, be it there or not; None where the backend's module can't be found."""
    name = backend.partition(":")[0]
    entry = offered().get(name)
    if name in BUILTIN or entry is None:
        return bundled_specs() / FOLDER / f"{name}.yaml"
    try:
        module = find_spec(entry.factory.partition(":")[0])
    except ImportError:  # opening the backend tells which package is missing
        return None
    if module is None or module.origin is None:
        return None
    return Path(module.origin).parent / FOLDER / f"{name}.yaml"


def known_for(backend: str) -> tuple[Known, ...]:
    """The known failures of a backend. Raises SpecError with every mistake of its file."""
    path = path_of(backend)
    return tuple(entry.known for entry in load_known(path).entries) if path else ()


def expected_today(backend: str, versions: Mapping[str, str]) -> Expected:
    """The known failures of a backend, which says `versions` of itself, as they hold today."""
    return expected(known_for(backend), backend, versions, datetime.date.today())


def marked(record: Record, versions: Mapping[str, str]) -> Record:
    """The record as `apply` marks it today, by the file of its backend, which says `versions` of itself."""
    return apply(record, expected_today(record.backend, versions))


def load_known(path: Path) -> KnownFile:
    """Read a file of known failures; a missing file is an empty one. Raises SpecError with every mistake in it."""
    if not path.exists():
        return KnownFile(Source(str(path), ""), None, ())
    try:
        return read_known(str(path), path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SpecError([Mistake(str(path), 1, 1, "expected UTF-8 text, found other bytes")]) from None


def read_known(path: str, text: str) -> KnownFile:
    """Read the text of a file of known failures; `path` is only named in mistakes."""
    source = Source(path, text.replace("\r\n", "\n").removeprefix("\ufeff"))
    if all(not line.strip() or line.lstrip().startswith("#") for line in source.text.splitlines()):
        return KnownFile(source, None, ())
    document = parse(source)
    mistakes, root = list(document.mistakes), document.root
    if not isinstance(root, Items):
        message = f"expected a list of known failures, each with case, verdict and reason, found {kind(plain(root))}"
        raise SpecError([*mistakes, mistake_at(root, message)])
    entries = [entry for item in root.items for entry in _entry(item, mistakes)]
    if mistakes:
        raise SpecError(sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column)))
    return KnownFile(source, root, tuple(entries))


def _entry(item: Node, mistakes: list[Mistake]) -> Iterator[Entry]:
    if not isinstance(item, Fields):
        message = f"expected a mapping with case, verdict and reason, found {kind(plain(item))}"
        mistakes.append(mistake_at(item, message))
        return
    data: Any = plain(item)
    if isinstance(where := item.get("where"), Fields):
        data["where"] = {key.text: _texts(value) for key, value in where.entries}
    try:
        yield Entry(Known.model_validate(data), item)
    except ValidationError as error:
        mistakes.extend(mistakes_of(error, item, Known))


def _texts(value: Node) -> list[str]:
    """Matrix values as they read in a case's id, be they written so or as in the spec."""
    return [_text(item) for item in value.items] if isinstance(value, Items) else [_text(value)]


def _text(node: Node) -> str:
    if isinstance(node, Scalar) and _CUT.fullmatch(node.text):
        return node.text
    return short_text(node)
