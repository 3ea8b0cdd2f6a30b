"""YAML as a tree that remembers where everything stands: YAML 1.2 core values, no tags, anchors, aliases or duplicates.

The parser's events are read rather than its composed nodes, so that depth is bounded before anything recurses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from conformance.errors import Mistake, SpecError

MAX_DEPTH = 50
MAX_SHOWN = 400
# After this many mistakes a file is given up, lest a hostile one takes minutes to refuse.
ENOUGH = 200
# The compiled parser is ten times as fast; both give the same events.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The stubs of PyYAML leave out what events carry.
Event = Any

Value = None | bool | int | float | str
Plain = Value | list["Plain"] | dict[str, "Plain"]

_CORE: tuple[tuple[re.Pattern[str], Callable[[str], Value]], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]{1,40}"), int),
    (re.compile(r"0o[0-7]{1,40}"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]{1,40}"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda _: float("nan")),
)


@dataclass(frozen=True)
class Source:
    """A file's text, by which every position is given."""

    path: str
    text: str

    def mistake(self, index: int, message: str) -> Mistake:
        """Return a mistake at a character of the text, with its line shown unless that is too long to read."""
        start = self.text.rfind("\n", 0, index) + 1
        end = self.text.find("\n", index)
        end = end if end >= 0 else len(self.text)
        line = self.text[start:end] if end - start <= MAX_SHOWN else ""
        return Mistake(self.path, self.text.count("\n", 0, index) + 1, index - start + 1, message, line)


@dataclass(frozen=True)
class Piece:
    """A run of a scalar's text and the index in the source from which it was written.

    `replaced` where the text stands for a placeholder, which is where all of it is shown.
    """

    text: str
    start: int
    replaced: bool = False

    def locate(self, source: Source, offset: int) -> int:
        """Return the index in the source of one character of `text`.

        Indentation, quotes and folding make the source longer than the text, never another order: source that
        doesn't match is skipped, and white space may match any other.
        """
        index = self.start
        if self.replaced:
            return index
        for char in self.text[:offset]:
            index = _seek(source.text, char, index)
            index += source.text[index : index + 1] == char or source.text[index : index + 1].isspace()
        return _seek(source.text, self.text[offset : offset + 1], index)


def _seek(text: str, char: str, index: int) -> int:
    return index if char.isspace() else max(index, text.find(char, index, index + 400))


@dataclass(frozen=True)
class Scalar:
    """One value. `pieces` together are its text: more than one where placeholders were replaced."""

    source: Source
    start: int
    end: int
    value: Value
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The text as it reads, before it was taken for a number."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Items:
    """A list."""

    source: Source
    start: int
    end: int
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Fields:
    """A mapping in the order of the file; `entries` hold each key as a scalar."""

    source: Source
    start: int
    end: int
    entries: tuple[tuple[Scalar, Node], ...]

    def get(self, key: str) -> Node | None:
        """Return the value under a key, or None."""
        return next((value for name, value in self.entries if name.text == key), None)

    def key(self, key: str) -> Scalar | None:
        """Return the key itself as it stands in the file, or None."""
        return next((name for name, _ in self.entries if name.text == key), None)


Node = Scalar | Items | Fields


@dataclass(frozen=True)
class Document:
    """A parsed file, with the mistakes that still left a tree to look at."""

    root: Node
    mistakes: tuple[Mistake, ...]


def mistake_at(node: Node, message: str, offset: int | None = None) -> Mistake:
    """Return a mistake at a node, or at one character of a scalar's text."""
    if not isinstance(node, Scalar) or offset is None:
        return node.source.mistake(node.start, message)
    for piece in node.pieces:
        if offset < len(piece.text):
            return node.source.mistake(piece.locate(node.source, offset), message)
        offset -= len(piece.text)
    return node.source.mistake(max(node.end - 1, node.start), message)


def plain(node: Node) -> Plain:
    """Return the values of a tree as lists, dicts and scalars; keys are texts as they stand in the file."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key.text: plain(value) for key, value in node.entries}


def kind(value: object) -> str:
    """Say what a value is, for a message: "text 'abc'", "a list"."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f"text {value[:60]!r}"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"{str(value).lower()}" if isinstance(value, bool) else f"{value!r}"


def scalar_value(text: str) -> Value:
    """Return what an unquoted YAML 1.2 scalar stands for: null, a boolean, a number or its text."""
    return next((read(text) for pattern, read in _CORE if pattern.fullmatch(text)), text)


def parse(source: Source) -> Document:
    """Parse one YAML document.

    Raises SpecError where the text is no YAML or nests deeper than 50; tags, anchors and duplicate keys are returned
    beside the tree.
    """
    reader = _Reader(source, [])
    try:
        events: Iterator[Event] = yaml.parse(source.text, Loader=_LOADER)
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                root = _node(reader, events, event, 0)
                break
        else:
            raise SpecError([source.mistake(0, "expected a spec, found an empty file")])
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                message = "expected one document in a file, found a second: move it to a file of its own"
                reader.mistakes.append(source.mistake(_start(event), message))
                break
    except yaml.MarkedYAMLError as error:
        raise SpecError([source.mistake(_mark(error), _rephrase(error))]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([source.mistake(0, f"the file is not valid YAML: {_first_line(error)}")]) from None
    return Document(root, tuple(reader.mistakes))


@dataclass(frozen=True)
class _Reader:
    source: Source
    mistakes: list[Mistake]


def _node(reader: _Reader, events: Iterator[Event], event: Event, depth: int) -> Node:
    start = event.start_mark.index
    if len(reader.mistakes) >= ENOUGH:
        raise SpecError(reader.mistakes)
    if depth > MAX_DEPTH:
        raise SpecError([reader.source.mistake(start, f"nested deeper than {MAX_DEPTH} levels: flatten it")])
    if isinstance(event, yaml.AliasEvent):
        message = f"alias *{event.anchor} is not allowed: write the value out, or use `defaults` or a matrix"
        reader.mistakes.append(reader.source.mistake(start, message))
        return Scalar(reader.source, start, start, None, ())
    if event.anchor:
        message = f"anchor &{event.anchor} is not allowed: write the value out, or use `defaults` or a matrix"
        reader.mistakes.append(reader.source.mistake(start, message))
    if event.tag:
        reader.mistakes.append(reader.source.mistake(start, f"tag {event.tag!r} is not allowed: remove it"))
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(reader.source, event)
    if isinstance(event, yaml.SequenceStartEvent):
        return _items(reader, events, event, depth)
    return _fields(reader, events, event, depth)


def _start(event: Event) -> int:
    return int(event.start_mark.index)


def _scalar(source: Source, event: Event) -> Scalar:
    start, end = event.start_mark.index, event.end_mark.index
    value = scalar_value(event.value) if not event.style else event.value
    first = start + 1 if event.style in {"'", '"'} else start
    if event.style in {"|", ">"}:
        first = source.text.find("\n", start) + 1
    return Scalar(source, start, end, value, (Piece(event.value, first),))


def _items(reader: _Reader, events: Iterator[Event], opening: Event, depth: int) -> Items:
    items: list[Node] = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            break
        items.append(_node(reader, events, event, depth + 1))
    start = opening.start_mark.index
    end = event.end_mark.index if opening.flow_style else items[-1].end
    return Items(reader.source, start, end, tuple(items))


def _fields(reader: _Reader, events: Iterator[Event], opening: Event, depth: int) -> Fields:
    entries: dict[str, tuple[Scalar, Node]] = {}
    last = opening.start_mark.index
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        key = _node(reader, events, event, depth + 1)
        value = _node(reader, events, next(events), depth + 1)
        last = value.end
        if not isinstance(key, Scalar) or not key.text:
            reader.mistakes.append(mistake_at(key, "expected text as a key, found something else: write `name: value`"))
        elif key.text in entries:
            reader.mistakes.append(mistake_at(key, f"key {key.text!r} is given twice in one mapping: remove one"))
        else:
            entries[key.text] = (key, value)
    end = event.end_mark.index if opening.flow_style else last
    return Fields(reader.source, opening.start_mark.index, end, tuple(entries.values()))


def _mark(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.index if mark else 0


def _rephrase(error: yaml.MarkedYAMLError) -> str:
    context = f" {error.context}" if error.context else ""
    return f"the file is not valid YAML: {error.problem}{context}; check quotes, brackets and indentation here"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["unreadable"])[0]
