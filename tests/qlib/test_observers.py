"""Observers: what they say after what they saw."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qlib.arith import dequantize, qparams_from_range, quantize
from qlib.errors import CalibrationError, QConfigError
from qlib.observers import OBSERVERS, Follower, HistogramObserver, observer_for
from qlib.qparams import DType, QParams, QSpec

WATCHING = ["min_max", "moving_average_min_max", "histogram"]


def observed(spec: QSpec, *batches: Tensor) -> QParams:
    observer = observer_for(spec)
    for batch in batches:
        assert observer(batch) is batch
    return said(observer)


def said(observer: nn.Module) -> QParams:
    params = observer.qparams()  # type: ignore[operator]
    assert isinstance(params, QParams)
    return params


def error(x: Tensor, params: QParams) -> float:
    return float((x - dequantize(quantize(x, params), params)).double().square().sum())


@pytest.mark.parametrize("name", WATCHING)
def test_never_called(name: str) -> None:
    with pytest.raises(CalibrationError, match="never called: run the prepared model on calibration data"):
        observed(QSpec(observer=name))


@pytest.mark.parametrize("name", WATCHING)
@pytest.mark.parametrize("data", [torch.zeros(4, 3), torch.zeros(0, 3)])
def test_all_zero_or_empty_data_has_scale_one(name: str, data: Tensor) -> None:
    params = observed(QSpec(observer=name), data)
    assert (float(params.scale), int(params.zero_point)) == (1.0, 0)


@pytest.mark.parametrize("name", WATCHING)
@pytest.mark.parametrize("value", [3.5, -3.5, 1e-12, 1e30])
def test_a_constant_is_stored_within_half_a_step(name: str, value: float) -> None:
    for data in (torch.full((5,), value), torch.tensor(value)):
        params = observed(QSpec(observer=name), data)
        assert abs(dequantize(quantize(data, params), params) - data).max() <= float(params.scale) * 0.51
        assert float(params.scale) <= abs(value) / 255 * 1.01


@pytest.mark.parametrize("name", WATCHING)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_data_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    with pytest.raises(CalibrationError, match="infinity or NaN"):
        observed(QSpec(observer=name), torch.tensor([0.0, 1.0]), torch.tensor([0.0, bad, 1.0]))
    with pytest.raises(CalibrationError, match="infinity or NaN"):
        observed(QSpec(observer=name), torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize("name", [*WATCHING[:2], "histogram"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_infinity_is_not_forgotten(name: str, bad: float) -> None:
    with pytest.raises(CalibrationError, match="infinity or NaN"):
        observed(QSpec(observer=name), torch.tensor([0.0, bad]), torch.tensor([0.0, 1.0]), torch.tensor([2.0]))


finite = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.lists(finite, min_size=1, max_size=6), min_size=1, max_size=4))
def test_min_max_covers_all_batches(batches: list[list[float]]) -> None:
    params = observed(QSpec(), *(torch.tensor(b) for b in batches))
    low = min(0.0, *(min(b) for b in batches))
    high = max(0.0, *(max(b) for b in batches))
    if high > low:
        assert float(params.scale) == pytest.approx((high - low) / 255, rel=1e-6)


@given(st.lists(st.tuples(finite, finite).map(sorted), min_size=1, max_size=6))
def test_the_moving_average_moves_by_a_hundredth(batches: list[list[float]]) -> None:
    observer = observer_for(QSpec(observer="moving_average_min_max"))
    low, high = batches[0]
    for batch in batches:
        observer(torch.tensor(batch))
    for batch in batches[1:]:
        low, high = low * 0.99 + batch[0] * 0.01, high * 0.99 + batch[1] * 0.01
    assert float(observer.low) == pytest.approx(low, rel=1e-4, abs=1.0)  # type: ignore[arg-type]
    assert float(observer.high) == pytest.approx(high, rel=1e-4, abs=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("name", ["min_max", "moving_average_min_max"])
def test_one_range_for_each_channel(name: str, axis: int) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    params = observed(QSpec(DType.INT8, symmetric=True, axis=axis, observer=name), x)
    largest = [float(x.select(axis, c).abs().max()) for c in range(x.shape[axis])]
    assert params.scale.tolist() == pytest.approx([m / 127 for m in largest])


def test_one_range_for_each_element() -> None:
    params = observed(QSpec(DType.INT8, symmetric=True, axis=0), torch.tensor([127.0, -254.0]))
    assert params.scale.tolist() == [1.0, 2.0]


def test_an_axis_that_does_not_exist_is_refused() -> None:
    with pytest.raises(QConfigError, match="axis 2"):
        observed(QSpec(axis=2), torch.zeros(2, 2))


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.UINT4])
def test_the_histogram_finds_the_best_range_of_a_heavy_tail(dtype: DType) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(5_000, generator=random)
    x[:5] *= 40.0
    found = error(x, observed(QSpec(dtype, observer="histogram"), x))
    assert found < error(x, observed(QSpec(dtype), x))
    share = torch.linspace(0.05, 1.0, 40)
    every = [qparams_from_range(x.min() * a, x.max() * b, QSpec(dtype)) for a in share for b in share]
    assert found <= 1.05 * min(error(x, params) for params in every)


@given(st.integers(0, 1000), st.sampled_from(["uniform", "normal", "skewed"]))
def test_the_histogram_is_never_much_worse_than_min_max(seed: int, kind: str) -> None:
    random = torch.Generator().manual_seed(seed)
    uniform, normal = torch.rand(2000, generator=random) * 3 - 1, torch.randn(2000, generator=random)
    x = {"uniform": uniform, "normal": normal, "skewed": normal.exp()}[kind]
    # The histogram knows its data to within a bin, an eighth of a quantization step.
    assert error(x, observed(QSpec(observer="histogram"), x)) <= 1.05 * error(x, observed(QSpec(), x))


@given(st.lists(st.lists(finite, min_size=1, max_size=6), min_size=1, max_size=6))
def test_widening_the_histogram_keeps_every_count(batches: list[list[float]]) -> None:
    observer = HistogramObserver(QSpec(observer="histogram"))
    for batch in batches:
        observer(torch.tensor(batch))
    assert float(observer.counts.sum()) == sum(len(b) for b in batches)
    assert float(observer.low) == min(min(b) for b in batches)
    assert float(observer.high) == max(max(b) for b in batches)


def test_widening_moves_counts_by_at_most_a_bin() -> None:
    observer = HistogramObserver(QSpec(observer="histogram"))
    observer(torch.tensor([0.0, 1.0]))
    observer(torch.tensor([-8.0, 8.0]))
    filled = (observer.counts.nonzero().flatten().double() + 0.5) / observer.BINS * 16 - 8
    assert filled.tolist() == pytest.approx([-8.0, 0.0, 1.0, 8.0], abs=16 / observer.BINS)


def test_the_histogram_has_no_channels() -> None:
    with pytest.raises(QConfigError, match="min_max per channel"):
        observer_for(QSpec(axis=0, observer="histogram"))


def test_fixed_parameters_do_not_depend_on_the_data() -> None:
    spec = QSpec(DType.INT8, observer="fixed", scale=0.25, zero_point=-3)
    params = observed(spec, torch.full((3,), 1e9))
    assert (float(params.scale), int(params.zero_point), params.qmin, params.qmax) == (0.25, -3, -128, 127)


def test_a_follower_answers_as_its_leader_and_sees_nothing() -> None:
    leader = observer_for(QSpec())
    follower = Follower(leader)
    leader(torch.tensor([0.0, 2.55]))
    follower(torch.tensor([0.0, 255.0]))
    assert float(said(follower).scale) == pytest.approx(0.01)


def test_an_unknown_observer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(QConfigError, match=r"'maximum'.*min_max.*histogram"):
        observer_for(QSpec(observer="maximum"))


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_every_observer_says_in_a_line_what_it_does(name: str) -> None:
    assert (OBSERVERS[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", WATCHING)
def test_an_observer_can_be_saved_and_loaded(name: str) -> None:
    first, second = observer_for(QSpec(observer=name)), observer_for(QSpec(observer=name))
    first(torch.tensor([-1.0, 0.5, 3.0]))
    second(torch.zeros(1))
    second.load_state_dict(first.state_dict())
    assert said(second) == said(first)
