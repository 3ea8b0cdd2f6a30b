from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_specs import case_of

from conformance.case import Case
from conformance.inputs import DRAWN, calibration_of, draw, generator, inputs_of
from conformance.tensorspec import Distribution, Draw, TensorSpec


def spec(**written: object) -> TensorSpec:
    return TensorSpec.model_validate(written)


def drawn(tensor: TensorSpec, seed: int = 0) -> torch.Tensor:
    return draw(tensor, tensor.shape, getattr(torch, tensor.dtype), generator(seed, "test"))


def case(**keys: str) -> Case:
    body = {"inputs": "{x: {shape: [64, 30]}}", "expect": "{debug_equal: 0 quanta}", "capture": "[export]", **keys}
    return case_of("module: nn.Linear(30, 20)\n" + "\n".join(f"{key}: {value}" for key, value in body.items()))


def test_every_distribution_can_be_drawn() -> None:
    assert set(DRAWN) == set(Distribution)


bounds = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(bounds, st.integers(0, 2**32 - 1))
def test_uniform_stays_within_its_range_and_fills_it(limits: tuple[float, float], seed: int) -> None:
    low, high = limits
    x = drawn(spec(shape=[2000], range=[low, high], dtype="float64"), seed)
    assert low <= x.min() and x.max() <= high
    assert x.min() < low + 0.05 * (high - low) and x.max() > high - 0.05 * (high - low)


def test_normal_has_its_mean_in_the_middle_and_a_sixth_as_deviation() -> None:
    x = drawn(spec(shape=[100_000], distribution="normal", range=[-2, 10], dtype="float64"))
    assert float(x.mean()) == pytest.approx(4, abs=0.05)
    assert float(x.std()) == pytest.approx(2, rel=0.02)
    assert x.min() < -2 and x.max() > 10, "the range is no bound"


@given(st.integers(-100, 100), st.integers(1, 20))
def test_integers_include_both_bounds(low: int, span: int) -> None:
    x = drawn(spec(shape=[2000], dtype="int64", range=[low, low + span]))
    assert x.dtype is torch.int64
    assert set(x.tolist()) == set(range(low, low + span + 1))


def test_integers_may_be_asked_for_in_float() -> None:
    x = drawn(spec(shape=[1000], distribution="integers", range=[-1, 1]))
    assert x.dtype is torch.float32
    assert set(x.tolist()) == {-1.0, 0.0, 1.0}


def test_constants() -> None:
    assert drawn(spec(shape=[2, 3], distribution="constant", value=1.5)).tolist() == [[1.5] * 3] * 2
    assert drawn(spec(shape=[], distribution="constant", value=3, dtype="int8")).tolist() == 3


@given(st.integers(1, 50), st.integers(0, 1000))
def test_as_many_outliers_as_asked_for(count: int, seed: int) -> None:
    x = drawn(spec(shape=[5, 10], distribution="outliers", outliers={"count": count, "value": 1000}), seed)
    assert int((x == 1000).sum()) == count
    assert bool((x[x != 1000].abs() <= 1).all())


def test_values_are_taken_as_they_are() -> None:
    x = drawn(spec(distribution="values", values=[[1, 2.5], [-3, 0]]))
    assert (x.dtype, x.tolist()) == (torch.float32, [[1, 2.5], [-3, 0]])


def test_values_of_a_parameter_spread_over_its_shape() -> None:
    x = draw(Draw(distribution="values", values=[1, 2]), (3, 2), torch.float32, generator(0, "test"))
    x[0, 0] = 9
    assert x.tolist() == [[9, 2], [1, 2], [1, 2]], "each element has memory of its own"


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
)
def test_every_dtype_of_specs_has_its_default_distribution(dtype: str) -> None:
    x = drawn(spec(shape=[50], dtype=dtype))
    assert x.dtype is getattr(torch, dtype)
    assert len(set(x.tolist())) > 1


def test_empty_and_scalar_shapes() -> None:
    assert drawn(spec(shape=[0, 3])).shape == (0, 3)
    assert drawn(spec(shape=[0], distribution="normal")).numel() == 0
    assert drawn(spec(shape=[])).shape == ()


def test_each_purpose_has_a_source_of_its_own() -> None:
    def numbers(seed: int, purpose: str) -> list[float]:
        return torch.rand(4, generator=generator(seed, purpose)).tolist()

    assert numbers(1, "a") == numbers(1, "a")
    assert len({tuple(numbers(seed, purpose)) for seed in (1, 2) for purpose in ("a", "b")}) == 4


def test_inputs_do_not_depend_on_what_stands_beside_them() -> None:
    forward = '{layers: {fc: "nn.Linear(30, 20)"}, forward: "def forward(self, x, y): return self.fc(x) + self.fc(y)"}'
    tail = "expect: {debug_equal: 0 quanta}\ncapture: [export]"
    both = case_of(f"module: {forward}\ninputs: {{x: {{shape: [4, 30]}}, y: {{shape: [4, 30]}}}}\n{tail}")
    other = case_of(f"module: {forward}\ninputs: {{x: {{shape: [9, 30]}}, y: {{shape: [4, 30]}}}}\n{tail}")
    (x, y), (_, same) = inputs_of(both), inputs_of(other)
    assert torch.equal(y, same)
    assert not torch.equal(x, y)


def test_calibration_begins_with_the_judged_inputs() -> None:
    one = case()
    inputs = inputs_of(one)
    batches = calibration_of(one, inputs)
    assert len(batches) == one.calibration.batches == 2
    assert torch.equal(batches[0][0], inputs[0])
    assert not torch.equal(batches[1][0], inputs[0])
    assert batches[1][0].shape == inputs[0].shape


def test_as_many_batches_as_asked_for_all_different() -> None:
    one = case(calibration="5")
    batches = calibration_of(one, inputs_of(one))
    assert len({float(x.sum()) for (x,) in batches}) == 5


def test_calibration_data_of_its_own_replaces_the_judged_inputs() -> None:
    one = case(calibration="{batches: 3, inputs: {x: {range: [5, 6]}}}")
    inputs = inputs_of(one)
    batches = calibration_of(one, inputs)
    assert len(batches) == 3
    assert all(x.min() >= 5 and x.max() <= 6 and x.shape == (64, 30) for (x,) in batches)
    assert inputs[0].abs().max() <= 1


def test_calibration_may_have_another_shape() -> None:
    one = case(calibration="{batches: 1, inputs: {x: {shape: [7, 30], distribution: constant, value: 0.5}}}")
    ((x,),) = calibration_of(one, inputs_of(one))
    assert x.shape == (7, 30) and bool((x == 0.5).all())


def test_an_input_that_calibration_does_not_name_is_drawn_as_ever() -> None:
    forward = '{layers: {fc: "nn.Linear(30, 20)"}, forward: "def forward(self, x, y): return self.fc(x) + self.fc(y)"}'
    one = case_of(f"""
        module: {forward}
        inputs: {{x: {{shape: [4, 30]}}, y: {{shape: [4, 30], range: [2, 3]}}}}
        calibration: {{inputs: {{x: {{range: [8, 9]}}}}}}
        capture: [export]
        expect: {{debug_equal: 0 quanta}}
    """)
    for x, y in calibration_of(one, inputs_of(one)):
        assert math.floor(float(x.min())) == 8 and math.floor(float(y.min())) == 2
