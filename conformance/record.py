"""What was concluded from one case, as it is kept and shown. Data only; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from conformance.facets import facets
from conformance.fingerprint import fingerprint

if TYPE_CHECKING:
    from conformance.case import Case


class Verdict(StrEnum):
    """What a record says about a case; see section 'Verdicts' of ARCHITECTURE.md."""

    NATIVE = "native"
    FALLBACK = "fallback"
    WRONG = "wrong"
    UNSUPPORTED = "unsupported"
    CRASH = "crash"
    TIMEOUT = "timeout"
    ERROR = "error"
    VACUOUS = "vacuous"


class Outcome(StrEnum):
    """How one check ended: it held, it failed, or it could not have failed."""

    HELD = "held"
    FAILED = "failed"
    VACUOUS = "vacuous"


@dataclass(frozen=True)
class Finding:
    """One check's result: `expected` and `got` are short texts for a person."""

    check: str
    outcome: Outcome
    expected: str
    got: str


@dataclass(frozen=True)
class Environment:
    """What the run ran on; one of these heads every results file."""

    suite: str
    python: str
    platform: str
    cpu: str
    isa: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """Which case a record is about, with all that a report shows of it.

    `family` is the suite that the spec belongs to, `parameters` the matrix values as text,
    `yaml` the spec as it stands in its file, `fingerprint` a hash of what the case asks, `dtype` and `granularity`
    what it quantizes (see `conformance.facets`); these three are empty in older files.
    """

    case: str
    family: str
    spec: str
    mode: str
    capture: str
    parameters: Mapping[str, str]
    seed: int
    why: str
    path: str
    line: int
    yaml: str
    fingerprint: str = ""
    dtype: str = ""
    granularity: str = ""


@dataclass(frozen=True)
class Measures:
    """Numbers taken from one case; None where there was nothing to measure.

    `sqnr_db` final against float in dB, `reference_sqnr_db` the bundled library's on the same case, where the spec
    compares the two or it alone could tell whether 8 bits ran; `max_abs` the largest absolute difference from float;
    `max_quanta` the same in steps of the output scale; `exact`, `tie`, `wrong` count the
    roundings of the final form, judged one by one against exact arithmetic.
    """

    sqnr_db: float | None = None
    max_abs: float | None = None
    max_quanta: float | None = None
    debug_quanta: float | None = None
    exact: int | None = None
    tie: int | None = None
    wrong: int | None = None
    reference_sqnr_db: float | None = None


@dataclass(frozen=True)
class Layer:
    """One tensor of a quantized model: what each form of the model made of it, in numbers.

    `name` is its own and `tensor` that in the float graph, which two layers share where one tensor is quantized in two
    ways. `made_of` names the layers that it was computed from, `group` the tensor whose parameters it shares. `low` and
    `high` are its range in the float model. `saturated` counts the elements that lay outside of what its
    integers can hold. `sqnr_debug_db` and `sqnr_final_db` compare the forms with the float model, infinite where they
    are equal; the latter is None where the final form has no such tensor. `differing` counts the elements of which
    debug and final form have different integers (or float numbers further apart than float32's error); `tie` and
    `wrong` count the roundings of both forms here, each judged by itself. What is not known is None, and so are the
    parameters of a tensor that stays in float; `scale` and `zero_point` are also None where each row has its own.
    """

    name: str
    tensor: str
    operator: str
    module: str
    source: str
    group: str
    made_of: tuple[str, ...]
    low: float
    high: float
    scale: float | None
    zero_point: int | None
    qmin: int | None
    qmax: int | None
    saturated: int | None
    sqnr_debug_db: float
    sqnr_final_db: float | None
    elements: int
    differing: int | None
    tie: int | None
    wrong: int | None

    @property
    def sqnr_db(self) -> float:
        """How near to float the form is that has the tensor: the final form, else the debug form."""
        return self.sqnr_debug_db if self.sqnr_final_db is None else self.sqnr_final_db

    def to_json(self) -> dict[str, Any]:
        """The layer as plain JSON values, for which infinity is a text."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        """Rebuild a layer from `to_json`; unknown keys raise TypeError."""
        numbers = ("low", "high", "sqnr_debug_db", "sqnr_final_db")
        read = {key: None if data[key] is None else float(data[key]) for key in numbers}
        return cls(**{**data, **read, "made_of": tuple(data["made_of"])})


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Record:
    """One case on one backend: one line of a results file.

    `known` is the reason of the known failure that it is, `lapsed` that of one which it was until the entry expired.
    `properties` are what the case shows of the backend's arithmetic, such as ``{"rounding": "half_even"}``.
    `histogram` counts the output's integers by how many quanta they are off the exact ones, ``{"-1": 3, "0": 253}``.
    `stderr` is what the backend's libraries printed while the case ran.
    """

    subject: Subject
    backend: str
    verdict: Verdict
    stage: str | None = None
    findings: tuple[Finding, ...] = ()
    error: str | None = None
    known: str | None = None
    lapsed: str | None = None
    expected_ops: Mapping[str, int] = field(default_factory=dict)
    float_ops: Mapping[str, int] = field(default_factory=dict)
    executed_ops: Mapping[str, int] = field(default_factory=dict)
    native_ops: Mapping[str, int] = field(default_factory=dict)
    measures: Measures = Measures()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    histogram: Mapping[str, int] = field(default_factory=dict)
    stderr: str = ""

    @property
    def failed(self) -> bool:
        """True where the run must not be called a success.

        A known failure counts as expected, and a case that was known to fail and did not as a failure. What a backend
        has declared that it can't do is no failure; reports count it by itself.
        """
        bad = self.verdict not in (Verdict.NATIVE, Verdict.UNSUPPORTED)
        return (bad and self.known is None) or self.unexpected_pass

    @property
    def unexpected_pass(self) -> bool:
        """True for a case that a known failure was recorded for and that passes now."""
        return self.verdict is Verdict.NATIVE and self.known is not None

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; `from_json` is its inverse."""
        return {**asdict(replace(self, layers=())), "layers": [layer.to_json() for layer in self.layers]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Rebuild a record from `to_json`; unknown keys raise TypeError."""
        findings = tuple(Finding(f["check"], Outcome(f["outcome"]), f["expected"], f["got"]) for f in data["findings"])
        typed = {"subject", "verdict", "findings", "measures", "notes", "layers"}
        rest = {k: v for k, v in data.items() if k not in typed}
        return cls(
            subject=Subject(**data["subject"]),
            verdict=Verdict(data["verdict"]),
            findings=findings,
            measures=Measures(**data["measures"]),
            notes=tuple(data["notes"]),
            layers=tuple(Layer.from_json(layer) for layer in data.get("layers", ())),
            **rest,
        )


@dataclass(frozen=True)
class Debt:
    """The known failures that a backend's file lists, as they were when a run started.

    `entries` counts all, `expired` those after their date, `elsewhere` those for other versions; `oldest` is the
    earliest date that an entry was written, None where none says.
    """

    backend: str
    entries: int
    expired: int = 0
    elsewhere: int = 0
    oldest: str | None = None


@dataclass(frozen=True)
class Declared:
    """What a backend says of itself; sorted, as JSON keeps it. See `conformance.backend.About`."""

    versions: Mapping[str, str] = field(default_factory=dict)
    modes: tuple[str, ...] = ()
    captures: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The head of a results file.

    `planned` counts the records to come, one for each case and backend, 0 if unknown. `cases` are those of the whole
    plan, id to fingerprint, of which `shard` (such as "2/3") says what share this file holds; None for all.
    `declared` is what each backend says of itself.
    """

    environment: Environment
    backends: tuple[str, ...]
    planned: int
    command: str
    started: str
    cases: Mapping[str, str] = field(default_factory=dict)
    shard: str | None = None
    declared: Mapping[str, Declared] = field(default_factory=dict)
    debt: tuple[Debt, ...] = ()

    @property
    def versions(self) -> dict[str, dict[str, str]]:
        """The versions that each backend says of itself."""
        return {name: dict(said.versions) for name, said in self.declared.items()}


def subject_of(case: Case) -> Subject:
    """What a record says of its case."""
    asked = facets(case)
    return Subject(
        case=case.id,
        family=case.suite,
        spec=case.spec_id,
        mode=str(case.mode),
        capture=str(case.capture),
        parameters=dict(case.parameters),
        seed=case.seed,
        why=case.why,
        path=case.path,
        line=case.line,
        yaml=case.yaml,
        fingerprint=fingerprint(case),
        dtype=asked.dtype,
        granularity=asked.granularity,
    )
