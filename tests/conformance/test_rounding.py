"""The rule that a backend rounds by is told from its integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conformance.compare import Rounding
from conformance.rounding import RULES, _twice, identify


def made_by(rule: Callable[[Tensor, int], Tensor], v: Tensor, zero_point: int, shift: float = 0.0) -> Rounding:
    given = rule(v + shift, zero_point).clamp(-128, 127)
    return Rounding("y", "op", v, given.to(torch.int8), v.abs(), zero_point, -128, 127, dyadic=True)


HALVES = torch.arange(-40, 41, dtype=torch.float64).reshape(1, -1) / 2


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_told_apart_by_ties(name: str) -> None:
    found = identify([made_by(RULES[name], HALVES, 5)])
    assert found.names == (name,) and found.name == name
    assert found.ties == 40


def test_unsigned_integers_can_not_tell_two_of_them_apart() -> None:
    given = RULES["half_up"](HALVES, 101).to(torch.uint8)
    found = identify([Rounding("y", "op", HALVES, given, HALVES.abs(), 101, 0, 255, dyadic=True)])
    assert found.name == "half_up or half_away_shifted"


@pytest.mark.parametrize("shift", [1, 3, 8])
def test_rounding_twice_is_told_apart(shift: int) -> None:
    v = torch.arange(-8000, 8000, dtype=torch.float64).reshape(1, -1) / 8192
    found = identify([made_by(_twice(shift), v, 5)])
    assert found.name == "double"


def test_channels_may_have_shifts_of_their_own() -> None:
    v = (torch.arange(-4000, 4000, dtype=torch.float64) / 8192).reshape(1, 1, -1).repeat(1, 2, 1)
    parts = [_twice(1)(v[:, 0], 9), _twice(4)(v[:, 1], 9)]
    rounding = Rounding("y", "op", v, torch.stack(parts, 1).to(torch.uint8), v.abs(), 9, 0, 255)
    assert identify([rounding]).name == "double"


@pytest.mark.parametrize("wrong", [torch.floor, torch.ceil, torch.trunc, lambda v: torch.round(v) + 1])
def test_what_no_rule_explains(wrong: Callable[[Tensor], Tensor]) -> None:
    v = torch.arange(-400, 400, dtype=torch.float64).reshape(1, -1) / 64
    found = identify([made_by(lambda x, z: wrong(x) + z, v, 10)])
    assert found.names == () and found.name == "none of them"


def test_without_ties_nothing_is_decided() -> None:
    v = torch.tensor([[0.2, 1.4, -3.3, 7.9]], dtype=torch.float64)
    found = identify([made_by(RULES["half_even"], v, 3)])
    assert found.ties == 0 and set(found.names) == set(RULES) and found.name == "undecided"


def test_beside_a_tie_float32_may_go_either_way() -> None:
    assert "half_even" in identify([made_by(RULES["half_even"], HALVES + 1e-9, 4, shift=-2e-9)]).names
    assert identify([made_by(RULES["half_even"], HALVES + 0.005, 4, shift=-0.01)]).names == ()


def test_all_tensors_must_agree() -> None:
    odd, even = made_by(RULES["half_up"], HALVES, 5), made_by(RULES["half_even"], HALVES, 5)
    assert identify([odd, even]).names == ()


def test_a_tie_that_float32_may_lose_says_nothing() -> None:
    """Scales that are no powers of two, or sums that don't fit, leave a kernel on either side of it."""
    kept = made_by(RULES["half_up"], HALVES, 5)
    assert identify([kept]).ties == 40
    large = replace(kept, magnitude=torch.full_like(HALVES, 2.0**24))
    thirds = replace(kept, real=torch.cat([HALVES, HALVES / 3], 1), given=torch.cat([kept.given, kept.given], 1))
    for lost in (replace(kept, dyadic=False), large, replace(thirds, magnitude=thirds.real.abs())):
        assert identify([lost]).ties == 0
    assert identify([replace(kept, dyadic=False)]).name == "undecided"


def test_ties_outside_of_the_range_say_nothing() -> None:
    v = torch.tensor([[300.5, -300.5, 127.5, 3.0]], dtype=torch.float64)
    assert identify([made_by(RULES["half_even"], v, 0)]).ties == 0


def test_tensors_in_float_and_of_another_shape() -> None:
    in_float = Rounding("y", "op", HALVES, HALVES.float() + 9, HALVES.abs())
    assert set(identify([in_float]).names) == set(RULES)
    cut = Rounding("y", "op", HALVES, HALVES[:, :3].to(torch.uint8), HALVES.abs(), 0, 0, 255)
    assert identify([cut]).names == ()


@given(st.sampled_from(sorted(RULES)), st.integers(-128, 127), st.lists(st.integers(-(2**12), 2**12), min_size=1))
def test_the_rule_that_made_the_integers_is_always_among_those_found(
    name: str, zero_point: int, eighths: list[int]
) -> None:
    v = torch.tensor([eighths], dtype=torch.float64) / 8
    assert name in identify([made_by(RULES[name], v, zero_point)]).names
