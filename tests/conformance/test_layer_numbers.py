"""A model's tensors in numbers, and what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conformance.backend import LayerValues
from conformance.compare import Rounding
from conformance.layers import measure_layer
from conformance.record import Layer
from conformance.report.layers import decibels, number, step, story, title, where

REAL = torch.tensor([-1.0, 0.25, 0.5, 3.0])


def values(debug: Tensor, final: Tensor | None, unrounded: Tensor = REAL) -> LayerValues:
    parameters = (torch.tensor(0.25), torch.tensor(4), 0, 7)
    return LayerValues(
        "q", "relu", "quantized::relu", "act", "", "conv", ("p",), REAL, debug, final, unrounded, *parameters
    )


def rounding(given: list[int], real: list[float]) -> Rounding:
    exact = torch.tensor(real, dtype=torch.float64)
    return Rounding("q", "aten.relu", exact, torch.tensor(given), exact.abs(), 4, 0, 7)


def layer(name: str, sqnr: float, *made_of: str) -> Layer:
    return Layer(
        name, f"t_{name}", "quantized::add", "", "model.py:3", f"t_{name}", made_of,
        -1.0, 1.0, 0.1, 0, -128, 127, 0, sqnr, sqnr, 10, 0, 0, 0,
    )  # fmt: skip


def test_the_numbers_of_a_layer() -> None:
    stored = torch.tensor([-1.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    found = measure_layer(values(stored, stored), [rounding([0, 5, 6, 7], [-4.0, 1.0, 2.0, 12.0])])
    assert (found.low, found.high, found.scale, found.zero_point) == (-1.0, 3.0, 0.25, 4)
    assert (found.elements, found.saturated, found.differing, found.tie, found.wrong) == (4, 1, 0, 0, 0)
    signal, noise = 1.0 + 0.0625 + 0.25 + 9.0, 2.25**2
    assert found.sqnr_debug_db == found.sqnr_final_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-5)


def test_an_element_just_at_the_end_of_the_range_is_not_saturated() -> None:
    # Steps -4.5 and 3.5 from the zero point are the last that still round to the ends.
    edge = torch.tensor([-1.125, 0.875, -1.13, 0.88])
    assert measure_layer(values(REAL, None, edge)).saturated == 2


def test_where_the_forms_have_different_integers() -> None:
    debug, final = torch.tensor([-1.0, 0.25, 0.5, 0.75]), torch.tensor([-1.0, 0.5, 0.5, 0.5])
    found = measure_layer(values(debug, final), [rounding([0, 6, 6, 6], [-4.0, 1.5, 2.0, 12.0])])
    assert (found.differing, found.tie, found.wrong) == (2, 0, 1)


def test_a_form_that_has_no_such_tensor_is_not_compared() -> None:
    found = measure_layer(values(REAL, None))
    assert (found.sqnr_final_db, found.differing, found.tie) == (None, None, None)
    assert found.sqnr_db == found.sqnr_debug_db == math.inf


def test_float_numbers_differ_by_more_than_the_error_of_float32() -> None:
    stay = replace(values(REAL, REAL), scale=None, zero_point=None, unrounded=None, qmin=None, qmax=None)
    exact = Rounding("q", "linear", REAL.double(), REAL, REAL.double().abs())
    near, far = REAL * (1 + 2.0**-22), REAL * (1 + 2.0**-18)
    assert measure_layer(replace(stay, final=near), [exact]).differing == 0
    assert measure_layer(replace(stay, final=far), [exact]).differing == 4
    assert measure_layer(replace(stay, final=near), [exact]).saturated is None


def test_parameters_of_each_row_are_no_single_number() -> None:
    rows = replace(
        values(REAL[None], None, REAL[None]), real=REAL[None], scale=torch.ones(2, 1), zero_point=torch.zeros(2, 1)
    )
    found = measure_layer(rows)
    assert found.scale is None and found.zero_point is None and step(found) == "by row"


@given(st.sampled_from([math.inf, -math.inf, 31.5]), st.sampled_from([None, math.inf, 12.25]))
def test_layers_survive_json_without_numbers_that_it_lacks(debug: float, final: float | None) -> None:
    before = replace(layer("a", 1.0, "b"), sqnr_debug_db=debug, sqnr_final_db=final)
    assert Layer.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False))) == before


def test_the_drop_is_below_what_a_layer_was_computed_from_and_not_below_the_one_before_it() -> None:
    # "b" stands after "a" but does not read it; the sum inherits the noise of its worse side.
    layers = [layer("x", 50.0), layer("a", 30.0, "x"), layer("b", 48.0, "x"), layer("sum", 29.0, "a", "b")]
    told = story(layers)
    assert told.dropped == 1 and told.parted is None
    assert told.words == (
        "Debug and final form agree at all 4 layers that both have.",
        "The largest drop of SQNR is 20.0 dB at t_a (quantized::add, model.py:3): from 50.0 dB to 30.0 dB.",
    )


def test_the_first_layer_where_the_forms_part() -> None:
    layers = [
        layer("x", 50.0),
        replace(layer("a", 50.0, "x"), differing=3, tie=3),
        replace(layer("b", 50.0), differing=9),
    ]
    told = story(layers)
    assert told.parted == 1 and told.dropped is None
    assert told.words[0].endswith("3 of 10 integers differ; of the roundings of both there 3 are ties and 0 wrong.")
    assert told.words[1] == "No layer is further from float than what it was computed from."


def test_from_an_exact_layer_there_is_no_drop_and_to_a_lost_one_it_is_the_largest() -> None:
    assert story([layer("x", math.inf), layer("a", 40.0, "x")]).dropped is None
    assert story([layer("x", 40.0), layer("a", 1.0, "x"), layer("b", -math.inf, "a")]).dropped == 2
    assert story([layer("x", 40.0), layer("a", math.nan, "x")]).dropped == 1
    assert story([]).dropped is None


def test_cells() -> None:
    assert [decibels(x) for x in (None, math.inf, 3.14159)] == ["", "exact", "3.1"]
    assert [number(x) for x in (None, 0, 7)] == ["", "0", "7"]
    there = layer("a", 1.0)
    assert step(there) == "0.1, 0" and step(replace(there, qmin=None)) == "float"
    assert where(replace(there, source="<small::one[static-export] 5a>:4")) == "line 4"
    assert where(replace(there, module="body.0")) == "body.0"
    assert title(replace(there, source="")) == "t_a (quantized::add)"
