"""How near outputs are to the float model's: measured, and held to the bounds of `expect: accuracy`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from conformance.compare import max_abs, max_quanta, sqnr_db, tally
from conformance.observation import Evidence
from conformance.record import Measures
from conformance.spec import Accuracy

# Of two outputs nearer than this to the float model's, neither is better: 2**-20, a few roundings in float32.
FLOAT32_DB = 120.0


@dataclass(frozen=True)
class Distances:
    """How far outputs are from the float model's: in dB, in steps (None where no output has one), and at most."""

    sqnr_db: float
    max_quanta: float | None
    max_abs: float

    @property
    def text(self) -> str:
        """The three of them for a person."""
        numbers = (self.sqnr_db, self.max_quanta, self.max_abs)
        return "sqnr {} dB, max_quanta {}, max_abs {}".format(
            *("none" if number is None else f"{number:.4g}" for number in numbers)
        )


def distances(evidence: Evidence, outputs: tuple[Tensor, ...]) -> Distances:
    """How far `outputs`, which have the float outputs' shapes, are from those."""
    reference = evidence.float_outputs
    return Distances(
        sqnr_db(reference, outputs), max_quanta(reference, outputs, evidence.quanta), max_abs(reference, outputs)
    )


@dataclass(frozen=True)
class Bounds:
    """What an output is held to: the bounds of `expect:`, the one beside the reference as a number of its own."""

    sqnr_db: float | None
    max_quanta: float | None
    max_abs: float | None
    below_reference_db: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is bounded."""
        return (self.sqnr_db, self.max_quanta, self.max_abs) != (None, None, None)

    def hold(self, far: Distances) -> bool:
        """Whether so far is near enough."""
        # NaN compares false with everything, so that it is never within a bound.
        return (
            (self.sqnr_db is None or far.sqnr_db >= self.sqnr_db)
            and (self.max_quanta is None or _steps(far) <= self.max_quanta)
            and (self.max_abs is None or far.max_abs <= self.max_abs)
        )

    def text(self, reference: float | None) -> str:
        """The bounds for a person, beside what the reference has."""
        said = [
            f"{key} {sign} {value:.6g}"
            for key, sign, value in (
                ("sqnr_db", ">=", self.sqnr_db),
                ("max_quanta", "<=", self.max_quanta),
                ("max_abs", "<=", self.max_abs),
            )
            if value is not None
        ]
        if self.below_reference_db is not None:
            has = "" if reference is None else f", which has {reference:.4g}"
            said.append(f"at most {self.below_reference_db:g} dB below the reference{has}")
        return ", ".join(said)


def bounds_of(stated: Accuracy, reference: float | None) -> Bounds:
    """The bounds; of two on the signal to noise, that of the spec and that of the reference, the higher one."""
    floors = [] if stated.sqnr_db is None else [stated.sqnr_db]
    if stated.below_reference_db is not None and reference is not None:
        floors.append(min(reference, FLOAT32_DB) - stated.below_reference_db)
    return Bounds(max(floors, default=None), stated.max_quanta, stated.max_abs, stated.below_reference_db)


def _steps(far: Distances) -> float:
    """The distance in quanta; outputs that are equal are none apart, whether or not they have a step."""
    if far.max_quanta is None:
        return 0.0 if far.max_abs == 0.0 else math.inf
    return far.max_quanta


def _finite(value: float | None) -> float | None:
    """What JSON has a word for."""
    return value if value is not None and math.isfinite(value) else None


def measure(evidence: Evidence) -> Measures:
    """The numbers of a case, whether or not its spec bounds them."""
    if [x.shape for x in evidence.float_outputs] != [x.shape for x in evidence.outputs]:
        return Measures()
    far = distances(evidence, evidence.outputs)
    counts = tally(evidence.explained.roundings) if evidence.explained is not None else None
    debug = (
        None
        if evidence.debug_outputs is None
        else max_quanta(evidence.debug_outputs, evidence.outputs, evidence.quanta)
    )
    return Measures(
        sqnr_db=_finite(far.sqnr_db),
        max_abs=_finite(far.max_abs),
        max_quanta=_finite(far.max_quanta),
        debug_quanta=_finite(debug),
        exact=counts.exact if counts else None,
        tie=counts.tie if counts else None,
        wrong=counts.wrong if counts else None,
        reference_sqnr_db=_finite(evidence.reference_sqnr_db),
    )
