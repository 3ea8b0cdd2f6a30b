"""A case's fingerprint: results of two runs are about the same question where it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from conformance.case import Case

DIGITS = 16
# What a case asks. Its place, its `why` and its deadline may change, and its seed stands in the record by itself.
ASKED = ("mode", "capture", "module", "weights", "calibration", "qconfig", "expect")


def fingerprint(case: Case) -> str:
    """Return 16 hexadecimal digits of the hash of all that a case asks, its matrix's values put in.

    Keys that were left out and have no default count for nothing, so that a new one changes no older case.
    """
    asked = {name: _plain(getattr(case, name)) for name in ASKED}
    asked |= _filled({"qparams": case.qparams})
    # Inputs are given by position, so that their order counts.
    asked["inputs"] = [[name, _plain(each)] for name, each in case.inputs.items()]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _plain(value: Any) -> Any:
    """The value as JSON; equal ones give equal text whatever order their keys were written in."""
    if isinstance(value, BaseModel):
        return _filled(dict(value))
    if is_dataclass(value) and not isinstance(value, type):
        kept = {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
        return {type(value).__name__: _filled(kept)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Set):
        return sorted(str(each) for each in value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: _plain(each) for name, each in values.items() if each is not None}
    return {name: each for name, each in plain.items() if each not in ([], {})}
