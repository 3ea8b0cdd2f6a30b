"""The backends by name: those in this folder, and those that other distributions offer as entry points.

A backend is a function ``(target: str) -> Backend``, found by the name before the colon of `--backend name:target`.
Others are added by an entry point in the group `conformance.backends`; an attribute `targets` of the function, a tuple
of texts, names the targets that `--backend all` runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, cast

from conformance.backend import Backend
from conformance.errors import EnvironmentTrouble, UsageError, nearest

GROUP = "conformance.backends"
ALL = "all"
# The backend that the accuracy of others is compared with.
REFERENCE = "qlib"


class Tier(StrEnum):
    """Which backends `--backend all` runs: the usual ones; the others are run where they are named."""

    USUAL = "usual"
    SLOW = "slow"
    NAMED = "named"
    MINIATURE = "miniature"


class Process(StrEnum):
    """Where a backend's cases run: in the caller's process, or in one of their own that may die or hang."""

    SHARED = "shared"
    OWN = "own"


@dataclass(frozen=True)
class Entry:
    """One row of the table of backends: the factory as "module:function", and the targets it takes, default first.

    `targets` are None where the factory alone knows what it takes.
    """

    factory: str
    targets: tuple[str, ...] | None = ()
    tier: Tier = Tier.USUAL
    process: Process = Process.OWN


# Of torch's quantized kernels.
ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


def _lies(function: str, targets: str = "") -> Entry:
    factory = f"conformance.backends.miniatures:{function}"
    return Entry(factory, tuple(targets.split()), Tier.MINIATURE, Process.SHARED)


def _misbehaves(function: str, targets: str = "") -> Entry:
    return Entry(f"conformance.backends.misbehaving:{function}", tuple(targets.split()), Tier.MINIATURE)


BUILTIN: Mapping[str, Entry] = MappingProxyType(
    {
        "qlib": Entry("conformance.backends.qlib:backend", ("fast", "reference"), process=Process.SHARED),
        "onnxruntime": Entry("conformance.backends.onnxruntime:backend", ("all", "none")),
        "onnx-reference": Entry("conformance.backends.onnx_reference:backend"),
        "openvino": Entry("conformance.backends.openvino:backend", ("lpt", "no-lpt")),
        "torch-jit": Entry("conformance.backends.torch_jit:backend", ENGINES),
        "torch-fx": Entry("conformance.backends.torch_fx:backend", ENGINES),
        "torchao-pt2e": Entry("conformance.backends.torchao_pt2e:reference"),
        "torchao-x86": Entry("conformance.backends.torchao_pt2e:x86"),
        "torchao-inductor": Entry("conformance.backends.torchao_pt2e:inductor", tier=Tier.SLOW),
        "executorch-xnnpack": Entry("conformance.backends.executorch_xnnpack:backend"),
        "litert": Entry("conformance.backends.litert:backend", ("xnnpack", "builtin", "reference")),
        "exec": Entry("conformance.backends.external:backend", None, tier=Tier.NAMED),
        "always-wrong": _lies("always_wrong"),
        "off-by-one": _lies("off_by_one"),
        "float-only": _lies("float_only"),
        "claims-everything": _lies("claims_everything"),
        "undeclared-refusal": _lies("undeclared_refusal"),
        "crashes": _misbehaves("crashes"),
        "hangs": _misbehaves("hangs"),
        "first-call-only": _lies("first_call_only"),
        "bad-output": _lies("bad_output", "shape dtype integers more none nan"),
        "bad-process": _misbehaves(
            "bad_process", "kill exit fork twin orphan print print-much talk-over deaf allocate"
        ),
        "bad-about": _misbehaves("bad_about", "raises exits fickle formless boasts"),
        "too-much": _misbehaves("too_much", "tensor words"),
        "declares-another-scheme": _lies("declares_another_scheme"),
    }
)


def process_of(name: str) -> Process:
    """Where the cases of the backend called `name`, or `name:target`, run.

    Raises UsageError for a name that does not exist.
    """
    return _known(name.partition(":")[0]).process


def target_of(name: str) -> str:
    """The target that a name means: the first of the table where it names none, "" where there are none."""
    stem, _, target = name.partition(":")
    targets = BUILTIN[stem].targets if stem in BUILTIN else None
    return target or next(iter(targets or ()), "")


def offered() -> dict[str, Entry]:
    """Every backend that can be asked for; imports none, so that the targets of other distributions' are not known."""
    offered = {point.name: Entry(point.value, targets=None) for point in entry_points(group=GROUP)}
    return {**offered, **BUILTIN}


def entry_of(name: str) -> Entry:
    """The row of one backend, with its targets.

    Raises UsageError for a name that does not exist, EnvironmentTrouble where another distribution's can't be imported.
    """
    entry = _known(name)
    if name in BUILTIN:
        return entry
    return replace(entry, targets=tuple(getattr(_factory(name, entry), "targets", ())))


def named(backends: Iterable[str], elsewhere: Collection[str] = ()) -> tuple[str, ...]:
    """The backends that the names mean, each once: "all" is every usual one, with each of its targets.

    Raises UsageError for a name that does not exist; those of `elsewhere` are known in other environments.
    """
    wanted = [name for backend in backends for name in (_usual() if backend == ALL else [backend])]
    for name in wanted:
        if (stem := name.partition(":")[0]) not in elsewhere:
            _known(stem)
    return tuple(dict.fromkeys(wanted))


def _usual() -> list[str]:
    found = []
    for name, entry in offered().items():
        try:
            targets = entry_of(name).targets or ()
        except EnvironmentTrouble:  # its cases say so, one by one
            targets = ()
        if entry.tier is Tier.USUAL:
            found += [f"{name}:{target}" for target in targets] or [name]
    return found


def open_backend(name: str) -> Backend:
    """Make the backend called `name`, or `name:target`.

    Raises UsageError for a name or target that does not exist, EnvironmentTrouble where its package can't be imported.
    """
    stem = name.partition(":")[0]
    entry = _known(stem)
    return cast(Backend, _factory(stem, entry)(_checked(stem, target_of(name), entry.targets)))


def _checked(stem: str, target: str, targets: tuple[str, ...] | None) -> str:
    """The target itself; raises UsageError for one that the backend does not have."""
    if targets is None or target in targets or not (target or targets):
        return target
    if not targets:
        raise UsageError(f"backend {stem} has no targets, found {target!r}: leave out the colon")
    raise UsageError(f"backend {stem} has no target {target!r}; expected one of {', '.join(targets)}")


def _known(stem: str) -> Entry:
    known = offered()
    if stem not in known:
        words = [ALL, *known]
        raise UsageError(f"no backend is named {stem!r}.{nearest(stem, words)} Expected one of: {', '.join(words)}")
    return known[stem]


def _factory(stem: str, entry: Entry) -> Any:
    try:
        return EntryPoint(stem, entry.factory, GROUP).load()
    except (ImportError, AttributeError) as error:
        raise EnvironmentTrouble(f"backend {stem!r} can't be imported from {entry.factory} ({error})") from error


def line_of(name: str) -> str:
    """One line on a backend: the first of its factory's docstring, and its targets."""
    entry = entry_of(name)
    doc = (_factory(name, entry).__doc__ or "").strip().partition("\n")[0]
    targets = f" Targets: {', '.join(entry.targets)}." if entry.targets else ""
    return f"{doc}{targets}{' Slow.' if entry.tier is Tier.SLOW else ''}"
