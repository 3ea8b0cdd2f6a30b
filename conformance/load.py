"""Reads spec files: YAML in, frozen specs out, or every mistake of the file at once."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conformance.errors import Mistake, SpecError, UsageError, nearest
from conformance.frozenmap import FrozenMap
from conformance.graphspec import desugar, parse_compute
from conformance.matrix import Combination, Filling, combinations, fill, short_text
from conformance.phrase import mistakes_of
from conformance.source import ModuleSource, parse_module
from conformance.spec import DEFAULT_KEYS, IDENTIFIER, MAX_CASES, OF_MODULES, Spec, TensorQParams, flows
from conformance.vocabulary import Vocabulary
from conformance.yamltree import ENOUGH, Fields, Items, Node, Plain, Scalar, Source, kind, mistake_at, parse, plain

SUFFIX = ".qspec.yaml"
MAX_BYTES = 2**20

P = TypeVar("P")


@dataclass(frozen=True)
class Variant:
    """One combination of a spec's matrix: its values as short texts, and the spec with them put in.

    `qparams` are those of a graph that is written out, by the names of its tensors.
    """

    parameters: Mapping[str, str]
    spec: Spec
    module: ModuleSource
    qparams: Mapping[str, TensorQParams | None]


@dataclass(frozen=True)
class LoadedSpec:
    """One entry of `cases:`: its tree as written, where it starts, its YAML text, and every variant of it."""

    tree: Fields
    line: int
    yaml: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class SpecFile:
    """One valid spec file."""

    path: str
    suite: str
    cases: tuple[LoadedSpec, ...]
    text: str


class _Header(BaseModel):
    """The keys of a file; what is in `defaults` and `cases` is looked at spec by spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: Literal[1]
    suite: str = Field(pattern=IDENTIFIER, max_length=80)
    defaults: dict[str, object] = Field(default_factory=dict)
    cases: list[object] = Field(min_length=1)


def load(path: str | os.PathLike[str], vocabulary: Vocabulary) -> SpecFile:
    """Read one spec file; raises SpecError with every mistake in it, UsageError where it can't be read."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        return load_text(data.decode("utf-8-sig"), name, vocabulary)
    except OSError as error:
        raise UsageError(f"can't read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(errors="replace")
        raise SpecError([Source(name, before).mistake(len(before), "expected UTF-8 text, found other bytes")]) from None


def load_text(text: str, path: str | os.PathLike[str], vocabulary: Vocabulary) -> SpecFile:
    """Read a spec file's text; `path` is only named in mistakes. Raises SpecError with every mistake in it."""
    source = Source(os.fspath(path), text.replace("\r\n", "\n").removeprefix("\ufeff"))
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise SpecError([Mistake(source.path, 1, 1, f"expected at most {MAX_BYTES} bytes: split the file")])
    document = parse(source)
    mistakes = list(document.mistakes)
    root = document.root
    if not isinstance(root, Fields):
        message = f"expected a mapping with spec, suite and cases, found {kind(plain(root))}"
        raise SpecError([*mistakes, mistake_at(root, message)])
    header = _header(root, mistakes)
    cases = [case for entry in _entries(root, mistakes) if (case := _case(entry, vocabulary, mistakes))]
    if mistakes or header is None:
        raise SpecError(_in_reading_order(mistakes))
    return SpecFile(source.path, header.suite, tuple(cases), source.text)


def discover(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the *.qspec.yaml files at and under the paths, sorted; raises UsageError for one that isn't there."""
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            found.update(each for each in path.rglob(f"*{SUFFIX}") if each.is_file())
        elif path.is_file():
            found.add(path)
        else:
            raise UsageError(f"no such file or folder: {path}")
    return sorted(found)


def _header(root: Fields, mistakes: list[Mistake]) -> _Header | None:
    try:
        return _Header.model_validate(plain(root))
    except ValidationError as error:
        mistakes.extend(mistakes_of(error, root, _Header))
        return None


def _entries(root: Fields, mistakes: list[Mistake]) -> list[tuple[Fields, Fields]]:
    """Each case as written, and with the defaults under it."""
    defaults, cases = root.get("defaults"), root.get("cases")
    shared = defaults.entries if isinstance(defaults, Fields) else ()
    for key, _ in shared:
        if key.text not in DEFAULT_KEYS:
            hint = nearest(key.text, DEFAULT_KEYS) or f" Expected one of {', '.join(DEFAULT_KEYS)}."
            mistakes.append(mistake_at(key, f"unknown key {key.text!r} in defaults.{hint}"))
    entries: list[tuple[Fields, Fields]] = []
    ids: set[Plain] = set()
    for case in cases.items if isinstance(cases, Items) else ():
        if not isinstance(case, Fields):
            mistakes.append(mistake_at(case, f"expected a mapping with id, why, module..., found {kind(plain(case))}"))
            continue
        name = case.get("id")
        if isinstance(name, Scalar):
            if name.value in ids:
                mistakes.append(mistake_at(name, f"the id {name.text!r} is used twice in this file: choose another"))
            ids.add(name.value)
        taken = {key.text for key, _ in case.entries} | set(OF_MODULES if case.key("graph") else ())
        under = tuple((key, value) for key, value in shared if key.text in DEFAULT_KEYS and key.text not in taken)
        entries.append((case, replace(case, entries=(*case.entries, *under))))
    return entries


def _case(entry: tuple[Fields, Fields], vocabulary: Vocabulary, mistakes: list[Mistake]) -> LoadedSpec | None:
    written, tree = entry
    known = len(mistakes)
    matrix = tree.get("matrix")
    body = replace(tree, entries=tuple((key, value) for key, value in tree.entries if key.text != "matrix"))
    used: set[str] = set()
    variants: list[Variant] = []
    combos = combinations(matrix, mistakes)
    for values in combos:
        if len(mistakes) - known >= ENOUGH:
            break
        filling = Filling(values, used, [])
        filled = fill(body, filling)
        mistakes.extend(filling.mistakes)
        if not filling.mistakes and isinstance(filled, Fields):
            variants.extend(_variant(filled, values, vocabulary, mistakes))
    if isinstance(matrix, Fields) and len(mistakes) - known < ENOUGH and combos:
        mistakes.extend(_unused(matrix, used))
    count = sum(len(flows(variant.spec)) for variant in variants)
    if count > MAX_CASES:
        mistakes.append(
            mistake_at(matrix or tree, f"expected at most {MAX_CASES} cases, found {count}: split the spec")
        )
    names = [tuple(variant.parameters.items()) for variant in variants]
    if len(set(names)) < len(names):
        mistakes.append(mistake_at(matrix or tree, "two combinations have the same values: remove one"))
    if len(mistakes) > known:
        return None
    line = written.source.mistake(written.start, "").line
    return LoadedSpec(written, line, _text_of(written), tuple(variants))


def _variant(filled: Fields, values: Combination, vocabulary: Vocabulary, mistakes: list[Mistake]) -> Sequence[Variant]:
    """The spec with one combination's values, or nothing and its mistakes."""
    known = len(mistakes)
    data, written, graph = plain(filled), filled.get("module"), filled.get("graph")
    assert isinstance(data, dict)
    module = _parsed(parse_module, written, mistakes)
    compute = _parsed(parse_compute, graph, mistakes)
    try:
        spec = Spec.model_validate({**data, **({"module": module} if written else {})}, context=vocabulary)
    except ValidationError as error:
        mistakes.extend(mistakes_of(error, filled, Spec))
        return ()
    if len(mistakes) > known:
        return ()
    parameters = FrozenMap({name: short_text(value) for name, value in values.items()})
    if module is not None:
        return (Variant(parameters, spec, module, FrozenMap()),)
    assert spec.graph is not None and compute is not None and isinstance(graph, Fields)
    try:
        made = desugar(spec.graph, compute, graph)
    except SpecError as error:
        mistakes.extend(error.mistakes)
        return ()
    spec = spec.model_copy(update={"inputs": made.inputs, "parameters": made.weights})
    return (Variant(parameters, spec, made.module, made.qparams),)


def _parsed(parse: Callable[[Node], P], node: Node | None, mistakes: list[Mistake]) -> P | None:
    """What a part of a spec says, None where nothing is written or with the mistakes in it."""
    try:
        return None if node is None else parse(node)
    except SpecError as error:
        mistakes.extend(error.mistakes)
        return None


def _unused(matrix: Fields, used: set[str]) -> Iterable[Mistake]:
    rows = [row for name in ("include",) for row in _items(matrix.get(name)) if isinstance(row, Fields)]
    entries = [*matrix.entries, *(entry for row in rows for entry in row.entries)]
    for key, _ in entries:
        if key.text not in used and key.text not in {"include", "exclude"}:
            yield mistake_at(key, f"matrix key {key.text!r} is used nowhere: remove it, or write ${{{key.text}}}")


def _items(node: Node | None) -> tuple[Node, ...]:
    return node.items if isinstance(node, Items) else ()


def _text_of(case: Fields) -> str:
    """A case's own lines, without the dash and the indentation of the list."""
    text = case.source.text
    start = text.rfind("\n", 0, case.start) + 1
    end = text.find("\n", case.end)
    body = " " * (case.start - start) + text[case.start : end if end >= 0 else len(text)]
    return textwrap.dedent(body).rstrip() + "\n"


def _in_reading_order(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """One mistake for each position: what several combinations find is said once."""
    first: dict[tuple[int, int], Mistake] = {}
    for mistake in mistakes:
        first.setdefault((mistake.line, mistake.column), mistake)
    return [first[place] for place in sorted(first)]
