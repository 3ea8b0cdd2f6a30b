from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conformance.compare import FLOAT32_ERROR, Rounding, Tally, classify, max_abs, max_quanta, off_grid, sqnr_db, tally


def rounding(real: list[float], given: list[int], zero_point: int = 0, qmin: int = 0, qmax: int = 255) -> Rounding:
    exact = torch.tensor(real, dtype=torch.float64)
    return Rounding("node", "aten.op", exact, torch.tensor(given), exact.abs(), zero_point, qmin, qmax)


def counts(found: Tally) -> tuple[int, int, int]:
    return found.exact, found.tie, found.wrong


def test_the_right_integer_is_exact() -> None:
    assert counts(classify(rounding([1.4, 1.6, 2.5, 3.5], [1, 2, 2, 4]))) == (4, 0, 0)


def test_the_other_neighbour_of_an_exact_tie_is_a_tie() -> None:
    assert counts(classify(rounding([2.5, 3.5], [3, 3]))) == (0, 2, 0)


def test_a_neighbour_away_from_the_boundary_is_wrong() -> None:
    found = classify(rounding([1.4, 100.0], [2, 100]))
    assert counts(found) == (1, 0, 1)
    assert found.worst == 1.0
    assert found.where == "node (aten.op)"


def test_the_far_neighbour_of_a_tie_is_wrong() -> None:
    assert counts(classify(rounding([2.5], [1]))) == (0, 0, 1)


def test_saturation_is_part_of_what_is_right() -> None:
    assert counts(classify(rounding([300.0, -7.0, 254.4], [255, 0, 254]))) == (3, 0, 0)
    assert counts(classify(rounding([300.0], [44]))) == (0, 0, 1)


def test_truncation_is_found_out() -> None:
    real = [n + 0.7 for n in range(50)]
    assert classify(rounding(real, [math.floor(r) for r in real])).wrong == 50


def test_a_zero_point_that_is_off_by_one_is_found_out() -> None:
    assert classify(rounding([1.2, -3.4], [12, 8], zero_point=10)).wrong == 2


def test_a_wrong_shape_is_wrong_everywhere() -> None:
    real = torch.zeros(4, dtype=torch.float64)
    found = classify(Rounding("n", "o", real, torch.zeros(2), real, 0, 0, 255))
    assert (found.wrong, found.worst) == (4, math.inf)


@given(st.floats(-200, 200), st.integers(-50, 50))
def test_rounding_by_the_contract_is_always_exact(value: float, zero_point: int) -> None:
    stored = min(max(round(value) + zero_point, -128), 127)
    assert counts(classify(rounding([value], [stored], zero_point, -128, 127))) == (1, 0, 0)


@given(st.integers(-100, 100), st.floats(-0.49, 0.49))
def test_ties_are_excused_within_the_float32_bound_and_nowhere_else(whole: int, offset: float) -> None:
    value = whole + offset
    neighbour = whole + (1 if offset >= 0 else -1)
    bound = FLOAT32_ERROR * (abs(value) + 1)
    found = classify(rounding([value], [neighbour], qmin=-128, qmax=127))
    assert found.tie == (abs(abs(offset) - 0.5) <= bound)


def test_floats_are_judged_by_the_float32_bound() -> None:
    real = torch.tensor([1.0, 2.0], dtype=torch.float64)
    near = Rounding("n", "o", real, real.float() * (1 + 2**-23), real)
    far = Rounding("n", "o", real, real.float() * (1 + 2**-15), real)
    assert counts(classify(near)) == (2, 0, 0)
    assert counts(classify(far)) == (0, 0, 2)
    assert classify(Rounding("n", "o", real, real.float() * math.nan, real)).wrong == 2


def test_what_is_no_number_is_stored_as_the_least_integer() -> None:
    nothing = torch.full((3,), math.nan, dtype=torch.float64)
    found = classify(Rounding("n", "o", nothing, torch.tensor([0, 1, 128], dtype=torch.uint8), nothing, 128, 0, 255))
    assert (found.exact, found.wrong) == (1, 2)


def test_tallies_add_up_and_keep_the_worst() -> None:
    found = tally([rounding([1.4], [2]), rounding([5.0, 2.5], [9, 3])])
    assert (found.exact, found.tie, found.wrong, found.worst) == (0, 1, 2, 4.0)


def test_sqnr_of_a_hundredth_is_forty_db() -> None:
    signal = [torch.full((10,), 1.0)]
    assert sqnr_db(signal, [torch.full((10,), 1.01)]) == pytest.approx(40.0, abs=1e-4)


def test_sqnr_where_it_has_no_number() -> None:
    zero, one = [torch.zeros(3)], [torch.ones(3)]
    assert sqnr_db(one, one) == math.inf
    assert sqnr_db(zero, one) == -math.inf
    assert sqnr_db(one, zero) == 0.0
    assert math.isnan(sqnr_db([torch.zeros(0)], [torch.zeros(0)]))
    assert math.isnan(sqnr_db(one, [torch.full((3,), math.nan)]))
    assert math.isnan(sqnr_db(one, [torch.full((3,), math.inf)]))


def test_distances() -> None:
    a, b = [torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.5])]
    assert max_abs(a, b) == 0.5
    assert max_quanta(a, b, [0.25]) == 2.0
    assert max_quanta(a, b, [None]) is None
    assert max_abs([torch.zeros(0)], [torch.zeros(0)]) == 0.0
    assert max_abs([torch.tensor([math.inf, 1.0])], [torch.tensor([math.inf, 0.5])]) == 0.5
    assert max_abs([torch.tensor([math.inf])], [torch.tensor([-math.inf])]) == math.inf


def test_floats_lie_off_the_grid_and_integers_on_it() -> None:
    step = 0.1
    assert off_grid([torch.arange(-5, 5) * step], [step]) < 1e-5
    assert off_grid([torch.tensor([0.14])], [step]) == pytest.approx(0.4, abs=1e-5)
    assert off_grid([torch.tensor([0.14])], [None]) == 0.0
