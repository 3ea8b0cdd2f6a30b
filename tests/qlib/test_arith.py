"""The arithmetic, against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qlib.arith import (
    STORAGE,
    dequantize,
    qparams_from_range,
    qparams_of_tensor,
    quantize,
    quantize_bias,
    requantize,
    widen_weight_scale,
)
from qlib.errors import CalibrationError
from qlib.qparams import DType, QParams, QSpec

RANGE = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767), "uint4": (0, 15), "int4": (-8, 7)}
STORED = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "uint4": torch.uint8,
    "int4": torch.int8,
    "int32": torch.int32,
}

single = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.floats(2.0**-50, 2.0**50, width=32)


def params(dtype: str, scale: float | Tensor, zero_point: int | Tensor, axis: int | None = None) -> QParams:
    qmin, qmax = RANGE[dtype]
    return QParams(
        torch.as_tensor(scale, dtype=torch.float32),
        torch.as_tensor(zero_point, dtype=torch.int32),
        qmin,
        qmax,
        DType(dtype),
        axis,
    )


@st.composite
def any_params(draw: st.DrawFn) -> QParams:
    dtype = draw(st.sampled_from(sorted(RANGE)))
    qmin, qmax = RANGE[dtype]
    zero_point = draw(st.one_of(st.sampled_from([qmin, qmax]), st.integers(qmin, qmax)))
    return params(dtype, draw(scales), zero_point)


def real_steps(x: float, q: QParams) -> Fraction:
    return Fraction(x) / Fraction(float(q.scale))


def clamped(steps: int, q: QParams) -> int:
    return max(q.qmin, min(q.qmax, steps + int(q.zero_point)))


def test_storage_types() -> None:
    assert {str(k): v for k, v in STORAGE.items()} == {**STORED, "float16": torch.float16}


@given(any_params(), st.lists(single, min_size=1, max_size=8))
def test_quantize_is_the_nearest_integer(q: QParams, values: list[float]) -> None:
    found = quantize(torch.tensor(values), q)
    assert found.dtype is STORED[str(q.dtype)]
    for x, stored in zip(values, found.tolist(), strict=True):
        v = real_steps(x, q)
        # The quotient is rounded to float32 once, by half a unit in the last place at most.
        slack = abs(v) * Fraction(1, 2**24)
        allowed = {clamped(round(v + side * slack), q) for side in (-1, 0, 1)}
        assert stored in allowed


@given(any_params(), st.integers(-20, 20), st.integers(-40000, 40000))
def test_ties_go_to_the_even_neighbour(like: QParams, power: int, k: int) -> None:
    q = params(str(like.dtype), 2.0**power, int(like.zero_point))
    x = (k + 0.5) * 2.0**power
    even = k if k % 2 == 0 else k + 1
    assert quantize(torch.tensor([x]), q).item() == clamped(even, q)


@given(any_params())
def test_quantize_of_a_dequantized_integer_is_that_integer(q: QParams) -> None:
    stored = torch.arange(q.qmin, q.qmax + 1, dtype=torch.int32).to(STORED[str(q.dtype)])
    assert torch.equal(quantize(dequantize(stored, q), q), stored)


@given(any_params(), st.data())
def test_dequantize_is_exact_up_to_one_rounding(q: QParams, data: st.DataObject) -> None:
    stored = data.draw(st.integers(q.qmin, q.qmax))
    found = dequantize(torch.tensor([stored], dtype=STORED[str(q.dtype)]), q, torch.float64).item()
    assert found == float(Fraction(float(q.scale)) * (stored - int(q.zero_point)))


@pytest.mark.parametrize("dtype", sorted(RANGE))
def test_infinity_saturates_and_nan_is_the_least_integer(dtype: str) -> None:
    qmin, qmax = RANGE[dtype]
    x = torch.tensor([math.inf, -math.inf, math.nan])
    assert quantize(x, params(dtype, 0.1, qmin + 3)).tolist() == [qmax, qmin, qmin]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_per_channel_is_per_tensor_for_each_channel(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    scale = torch.tensor(data.draw(st.lists(scales, min_size=size, max_size=size)))
    zero_point = torch.tensor(data.draw(st.lists(st.integers(-128, 127), min_size=size, max_size=size)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale.amax()
    whole = params("int8", scale, zero_point, axis)
    q = quantize(x, whole)
    for c in range(size):
        one = params("int8", scale[c], zero_point[c])
        assert torch.equal(q.select(axis, c), quantize(x.select(axis, c), one))
        assert torch.equal(dequantize(q, whole).select(axis, c), dequantize(q.select(axis, c), one))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_empty_tensors_keep_their_shape(shape: tuple[int, ...]) -> None:
    q = params("uint8", 0.1, 3)
    assert quantize(torch.zeros(shape), q).shape == shape
    assert dequantize(torch.zeros(shape, dtype=torch.uint8), q).shape == shape


def test_quantize_does_not_change_its_input() -> None:
    x = torch.tensor([1.3, -7.0])
    quantize(x, params("int8", 0.1, 3))
    assert x.tolist() == [pytest.approx(1.3), -7.0]


@given(st.integers(-(2**40), 2**40), st.floats(1e-9, 1.0), st.integers(0, 255))
def test_requantize_is_exact_in_float64(acc: int, multiplier: float, zero_point: int) -> None:
    found = requantize(torch.tensor([float(acc)], dtype=torch.float64), multiplier, zero_point, 0, 255, torch.uint8)
    rounded = float(acc) * multiplier  # one float64 rounding, which is what the equation is evaluated in
    assert found.item() == max(0, min(255, round(Fraction(rounded)) + zero_point))


def test_32_bits_saturate_in_float64() -> None:
    real = torch.tensor([1e30, -1e30], dtype=torch.float64)
    q = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -(2**31), 2**31 - 1, DType.INT32)
    assert quantize(real, q).tolist() == [2**31 - 1, -(2**31)]


def test_32_bits_saturate_in_float32() -> None:
    q = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -(2**31), 2**31 - 1, DType.INT32)
    assert quantize(torch.tensor([1e30, -1e30]), q).tolist() == [2**31 - 1, -(2**31)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_data_of_half_precision_is_quantized_as_its_values(dtype: torch.dtype) -> None:
    x = torch.linspace(-1.0, 1.5, 200).to(dtype)
    q = params("uint8", 0.0098, 102)
    assert torch.equal(quantize(x, q), quantize(x.to(torch.float32), q))


ranges = st.tuples(single, single).map(sorted)
specs = st.builds(QSpec, st.sampled_from([DType(d) for d in sorted(RANGE)]), symmetric=st.booleans())


@given(ranges, specs)
def test_the_range_is_covered_within_half_a_step(ends: list[float], spec: QSpec) -> None:
    q = qparams_from_range(torch.tensor(ends[0]), torch.tensor(ends[1]), spec)
    scale, zero_point = Fraction(float(q.scale)), int(q.zero_point)
    assert scale > 0
    assert (q.qmin, q.qmax) == spec.range
    assert q.qmin <= zero_point <= q.qmax
    # The scale is a float32, so that the ends of 65,536 steps may lie off by a further 2**-24 of them.
    slack = scale * (Fraction(1, 2) + (q.qmax - q.qmin) * Fraction(2, 2**24))
    assert Fraction(min(ends[0], 0.0)) >= scale * (q.qmin - zero_point) - slack
    assert Fraction(max(ends[1], 0.0)) <= scale * (q.qmax - zero_point) + slack


@given(ranges, specs)
def test_zero_is_stored_exactly(ends: list[float], spec: QSpec) -> None:
    q = qparams_from_range(torch.tensor(ends[0]), torch.tensor(ends[1]), spec)
    stored = quantize(torch.zeros(1), q)
    assert stored.item() == int(q.zero_point)
    assert dequantize(stored, q).item() == 0.0


@given(st.floats(-(2.0**90), -(2.0**-30), width=32), st.floats(2.0**-30, 2.0**90, width=32))
def test_no_step_is_wasted(low: float, high: float) -> None:
    q = qparams_from_range(torch.tensor(low), torch.tensor(high), QSpec())
    expected = (Fraction(high) - Fraction(low)) / 255
    assert abs(Fraction(float(q.scale)) - expected) <= expected * Fraction(1, 2**23)
    assert abs(int(q.zero_point) - Fraction(-low) / Fraction(float(q.scale))) <= Fraction(1, 2)


@pytest.mark.parametrize(("dtype", "zero_point", "half"), [("int8", 0, 127), ("uint8", 128, 127), ("int4", 0, 7)])
def test_symmetric_keeps_zero_in_the_middle(dtype: str, zero_point: int, half: int) -> None:
    q = qparams_from_range(torch.tensor(-0.5), torch.tensor(2.0), QSpec(DType(dtype), symmetric=True))
    assert int(q.zero_point) == zero_point
    assert float(q.scale) == pytest.approx(2.0 / half)


def test_a_range_of_zero_has_scale_one() -> None:
    for spec in (QSpec(), QSpec(DType.INT8, symmetric=True)):
        q = qparams_from_range(torch.zeros(()), torch.zeros(()), spec)
        assert float(q.scale) == 1.0
        assert dequantize(quantize(torch.zeros(3), q), q).tolist() == [0.0] * 3


def test_a_tiny_range_keeps_a_normal_scale() -> None:
    q = qparams_from_range(torch.tensor(-1e-44), torch.tensor(1e-44), QSpec())
    assert float(q.scale) == 2.0**-60
    assert float(q.scale) ** 2 >= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_range_that_is_not_finite_says_what_to_do(bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"found infinity or NaN.*QConfig of None"):
        qparams_from_range(torch.tensor(0.0), torch.tensor([1.0, bad]), QSpec(axis=0))


def test_per_channel_ranges() -> None:
    low, high = torch.tensor([-1.0, 0.0, -3.0]), torch.tensor([1.0, 0.0, -2.0])
    q = qparams_from_range(low, high, QSpec(DType.INT8, symmetric=True, axis=0))
    assert torch.allclose(q.scale, torch.tensor([1 / 127, 1.0, 3 / 127]))
    assert q.zero_point.tolist() == [0, 0, 0]
    assert q.axis == 0


def test_the_range_of_a_tensor() -> None:
    q = qparams_of_tensor(torch.tensor([[1.0, -0.6], [4.5, 2.0]]), QSpec())
    assert float(q.scale) == pytest.approx(5.1 / 255)
    assert int(q.zero_point) == 30  # 0.6 / 0.02
    empty = qparams_of_tensor(torch.zeros(0, 3), QSpec())
    assert (float(empty.scale), int(empty.zero_point)) == (1.0, 0)


@given(st.floats(2.0**-60, 1.0, width=32), st.lists(single, min_size=1, max_size=5), st.booleans())
def test_widened_weight_scales_keep_the_bias_in_30_bits(x_scale: float, values: list[float], channels: bool) -> None:
    bias, before = torch.tensor(values), torch.full((len(values),) if channels else (), 0.01)
    after = widen_weight_scale(before, torch.tensor(x_scale), bias)
    assert after.shape == before.shape
    for b, old, new in zip(values, before.expand(len(values)), after.expand(len(values)), strict=True):
        assert new >= old
        if math.isfinite(new):
            steps = abs(Fraction(b)) / (Fraction(x_scale) * Fraction(float(new)))
            assert steps <= 2**30 + 2**7  # the scale is rounded to float32


def test_weight_scales_that_suffice_are_left_alone() -> None:
    before = torch.tensor([0.01, 0.02])
    assert torch.equal(widen_weight_scale(before, torch.tensor(0.1), torch.tensor([3.0, -4.0])), before)


@given(st.lists(single, min_size=1, max_size=5), st.floats(1e-12, 1e3))
def test_the_bias_is_rounded_to_int32_and_saturates(values: list[float], scale: float) -> None:
    found = quantize_bias(torch.tensor(values), torch.tensor(scale, dtype=torch.float64))
    assert found.dtype is torch.int32
    expected = [max(-(2**31), min(2**31 - 1, round(Fraction(v / scale)))) for v in values]
    assert found.tolist() == expected
