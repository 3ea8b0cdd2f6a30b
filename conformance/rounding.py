"""Which rule a backend rounds by: told from its integers and the exact numbers that they came from.

With v the exact number in steps of the scale and z the zero point, shipped kernels round by one of

    half_even          rne(v) + z              IEEE 754 roundTiesToEven, the rule of this suite
    half_even_shifted  rne(v + z)              the zero point added first, so that an odd one turns ties the other way
    half_up            floor(v + 1/2) + z
    half_away          sign(v) floor(|v| + 1/2) + z
    half_away_shifted  the same of v + z
    double             to a finer step 2**-s first, half up, and then half away (gemmlowp's fixed-point multiplication,
                       Jacob et al. 2018, section 2.2; s follows from the multiplier and may differ between channels)

They differ at ties alone, except for the last; so data that is full of ties tells them apart. Where v + z is never
negative (unsigned integers) half_up and half_away_shifted are the same.

A tie says something only where float32 keeps it: where every scale is a power of two and the exact numbers of a tensor
are multiples of one, so small that no way to add them up rounds. Elsewhere a kernel may see either side of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from conformance.compare import Rounding, stored, tie_bound
from conformance.identified import named

# Bits of a float32's fraction.
FRACTION = 24
# Shifts of a fixed-point multiplication; a longer one is indistinguishable from a single rounding.
SHIFTS = range(1, 13)
DOUBLE = "double"


def _half_up(v: Tensor) -> Tensor:
    return torch.floor(v + 0.5)


def _half_away(v: Tensor) -> Tensor:
    return torch.sign(v) * torch.floor(v.abs() + 0.5)


# name -> the integer before saturation, of v and z.
RULES: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {
        "half_even": lambda v, z: torch.round(v) + z,
        "half_even_shifted": lambda v, z: torch.round(v + z),
        "half_up": lambda v, z: _half_up(v) + z,
        "half_away": lambda v, z: _half_away(v) + z,
        "half_away_shifted": lambda v, z: _half_away(v + z),
    }
)


@dataclass(frozen=True)
class Rule:
    """What the integers of a case say of the rounding.

    `names` are the rules that explain every integer, in the order of `RULES`: none where no rule does, several where
    the data holds too few ties to tell. `ties` counts the numbers that lay exactly between two integers.
    """

    names: tuple[str, ...]
    ties: int

    @property
    def tells(self) -> bool:
        """Whether it says anything of a backend: there were ties to go by, or no rule explains the integers."""
        return bool(self.ties) or not self.names

    @property
    def name(self) -> str:
        """The rule, or the few that fit; "undecided" where all do, "none of them" where none does."""
        return named(self.names, RULES)


def identify(roundings: Iterable[Rounding]) -> Rule:
    """The rules that explain all the integers of `roundings`; tensors that stay in float are passed over.

    A number within float32's error of a tie may have gone either way, unless float32 keeps the tie.
    """
    judged = [rounding for rounding in roundings if rounding.zero_point is not None]
    ties = sum(int(_kept_ties(rounding).sum()) for rounding in judged)
    names = [name for name, rule in RULES.items() if all(_explains(rule, rounding) for rounding in judged)]
    if not names and all(_explained_by_two(rounding) for rounding in judged):
        names = [DOUBLE]
    return Rule(tuple(names), ties)


def _kept_ties(rounding: Rounding) -> Tensor:
    """Where the numbers lie exactly between two integers of the range, and every float32 evaluation says so."""
    v, point = rounding.real, rounding.zero_point or 0
    kept = rounding.dyadic and _is_exact_in_float32(rounding)
    return ((v - v.floor()) == 0.5) & kept & (v + point >= rounding.qmin) & (v + point <= rounding.qmax)


def _is_exact_in_float32(rounding: Rounding) -> bool:
    """Whether all numbers are multiples of a power of two by which their terms' sums fit into a float32's fraction."""
    v, largest = rounding.real, float(rounding.magnitude.amax()) if rounding.magnitude.numel() else 0.0
    if not bool(v.isfinite().all()) or not math.isfinite(largest):
        return False
    bits = FRACTION - 1 - math.frexp(largest)[1]
    return bits >= 1 and torch.equal(torch.ldexp(v, torch.tensor(bits)).frac(), torch.zeros_like(v))


def _explains(rule: Callable[[Tensor, int], Tensor], rounding: Rounding) -> bool:
    assert rounding.zero_point is not None
    if rounding.given.shape != rounding.real.shape:
        return False
    given, v = rounding.given.to(torch.float64), rounding.real
    expected = stored(rule(v, rounding.zero_point), rounding)
    boundary = torch.minimum(expected, given) - rounding.zero_point + 0.5
    near = (v - boundary).abs() <= tie_bound(rounding)
    either = ((given - expected).abs() == 1) & near & ~_kept_ties(rounding)
    return bool(((given == expected) | either).all())


def _twice(shift: int) -> Callable[[Tensor, int], Tensor]:
    """Half up to steps of ``2**-shift``, then half away to whole steps."""
    return lambda v, z: _half_away(_half_up(v * 2.0**shift) / 2.0**shift) + z


def _explained_by_two(rounding: Rounding) -> bool:
    """Whether each channel (along the second dimension, else the last) was rounded twice, by a shift of its own."""
    if rounding.real.dim() < 2 or rounding.given.shape != rounding.real.shape:
        return any(_explains(_twice(shift), rounding) for shift in SHIFTS)
    return all(any(_explains(_twice(shift), part) for shift in SHIFTS) for part in _channels(rounding))


def _channels(rounding: Rounding) -> list[Rounding]:
    tensors = (rounding.real, rounding.given, rounding.magnitude.expand_as(rounding.real))
    parts = zip(*(tensor.unbind(1) for tensor in tensors), strict=True)
    return [replace(rounding, real=real, given=given, magnitude=size) for real, given, size in parts]
