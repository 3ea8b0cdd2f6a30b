"""The backends by name: those in this folder, and those that other distributions offer as entry points.

A backend is a function ``(target: str) -> Backend``, found by the name before the colon of `--backend name:target`.
Others are added by an entry point in the group `conformance.backends`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import cast

from conformance.backend import Backend
from conformance.errors import EnvironmentTrouble, UsageError, nearest

GROUP = "conformance.backends"

_MINIATURES = "conformance.backends.miniatures"

BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        "qlib": "conformance.backends.qlib:backend",
        "onnxruntime": "conformance.backends.onnxruntime:backend",
        "executorch-xnnpack": "conformance.backends.executorch_xnnpack:backend",
        "litert": "conformance.backends.litert:backend",
        "always-wrong": f"{_MINIATURES}:always_wrong",
        "off-by-one": f"{_MINIATURES}:off_by_one",
        "float-only": f"{_MINIATURES}:float_only",
        "claims-everything": f"{_MINIATURES}:claims_everything",
        "undeclared-refusal": f"{_MINIATURES}:undeclared_refusal",
        "crashes": f"{_MINIATURES}:crashes",
        "hangs": f"{_MINIATURES}:hangs",
        "first-call-only": f"{_MINIATURES}:first_call_only",
    }
)


def names() -> dict[str, str]:
    """Every backend that can be asked for, with the factory that makes it."""
    offered = {point.name: point.value for point in entry_points(group=GROUP)}
    return {**offered, **BUILTIN}


def open_backend(name: str) -> Backend:
    """Make the backend called `name`, or `name:target`.

    Raises UsageError for a name that does not exist, EnvironmentTrouble where its package can't be imported.
    """
    stem, _, target = name.partition(":")
    known = names()
    if stem not in known:
        raise UsageError(f"no backend is named {stem!r}.{nearest(stem, known)} Expected one of: {', '.join(known)}")
    try:
        factory = EntryPoint(stem, known[stem], GROUP).load()
    except (ImportError, AttributeError) as error:
        raise EnvironmentTrouble(f"backend {stem!r} can't be imported from {known[stem]} ({error})") from error
    return cast(Backend, factory(target))


def first_line(name: str) -> str:
    """The one-line docstring of a backend's factory."""
    module, _, function = names()[name].partition(":")
    doc = getattr(import_module(module), function).__doc__ or ""
    return str(doc).strip().partition("\n")[0]
