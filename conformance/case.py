"""A case: one spec in one mode, by one capture, with one combination of its matrix's values."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from conformance.errors import UsageError, nearest
from conformance.load import LoadedSpec, SpecFile, Variant
from conformance.source import ModuleSource
from conformance.spec import (
    Calibration,
    Capture,
    Draw,
    Mode,
    ModeExpect,
    QConfigModel,
    TensorQParams,
    TensorSpec,
    flows,
    narrow,
)


@dataclass(frozen=True)
class Case:
    """Everything that running one case needs.

    `parameters` are the matrix's values as short texts, in the matrix's order. `qconfig` is None for the mode's own,
    `timeout` in seconds, `seed` the same for all modes and captures of a spec. `path`, `line` and `yaml` say where the
    spec stands and how it reads. `qparams` are those of a graph that is written out, by the names of inputs and
    constants and as `output_0` and so on, None for a result in float; inputs and weights are drawn as such integers.
    """

    suite: str
    spec_id: str
    why: str
    mode: Mode
    capture: Capture
    parameters: Mapping[str, str]
    module: ModuleSource
    inputs: Mapping[str, TensorSpec]
    weights: Mapping[str, Draw]
    qparams: Mapping[str, TensorQParams | None]
    calibration: Calibration
    qconfig: QConfigModel | None
    expect: ModeExpect
    timeout: float | None
    seed: int
    path: str
    line: int
    yaml: str

    @property
    def id(self) -> str:
        """The name of the case, stable and unique: `suite::spec[mode-capture-key=value]`."""
        return f"{self.suite}::{self.spec_id}[{_tail(self)}]"


def _tail(case: Case) -> str:
    return "-".join([case.mode, case.capture, *_pairs(case.parameters)])


def _pairs(parameters: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in parameters.items()]


def item_name(case: Case, backend: str) -> str:
    """Return a case's name among tests: `spec[backend-mode-capture-key=value]`."""
    return f"{case.spec_id}[{backend}-{_tail(case)}]"


def expand(spec_file: SpecFile) -> tuple[Case, ...]:
    """Return a file's cases: specs in the file's order, then matrix combinations, modes, captures.

    In the mode numerics a quantized graph is given, so that there is one case and not one for each capture.
    """
    return tuple(
        _case(spec_file, loaded, variant, flow)
        for loaded in spec_file.cases
        for variant in loaded.variants
        for flow in flows(variant.spec)
    )


def _case(spec_file: SpecFile, loaded: LoadedSpec, variant: Variant, flow: tuple[Mode, Capture]) -> Case:
    spec, (mode, capture) = variant.spec, flow
    return Case(
        suite=spec_file.suite,
        spec_id=spec.id,
        why=spec.why,
        mode=mode,
        capture=capture,
        parameters=variant.parameters,
        module=variant.module,
        inputs=spec.inputs,
        weights=spec.parameters,
        qparams=variant.qparams,
        calibration=spec.calibration,
        qconfig=spec.qconfig,
        expect=narrow(spec.expect, mode),
        timeout=spec.timeout,
        seed=_seed(f"{spec_file.suite}::{spec.id}[{'-'.join(_pairs(variant.parameters))}]"),
        path=spec_file.path,
        line=loaded.line,
        yaml=loaded.yaml,
    )


def _seed(name: str) -> int:
    """The first four bytes of a name's hash; modes and captures are no part of it, so that they see equal numbers."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def select(
    cases: Iterable[Case], *, modes: Collection[str] = (), captures: Collection[str] = (), text: str = ""
) -> tuple[Case, ...]:
    """Return the cases of the given modes and captures whose id contains `text`; what is empty selects all."""
    return tuple(
        case
        for case in cases
        if (not modes or case.mode in modes) and (not captures or case.capture in captures) and text in case.id
    )


def find_case(cases: Iterable[Case], name: str) -> Case:
    """Return the case that a name means.

    A name is an id with or without its suite, an item's name with its backend and perhaps its file before it, or the
    beginning of any of these that no other case shares. Raises UsageError where none or several fit.
    """
    known = tuple(cases)
    file, _, rest = name.rpartition(".qspec.yaml::")
    within = [case for case in known if not file or _same_file(case.path, f"{file}.qspec.yaml")]
    wanted = rest if file else name
    exact = [case for case in within if wanted in _names(case) or _without_backend(wanted) in _names(case)]
    fitting = exact or [case for case in within if any(each.startswith(wanted) for each in _names(case))]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        spellings = [each for case in known for each in _names(case)]
        raise UsageError(f"no case is named {name!r}.{nearest(wanted, spellings)}")
    shown = "\n  ".join(case.id for case in fitting[:10])
    more = f"\n  and {len(fitting) - 10} more" if len(fitting) > 10 else ""
    raise UsageError(f"{len(fitting)} cases fit {name!r}, expected one; say which:\n  {shown}{more}")


def _names(case: Case) -> tuple[str, str]:
    return case.id, case.id.partition("::")[2]


def _without_backend(name: str) -> str:
    """`spec[backend-static-export]` as `spec[static-export]`; a backend's own name may hold dashes."""
    spec, bracket, tail = name.partition("[")
    parts = tail.split("-")
    start = next((index for index, part in enumerate(parts) if part.rstrip("]") in set(Mode)), 0)
    return f"{spec}{bracket}{'-'.join(parts[start:])}"


def _same_file(path: str, wanted: str) -> bool:
    """True where `wanted` is the end of the path, or the other way round, in whole parts."""
    longer, shorter = sorted((PurePath(path).parts, PurePath(wanted).parts), key=len, reverse=True)
    return longer[len(longer) - len(shorter) :] == shorter
