"""Comparing numbers: signal to noise, distances in quanta, and each rounding told apart as exact, tie or wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A float32 evaluation of one operator: so many roundings at most, each of half a unit in the last place.
FLOAT32_ERROR = 8 * 2.0**-24


@dataclass(frozen=True)
class Rounding:
    """One tensor that a form computed, and the exact numbers it should have come from.

    `real` (float64) is the exact number: in steps of the scale and without the zero point where there is a
    `zero_point`, in real units where that is None. `given` is what the form made of it. `magnitude` bounds the terms
    that were added up to it. `dyadic` says that every scale of the model is a power of two.
    """

    name: str
    operator: str
    real: Tensor
    given: Tensor
    magnitude: Tensor
    zero_point: int | None = None
    qmin: int = 0
    qmax: int = 0
    dyadic: bool = False


@dataclass(frozen=True)
class Tally:
    """How many roundings were exact, ties and wrong; `worst` is the largest error of a wrong one, `where` its operator.

    `worst` is in quanta for integers, and in multiples of the float32 error bound for tensors that stay in float.
    """

    exact: int = 0
    tie: int = 0
    wrong: int = 0
    worst: float = 0.0
    where: str = ""

    @property
    def all(self) -> int:
        """How many values were judged."""
        return self.exact + self.tie + self.wrong

    def __add__(self, other: Tally) -> Tally:
        """Both tallies as one."""
        worst = self if self.worst >= other.worst else other
        return Tally(self.exact + other.exact, self.tie + other.tie, self.wrong + other.wrong, worst.worst, worst.where)


def stored(integers: Tensor, rounding: Rounding) -> Tensor:
    """What is stored of rounded numbers: they are saturated, and NaN is the least integer."""
    return integers.clamp(rounding.qmin, rounding.qmax).where(~integers.isnan(), rounding.qmin)


def tie_bound(rounding: Rounding) -> Tensor:
    """How far from a boundary, in steps, a number may lie whose float32 evaluation falls on its other side.

    ``8 * 2**-24 * (magnitude + |zero_point| + 1)``, for a tensor that is stored as integers.
    """
    assert rounding.zero_point is not None
    return FLOAT32_ERROR * (rounding.magnitude + abs(rounding.zero_point) + 1.0)


def classify(rounding: Rounding) -> Tally:
    """Tell apart the roundings of one tensor.

    With v the exact number in steps: *exact* is ``clamp(round_half_even(v) + zero_point)``; a neighbour of it is a
    *tie* where v lies within `tie_bound` of the boundary between the two. Everything else is *wrong*. Tensors that stay
    in float are exact within ``8 * 2**-24 * magnitude``, and else wrong. A wrong shape is wrong everywhere.
    """
    place = f"{rounding.name} ({rounding.operator})"
    if rounding.given.shape != rounding.real.shape:
        return Tally(
            wrong=max(rounding.real.numel(), 1), worst=math.inf, where=f"{place}: shape {tuple(rounding.given.shape)}"
        )
    given = rounding.given.to(torch.float64)
    if rounding.zero_point is None:
        return _classify_float(rounding, given, place)
    expected = stored(torch.round(rounding.real) + rounding.zero_point, rounding)
    difference = (given - expected).abs()
    exact = difference == 0
    # The boundary between the expected integer and its neighbour lies half a step from the expected one.
    boundary = torch.minimum(expected, given) - rounding.zero_point + 0.5
    tie = (difference == 1) & ((rounding.real - boundary).abs() <= tie_bound(rounding))
    wrong = ~(exact | tie)
    worst = float(torch.where(wrong, difference, 0.0).nan_to_num(math.inf).amax()) if difference.numel() else 0.0
    return Tally(int(exact.sum()), int(tie.sum()), int(wrong.sum()), worst, place if worst else "")


def _classify_float(rounding: Rounding, given: Tensor, place: str) -> Tally:
    bound = FLOAT32_ERROR * rounding.magnitude + torch.finfo(torch.float32).tiny
    error = ((given - rounding.real).abs() / bound).nan_to_num(math.inf)
    wrong = error > 1.0
    worst = float(torch.where(wrong, error, 0.0).amax()) if error.numel() else 0.0
    return Tally(int((~wrong).sum()), 0, int(wrong.sum()), worst, place if worst else "")


def tally(roundings: Iterable[Rounding]) -> Tally:
    """The tallies of several tensors as one."""
    return sum((classify(rounding) for rounding in roundings), Tally())


def sqnr_db(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Signal to quantization noise in dB over all tensors: ``10 log10(sum(a**2) / sum((a - b)**2))``, a the reference.

    Infinite where they are equal, minus infinite where only the reference is zero, NaN where there is nothing to
    compare or `other` is not finite.
    """
    signal = noise = 0.0
    elements = 0
    for a, b in zip(reference, other, strict=True):
        signal += float(a.double().square().sum())
        noise += float((a.double() - b.double()).square().sum())
        elements += a.numel()
    if elements == 0 or not math.isfinite(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def max_abs(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest absolute difference over all tensors; 0 for empty ones, NaN where one side is.

    Infinities at the same places are no distance apart.
    """
    pairs = [(a.double(), b.double()) for a, b in zip(reference, other, strict=True) if a.numel()]
    differences = [(a - b).abs().where(a != b, 0.0).amax() for a, b in pairs]
    return float(torch.stack(differences).amax()) if differences else 0.0


def max_quanta(reference: Sequence[Tensor], other: Sequence[Tensor], quanta: Sequence[float | None]) -> float | None:
    """The largest absolute difference in steps of each output's scale; None where no output has one."""
    found = [max_abs([a], [b]) / step for a, b, step in zip(reference, other, quanta, strict=True) if step is not None]
    return max(found, key=lambda d: math.inf if math.isnan(d) else d) if found else None


def off_grid(outputs: Sequence[Tensor], quanta: Sequence[float | None]) -> float:
    """How far from a multiple of its step a quantized output's value lies at most, in quanta; 0 for what can be 8 bits.

    A tensor that was computed in float lies anywhere between the multiples.
    """
    worst = 0.0
    for x, step in zip(outputs, quanta, strict=True):
        if step is not None and x.numel():
            steps = x.double() / step
            worst = max(worst, float((steps - steps.round()).abs().amax()))
    return worst
