"""One method, function or block of a TorchScript program while it is run on the example."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qlib.errors import CaptureError
from qlib.frontends.decisions import Place
from qlib.frontends.scope import Scope

_LINE = re.compile(r'File "([^"]+)", line (\d+)')


class RaisesError(CaptureError):
    """The program raises an exception."""


@dataclass(frozen=True)
class Owner:
    """A module object inside the program."""

    module: Any
    path: str

    def attribute(self, name: str) -> Any:
        """The module, tensor or plain value that the module calls `name`."""
        value = getattr(self.module, name)
        return Owner(value, f"{self.path}.{name}" if self.path else name) if isinstance(value, nn.Module) else value


@dataclass(frozen=True)
class Frame:
    """One method or function being run: where it belongs, where it is written, and the values so far.

    `body` runs a graph or a block on arguments and gives its results. `assigned` holds the attributes that the program
    sets, with the values before and after.
    """

    scope: Scope
    path: str
    body: Callable[[Frame, Any, list[Any]], list[Any]]
    assigned: dict[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)

    def inner(self, path: str) -> Frame:
        """The frame of a method or function that is called from this one."""
        return Frame(self.scope, path, self.body, self.assigned)

    def inputs(self, node: Any) -> list[Any]:
        """The values that a TorchScript node takes."""
        return [self.values[value.unique()] for value in node.inputs()]

    def put(self, node: Any, *results: Any) -> None:
        """Remember a node's results."""
        for value, result in zip(node.outputs(), results, strict=True):
            self.values[value.unique()] = result


def source_of(node: Any) -> str:
    """The innermost line of the user's code, as "file.py:12", or an empty string."""
    for path, number in _LINE.findall(node.sourceRange()):
        if not path.startswith((torch.__path__[0], "<")):
            return f"{path.rpartition('/')[2]}:{number}"
    return ""


def place_of(node: Any) -> str:
    """The line of a node as errors name it."""
    return source_of(node) or "an unknown line"


def inside(frame: Frame, scope: Scope) -> Frame:
    """A frame for a block that may not be taken: it has lists and dicts of its own."""
    values = _private(frame.values, {})
    return replace(frame, scope=scope, assigned=dict(frame.assigned), values=values)


def _private(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, dict) and id(value) not in known:
        items: dict[Any, Any] = {}
        known[id(value)] = items
        items.update({key: _private(item, known) for key, item in value.items()})
    if isinstance(value, list) and id(value) not in known:
        entries: list[Any] = []
        known[id(value)] = entries
        entries.extend(_private(item, known) for item in value)
    if isinstance(value, tuple):
        return tuple(_private(item, known) for item in value)
    return known.get(id(value), value)


def check_containers(frame: Frame, inner: Frame, place: Place) -> None:
    """Refuse changes of lists and dicts in a block that may not be taken."""
    for key, value in frame.values.items():
        if isinstance(value, list | dict) and not _unchanged(value, inner.values[key]):
            raise CaptureError(f"a list or dict is changed in what the data decides at {place}; make a new one instead")


def _unchanged(before: Any, after: Any) -> bool:
    ours, theirs = pytree.tree_flatten(before), pytree.tree_flatten(after)
    return ours[1] == theirs[1] and all(a is b for a, b in zip(ours[0], theirs[0], strict=True))
