"""What was concluded from one case, as it is kept and shown. Data only; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

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
    `yaml` the spec as it stands in its file, `fingerprint` a hash of what the case asks, empty in older files.
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


@dataclass(frozen=True)
class Measures:
    """Numbers taken from one case; None where there was nothing to measure.

    `sqnr_db` final against float in dB; `max_abs` the largest absolute difference from float;
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


@dataclass(frozen=True)
class Record:
    """One case on one backend: one line of a results file.

    `known` is the reason of the known failure that it is, `lapsed` that of one which it was until the entry expired.
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
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Rebuild a record from `to_json`; unknown keys raise TypeError."""
        findings = tuple(Finding(f["check"], Outcome(f["outcome"]), f["expected"], f["got"]) for f in data["findings"])
        rest = {k: v for k, v in data.items() if k not in {"subject", "verdict", "findings", "measures", "notes"}}
        return cls(
            subject=Subject(**data["subject"]),
            verdict=Verdict(data["verdict"]),
            findings=findings,
            measures=Measures(**data["measures"]),
            notes=tuple(data["notes"]),
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
class Run:
    """The head of a results file.

    `planned` counts the records to come, one for each case and backend, 0 if unknown. `cases` are those of the whole
    plan, id to fingerprint, of which `shard` (such as "2/3") says what share this file holds; None for all.
    `versions` are those that each backend says of itself.
    """

    environment: Environment
    backends: tuple[str, ...]
    planned: int
    command: str
    started: str
    cases: Mapping[str, str] = field(default_factory=dict)
    shard: str | None = None
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    debt: tuple[Debt, ...] = ()


def subject_of(case: Case) -> Subject:
    """What a record says of its case."""
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
    )
