"""Fake quantization: values to the bit, gradients by their definition."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qlib.arith import dequantize, qparams_of_tensor, quantize
from qlib.errors import CalibrationError, QConfigError
from qlib.fake_quantize import (
    FakeQuantize,
    FakeQuantizeFollower,
    LearnableFakeQuantize,
    RuntimeFakeQuantize,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    fake_quantize_for,
    follower_of,
)
from qlib.observers import Follower, MinMaxObserver
from qlib.qparams import RANGES, ROW, DType, QParams, QSpec
from qlib.straight_through import fake_quantize, fake_quantize_bias, fake_quantize_learned

numbers = st.lists(st.floats(-40, 40, width=32), min_size=2, max_size=12)
# Powers of two make quotients exact, so that halves are real ties.
steps = st.sampled_from([0.25, 0.5, 1.0, 2.0, 0.1, 0.3])
dtypes = st.sampled_from([DType.UINT8, DType.INT8, DType.UINT4, DType.INT4])


@st.composite
def per_tensor(draw: st.DrawFn) -> QParams:
    dtype = draw(dtypes)
    qmin, qmax = RANGES[dtype]
    zero_point = torch.tensor(draw(st.integers(qmin, qmax)), dtype=torch.int32)
    return QParams(torch.tensor(draw(steps)), zero_point, qmin, qmax, dtype)


def through(x: Tensor, upstream: Tensor, params: QParams) -> tuple[Tensor, Tensor]:
    """The result and the gradient at `x`."""
    x = x.clone().requires_grad_()
    y = fake_quantize(x, params)
    y.backward(upstream)
    assert x.grad is not None
    return y.detach(), x.grad


def rounded(value: float, scale: float, zero_point: int) -> int:
    """``round_half_even(value / scale) + zero_point`` with the quotient as float32 has it."""
    return round(Fraction((torch.tensor(value) / torch.tensor(scale)).item())) + zero_point


@given(numbers, per_tensor())
def test_the_value_is_what_quantize_and_dequantize_make(values: list[float], params: QParams) -> None:
    x = torch.tensor(values)
    y, _ = through(x, torch.ones_like(x), params)
    assert torch.equal(y, dequantize(quantize(x, params), params))


@given(numbers, per_tensor())
def test_the_gradient_is_one_inside_the_range_and_zero_outside(values: list[float], params: QParams) -> None:
    x = torch.tensor(values)
    upstream = torch.arange(1.0, len(values) + 1)
    _, gradient = through(x, upstream, params)
    zero_point, scale = int(params.zero_point), float(params.scale)
    inside = [params.qmin <= rounded(v, scale, zero_point) <= params.qmax for v in values]
    assert gradient.tolist() == [g if here else 0.0 for g, here in zip(upstream.tolist(), inside, strict=True)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(127.5, 0.0), (127.49, 1.0), (126.5, 1.0), (-128.5, 1.0), (-128.51, 0.0), (math.nan, 0.0), (math.inf, 0.0)],
)
def test_ties_at_the_ends_of_the_range(value: float, expected: float) -> None:
    params = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -128, 127, DType.INT8)
    _, gradient = through(torch.tensor([value]), torch.ones(1), params)
    assert gradient.tolist() == [expected]  # 127.5 rounds to 128, which is outside; -128.5 to -128, which is not


@given(st.lists(numbers, min_size=2, max_size=3), st.integers(0, 1))
def test_per_channel_is_each_channel_by_itself(rows: list[list[float]], axis: int) -> None:
    width = min(map(len, rows))
    x = torch.tensor([row[:width] for row in rows])
    x = x if axis == 0 else x.t().contiguous()
    scale = torch.tensor([0.1, 0.5, 2.0][: len(rows)])
    zero_point = torch.tensor([0, 3, -4][: len(rows)], dtype=torch.int32)
    whole = through(x, torch.ones_like(x), QParams(scale, zero_point, -8, 7, DType.INT4, axis))
    for channel in range(len(rows)):
        one = x.select(axis, channel)
        params = QParams(scale[channel], zero_point[channel], -8, 7, DType.INT4)
        for found, expected in zip(whole, through(one, torch.ones_like(one), params), strict=True):
            assert torch.equal(found.select(axis, channel), expected)


@given(numbers, per_tensor(), st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12))
def test_the_gradients_of_a_learnable_scale_and_zero_point(
    values: list[float], params: QParams, upstream: list[float]
) -> None:
    """Written out element by element: LSQ, and LSQ+ for the zero point."""
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    scale = params.scale.double().requires_grad_()
    zero_point = params.zero_point.double().requires_grad_()
    exact = QParams(scale.detach(), params.zero_point, params.qmin, params.qmax, params.dtype)
    gradient = torch.tensor(upstream[: len(values)], dtype=torch.float64)
    fake_quantize_learned(x, scale, zero_point, exact).backward(gradient)
    s, z = scale.item(), int(params.zero_point)
    by_scale = by_zero_point = 0.0
    for value, g in zip(values, gradient.tolist(), strict=True):
        q = round(Fraction(value / s)) + z
        if params.qmin <= q <= params.qmax:
            by_scale += g * (q - z - value / s)
        else:
            by_scale += g * (min(max(q, params.qmin), params.qmax) - z)
            by_zero_point -= g * s
    factor = 1 / math.sqrt(len(values) * params.qmax)
    assert scale.grad is not None and zero_point.grad is not None and x.grad is not None
    assert scale.grad.item() == pytest.approx(by_scale * factor, rel=1e-9, abs=1e-9)
    assert zero_point.grad.item() == pytest.approx(by_zero_point * factor, rel=1e-9, abs=1e-9)


def test_each_channels_scale_is_trained_by_its_own_elements() -> None:
    x = torch.tensor([[0.4, 5.0], [0.4, 0.6]])
    scale = torch.tensor([1.0, 1.0], requires_grad=True)
    zero_point = torch.zeros(2)
    params = QParams(scale.detach(), zero_point.int(), -1, 1, DType.INT8, axis=0)
    fake_quantize_learned(x, scale, zero_point, params).sum().backward()
    # 0.4 -> 0 (residual -0.4), 5 -> 1 (saturated); 0.6 -> 1 (residual 0.4); N = 2, qmax = 1.
    assert scale.grad is not None
    assert torch.allclose(scale.grad, torch.tensor([-0.4 + 1.0, -0.4 + 0.4]) / math.sqrt(2), atol=1e-6)


def test_a_bias_goes_through_int32_and_its_gradient_straight_through() -> None:
    bias = torch.tensor([0.3, -7.0], requires_grad=True)
    found = fake_quantize_bias(bias, torch.tensor(0.5), torch.tensor([0.25, 0.5]))
    found.sum().backward()
    assert found.tolist() == [0.25, -7.0]
    assert bias.grad is not None and bias.grad.tolist() == [1.0, 1.0]


# ---- modules


def test_ranges_are_watched_in_training_only() -> None:
    module = FakeQuantize(QSpec())
    module(torch.tensor([-1.0, 1.0]))
    before = module.qparams()
    module.eval()
    module(torch.tensor([-9.0, 9.0]))
    assert module.qparams() == before
    module.train()
    module(torch.tensor([-9.0, 9.0]))
    assert module.qparams().scale > before.scale


def test_the_four_switches() -> None:
    model = nn.Sequential(FakeQuantize(QSpec()))
    x, wide = torch.tensor([-1.0, 0.1234, 1.0]), torch.tensor([-9.0, 0.1234, 9.0])
    model(x)
    scale = model[0].qparams().scale
    model.apply(disable_observer)(wide)
    assert model[0].qparams().scale == scale
    model.apply(disable_fake_quant)
    assert model(wide) is wide
    model.apply(enable_observer)(wide)
    assert model[0].qparams().scale > scale
    assert not torch.equal(model.apply(enable_fake_quant)(wide), wide)


@pytest.mark.parametrize("observer", ["min_max", "learnable"])
def test_without_data_there_is_no_scale(observer: str) -> None:
    module = fake_quantize_for(QSpec(observer=observer)).eval()
    with pytest.raises(CalibrationError, match="never called"):
        module(torch.ones(3))


def test_a_learnable_scale_starts_at_the_range_and_is_trained() -> None:
    module = LearnableFakeQuantize(QSpec(observer="learnable"))
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    x = torch.tensor([-1.0, 0.3, 1.5])
    module(x)
    expected = qparams_of_tensor(x, QSpec())
    assert torch.equal(module.qparams().scale, expected.scale)
    assert torch.equal(module.qparams().zero_point, expected.zero_point)
    lost = [nn.functional.mse_loss(module(3 * x), 3 * x)]
    for _ in range(300):
        optimizer.zero_grad()
        lost[-1].backward()
        optimizer.step()
        lost.append(nn.functional.mse_loss(module(3 * x), 3 * x))
    assert module.qparams().scale > 2 * expected.scale
    assert lost[-1] < 0.01 * lost[0]


def test_a_symmetric_learnable_scale_keeps_its_zero_point() -> None:
    module = LearnableFakeQuantize(QSpec(DType.INT8, symmetric=True, axis=0, observer="learnable"))
    module(torch.tensor([[1.0, -2.0], [4.0, 3.0]])).sum().backward()
    assert module.scale.shape == (2,)
    assert module.zero_point.grad is None
    assert module.qparams().zero_point.tolist() == [0, 0]


def test_a_scale_that_was_trained_below_zero_is_used_as_the_least_one() -> None:
    module = LearnableFakeQuantize(QSpec(observer="learnable"))
    module(torch.ones(2))
    with torch.no_grad():
        module.scale.fill_(-1.0)
    assert module.qparams().scale > 0


@pytest.mark.parametrize("spec", [{"group_size": 2}, {"dtype": DType.INT8, "qmin": -9, "qmax": 0}])
def test_a_learnable_scale_refuses_what_it_can_not_train(spec: dict[str, object]) -> None:
    with pytest.raises(QConfigError, match="learnable"):
        fake_quantize_for(QSpec(observer="learnable", **spec))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [None, ROW])
def test_a_range_of_run_time_is_that_of_the_batch(rows: int | None) -> None:
    module = fake_quantize_for(QSpec(observer="runtime", group_size=rows)).eval()
    assert isinstance(module, RuntimeFakeQuantize)
    x = torch.tensor([[-1.0, 0.33], [-100.0, 50.2]], requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 2))  # type: ignore[arg-type]
    quantum = 151.0 / 255 if rows is None else 1.33 / 255
    assert abs(y[0, 1] - 0.33) <= quantum
    if rows == ROW:
        assert y[0, 0] != 0
    assert module.apply(disable_fake_quant)(x) is x


def test_a_follower_uses_its_leaders_parameters_and_switches() -> None:
    leader = FakeQuantize(QSpec())
    follower = follower_of(leader)
    assert isinstance(follower, FakeQuantizeFollower)
    leader(torch.tensor([-1.0, 1.0]))
    x = torch.tensor([0.1234, 7.0])
    assert torch.equal(follower(x), fake_quantize(x, leader.qparams()))
    assert follower.qparams() == leader.qparams()
    leader.apply(disable_fake_quant)
    assert follower(x) is x
    assert isinstance(follower_of(MinMaxObserver(QSpec())), Follower)


def test_ranges_survive_in_a_state_dict() -> None:
    trained, fresh = FakeQuantize(QSpec()), FakeQuantize(QSpec())
    trained(torch.tensor([-1.0, 2.0]))
    fresh.load_state_dict(trained.state_dict())
    x = torch.tensor([0.1234])
    assert torch.equal(fresh.eval()(x), trained.eval()(x))
