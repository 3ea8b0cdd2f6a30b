"""A spec's `matrix:`: its combinations of values, and putting them in for `${name}`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from conformance.errors import Mistake, nearest
from conformance.yamltree import Fields, Items, Node, Piece, Scalar, kind, mistake_at, plain

MAX_COMBINATIONS = 4096
MAX_ROWS = 256
MAX_TEXT = 40
_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")
_NAME = re.compile(r"[a-z0-9_]+", re.ASCII)
_ADDED = ("include", "exclude")

Combination = Mapping[str, Node]


@dataclass(frozen=True)
class Filling:
    """One combination being put into a tree; `used` and `mistakes` grow as placeholders are met."""

    values: Combination
    used: set[str]
    mistakes: list[Mistake]


def combinations(matrix: Node | None, mistakes: list[Mistake]) -> tuple[Combination, ...]:
    """Return every combination of the matrix's values in order; a spec without a matrix has one, without values.

    `exclude` removes combinations that match all its keys. `include` extends those that it does not contradict by its
    keys, and becomes a combination of its own where there are none; entries that name none of the lists are an axis
    of their own, so that each of them meets every combination.
    """
    if matrix is None:
        return ({},)
    if not isinstance(matrix, Fields):
        mistakes.append(mistake_at(matrix, f"expected a mapping of names to lists, found {kind(plain(matrix))}"))
        return ()
    known = len(mistakes)
    values = _values(matrix, mistakes)
    added = {name: _rows(matrix.get(name), mistakes) for name in _ADDED}
    if len(mistakes) > known:
        return ()
    if math.prod(len(items) for items in values.values()) > MAX_COMBINATIONS:
        mistakes.append(mistake_at(matrix, f"expected at most {MAX_COMBINATIONS} combinations: split the spec"))
        return ()
    # A product over no names at all is one empty combination, which only counts where nothing is included.
    combos = [dict(zip(values, row, strict=True)) for row in product(*values.values())] if values else []
    for row in added["exclude"]:
        combos = _without(combos, row, mistakes)
    free = [row for row in added["include"] if values and not any(key.text in values for key, _ in row.entries)]
    if free:
        combos = [{**combo, **{key.text: value for key, value in row.entries}} for combo in combos for row in free]
    combos = _extended(combos, tuple(row for row in added["include"] if row not in free))
    if not combos and len(mistakes) == known:
        mistakes.append(mistake_at(matrix, "expected at least one combination, found none: remove an `exclude`"))
    return tuple(combos)


def _values(matrix: Fields, mistakes: list[Mistake]) -> dict[str, tuple[Node, ...]]:
    values: dict[str, tuple[Node, ...]] = {}
    for key, written in matrix.entries:
        if key.text in _ADDED:
            continue
        if not _NAME.fullmatch(key.text):
            mistakes.append(mistake_at(key, f"expected a name of a-z, 0-9 and _, found {key.text!r}"))
        elif not isinstance(written, Items) or not written.items:
            message = f"expected a list of values for {key.text!r}, found {kind(plain(written))}"
            mistakes.append(mistake_at(written, f"{message}: write [a, b]"))
        else:
            values[key.text] = written.items
            mistakes.extend(_repeated(key.text, written.items))
    return values


def _repeated(name: str, items: tuple[Node, ...]) -> Iterator[Mistake]:
    seen: set[str] = set()
    for item in items:
        if (text := short_text(item)) in seen:
            yield mistake_at(item, f"two values of {name!r} read {text!r} in the case's id: remove one")
        seen.add(text)
        yield from _placeholders_in(item)


def _placeholders_in(node: Node) -> Iterator[Mistake]:
    if isinstance(node, Scalar):
        if found := _PLACEHOLDER.search(node.text):
            yield mistake_at(node, "a matrix value can't hold a placeholder: write it out", found.start())
        return
    for inner in node.items if isinstance(node, Items) else (value for _, value in node.entries):
        yield from _placeholders_in(inner)


def _rows(node: Node | None, mistakes: list[Mistake]) -> tuple[Fields, ...]:
    """The entries of `include` or `exclude`."""
    if node is None:
        return ()
    if not isinstance(node, Items) or not all(isinstance(item, Fields) and item.entries for item in node.items):
        mistakes.append(mistake_at(node, f"expected a list of mappings such as [{{a: 1}}], found {kind(plain(node))}"))
        return ()
    if len(node.items) > MAX_ROWS:
        mistakes.append(
            mistake_at(node, f"expected at most {MAX_ROWS} entries, found {len(node.items)}: split the spec")
        )
        return ()
    rows = tuple(item for item in node.items if isinstance(item, Fields))
    for key, value in (entry for row in rows for entry in row.entries):
        mistakes.extend(_placeholders_in(value))
        if not _NAME.fullmatch(key.text):
            mistakes.append(mistake_at(key, f"expected a name of a-z, 0-9 and _, found {key.text!r}"))
    return rows


def _without(combos: list[dict[str, Node]], row: Fields, mistakes: list[Mistake]) -> list[dict[str, Node]]:
    kept = [combo for combo in combos if not all(_same(combo.get(key.text), value) for key, value in row.entries)]
    if len(kept) == len(combos):
        mistakes.append(mistake_at(row, "no combination matches this `exclude`: correct its values or remove it"))
    return kept


def _extended(combos: list[dict[str, Node]], rows: tuple[Fields, ...]) -> list[dict[str, Node]]:
    original = [dict(combo) for combo in combos]
    extended = [dict(combo) for combo in combos]
    fresh: list[dict[str, Node]] = []
    for row in rows:
        entries = {key.text: value for key, value in row.entries}
        fitting = [
            index
            for index, combo in enumerate(original)
            if all(_same(combo[name], value) for name, value in entries.items() if name in combo)
        ]
        for index in fitting:
            extended[index] |= entries
        if not fitting:
            fresh.append(entries)
    return extended + fresh


def _same(left: Node | None, right: Node) -> bool:
    # repr tells True from 1, which == does not.
    return left is not None and repr(plain(left)) == repr(plain(right))


def short_text(node: Node) -> str:
    """Return a matrix value as it reads in a case's id: printable, without white space, at most 40 characters.

    What had to be cut is told apart by six digits of a hash.
    """
    full = _compact(node)
    text = "".join(char for char in full if char.isascii() and char.isprintable() and not char.isspace())
    text = text.replace("nn.", "").replace("[", "(").replace("]", ")")
    if len(text) <= MAX_TEXT and full.isascii() and text:
        return text
    return text[:MAX_TEXT] + hashlib.sha256(full.encode()).hexdigest()[:6]


def _compact(node: Node) -> str:
    if isinstance(node, Scalar):
        value = node.value
        return (
            {None: "null", True: "true", False: "false"}[value]
            if value is None or isinstance(value, bool)
            else str(value)
        )
    if isinstance(node, Items):
        return f"({','.join(map(_compact, node.items))})"
    return f"{{{','.join(f'{key.text}:{_compact(value)}' for key, value in node.entries)}}}"


def fill(node: Node, filling: Filling) -> Node:
    """Return the tree with every `${name}` replaced; a text that is nothing else takes the value with its type."""
    if isinstance(node, Scalar):
        return _fill_scalar(node, filling) if isinstance(node.value, str) and "${" in node.value else node
    if isinstance(node, Items):
        return replace(node, items=tuple(fill(item, filling) for item in node.items))
    entries: dict[str, tuple[Scalar, Node]] = {}
    for key, value in node.entries:
        filled = _fill_text(key, filling) if "${" in key.text else key
        if filled.text in entries:
            filling.mistakes.append(mistake_at(key, f"key {filled.text!r} is given twice in one mapping: remove one"))
        entries[filled.text] = (filled, fill(value, filling))
    return replace(node, entries=tuple(entries.values()))


def _fill_scalar(node: Scalar, filling: Filling) -> Node:
    whole = _PLACEHOLDER.fullmatch(node.text)
    if whole and whole[1] in filling.values:
        filling.used.add(whole[1])
        return filling.values[whole[1]]
    return _fill_text(node, filling)


def _fill_text(node: Scalar, filling: Filling) -> Scalar:
    """A text with placeholders among other characters; each piece keeps its place in the source."""
    text, done, pieces = node.text, 0, list[Piece]()
    for found in _PLACEHOLDER.finditer(text):
        name, value = found[1], filling.values.get(found[1])
        pieces.append(_piece(node, done, found.start()))
        if value is None:
            message = f"unknown matrix name {name!r} in this combination.{nearest(name, filling.values)}"
            filling.mistakes.append(mistake_at(node, message, found.start()))
        elif not isinstance(value, Scalar):
            message = f"matrix value {name!r} is {kind(plain(value))}: it can only stand for a whole value"
            filling.mistakes.append(mistake_at(node, message, found.start()))
        else:
            filling.used.add(name)
            start = node.pieces[0].locate(node.source, found.start())
            pieces.append(Piece(value.text if isinstance(value.value, str) else _python(value), start, True))
        done = found.end()
    pieces.append(_piece(node, done, len(text)))
    return replace(node, value="".join(piece.text for piece in pieces), pieces=tuple(pieces))


def _python(value: Scalar) -> str:
    """A number or boolean as the Python text that it is put into expects it."""
    return repr(value.value)


def _piece(node: Scalar, start: int, end: int) -> Piece:
    return Piece(node.text[start:end], node.pieces[0].locate(node.source, start))
