"""The names that a spec may use: modes and captures; operators, observers and qconfigs as the caller says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from conformance.errors import nearest

_NAME = re.compile(r"[a-z_][a-z0-9_]*::[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_TOO_CLOSE = 0.85


class Mode(StrEnum):
    """How a model is quantized; in `numerics` it is not: a backend gets a quantized graph and runs it as it is."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    QAT = "qat"
    NUMERICS = "numerics"


class Capture(StrEnum):
    """How a module becomes a graph."""

    EXPORT = "export"
    TRACE = "trace"
    SCRIPT = "script"


@dataclass(frozen=True)
class Vocabulary:
    """The names that a library knows.

    `operators` are canonical quantized names such as `quantized::linear_relu`, `float_operators` known float ones such
    as `aten::linear`, `aliases` map other spellings to either. `observers` and `qconfigs` are plain names.
    """

    operators: frozenset[str]
    float_operators: frozenset[str]
    aliases: Mapping[str, str]
    observers: frozenset[str]
    qconfigs: frozenset[str]


def resolve_operator(name: str, vocabulary: Vocabulary) -> str:
    """Return the canonical name of an operator.

    A `quantized::` name must be known. Any other name may be new, as float operators are many, unless it is so like a
    known one of its namespace, or has just its letters, that it must be a misspelling. Raises ValueError with the
    nearest valid name.
    """
    name = vocabulary.aliases.get(name, name)
    if name in vocabulary.operators or name in vocabulary.float_operators:
        return name
    known = vocabulary.operators | vocabulary.float_operators | vocabulary.aliases.keys()
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected an operator name such as 'aten::linear', found {name!r}.{nearest(name, known)}")
    namespace, _, short = name.partition("::")
    siblings = {other.partition("::")[2]: other for other in known if other.startswith(f"{namespace}::")}
    if namespace == "quantized":
        raise ValueError(f"unknown quantized operator {name!r}.{_suggest(short, siblings, 0.6)}")
    anagrams = {other: full for other, full in siblings.items() if sorted(other) == sorted(short)}
    if hint := _suggest(short, siblings, _TOO_CLOSE) or _suggest(short, anagrams, 0.0):
        raise ValueError(f"unknown operator {name!r}, too like a known one to be meant.{hint}")
    return name


def _suggest(short: str, siblings: Mapping[str, str], cutoff: float) -> str:
    hint = nearest(short, siblings, cutoff)
    return next((hint.replace(repr(s), repr(full)) for s, full in siblings.items() if repr(s) in hint), "")
