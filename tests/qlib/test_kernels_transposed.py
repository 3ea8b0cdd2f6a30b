"""Transposed convolutions: both implementations against torch's float64 operator and against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor

from qlib.kernels import Implementation, implementation
from qlib.kernels.layer import Window
from qlib.kernels.transposed import float64_spread_sum, spread_sum

ops = torch.ops.qlib
BOTH = list(Implementation)


def integers(shape: tuple[int, ...], low: int, high: int, seed: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Window]:
    """Differences from the zero points, and a window; output padding is less than the stride or the dilation."""
    dim = draw(st.sampled_from([1, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=dim, max_size=dim)))

    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    extra = tuple(min(e, max(s, d) - 1) for e, s, d in zip(each(0, 2), stride, dilation, strict=True))
    spatial = each(1, 5)
    sizes = [
        (n - 1) * s + d * (k - 1) + e + 1
        for n, s, d, k, e in zip(spatial, stride, dilation, kernel, extra, strict=True)
    ]
    padding = tuple(min(p, (size - 1) // 2) for p, size in zip(each(0, 2), sizes, strict=True))
    seed = draw(st.integers(0, 2**20))
    x = integers((draw(st.integers(0, 2)), inputs, *spatial), -255, 255, seed)
    w = integers((inputs, outputs, *kernel), -255, 255, seed + 1)
    return x, w, Window(stride, padding, dilation, groups, extra)


@given(layers())
def test_both_ways_of_summing_agree(layer: tuple[Tensor, Tensor, Window]) -> None:
    x, w, window = layer
    plain = spread_sum(x, w, window)
    assert plain.dtype is torch.int64
    assert torch.equal(plain, float64_spread_sum(x, w, window).to(torch.int64))


def test_the_reference_is_the_definition() -> None:
    x, w = integers((1, 4, 3), -9, 9, 1), integers((4, 3, 2), -9, 9, 2)
    window = Window((3,), (1,), (2,), 2, (1,))
    found = spread_sum(x, w, window)
    expected = torch.zeros(1, 6, (3 - 1) * 3 - 2 + 2 + 1 + 1, dtype=torch.int64)
    for channel in range(4):
        for output in range(3):
            for place in range(3):
                for step in range(2):
                    to = place * 3 + step * 2 - 1
                    if 0 <= to < expected.shape[2]:
                        product = x[0, channel, place] * w[channel, output, step]
                        expected[0, channel // 2 * 3 + output, to] += product
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", BOTH)
@given(layers(), st.sampled_from([(0, 255, False, torch.uint8), (-127, 127, True, torch.int8)]), st.booleans())
def test_a_range_at_run_time(
    name: str, layer: tuple[Tensor, Tensor, Window], kind: tuple[Any, ...], biased: bool
) -> None:
    integers_, w, window = layer
    x, w8 = integers_.float() / 100, w.clamp(-128, 127).to(torch.int8)
    outputs, dims = w.shape[1], len(window.stride)
    scale, zero_point = torch.tensor(0.02), torch.tensor(0, dtype=torch.int32)
    bias = torch.linspace(-1, 1, outputs * window.groups) if biased else None
    geometry = tuple(map(list, (window.stride, window.padding, window.output_padding)))
    rest = (*geometry, window.groups, list(window.dilation))
    with implementation(name):
        found = getattr(ops, f"conv_transpose{dims}d_dynamic")(x, w8, scale, zero_point, bias, *rest, *kind)
    x_scale, x_zero_point = ops.choose_qparams(x, *kind)
    q = ops.quantize_per_tensor.tensor(x, x_scale, x_zero_point, kind[0], kind[1], kind[3])
    real = (q.double() - x_zero_point) * x_scale.double()
    spread = getattr(torch.nn.functional, f"conv_transpose{dims}d")
    double = None if bias is None else bias.double()
    value = spread(real, w8.double() * scale.double(), double, *rest)
    size = spread(real.abs(), w8.double().abs() * scale.double(), None if double is None else double.abs(), *rest)
    assert found.shape == value.shape
    assert bool(((found.double() - value).abs() <= 8 * 2.0**-24 * size + 1e-38).all())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("x_dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("batch", [(2,), ()])
def test_scales_and_zero_points_lie_along_the_second_axis(
    name: str, per_channel: bool, x_dtype: torch.dtype, batch: tuple[int, ...]
) -> None:
    low = torch.iinfo(x_dtype).min
    x = integers((*batch, 4, 5, 3), low, low + 255, 3).to(x_dtype)
    w = integers((4, 3, 2, 3), 0, 255, 4).to(torch.uint8)
    scale, zero_point = torch.tensor([0.001, 0.7, 0.02]), torch.tensor([0, 255, 100], dtype=torch.int32)
    if not per_channel:
        scale, zero_point = scale[1], zero_point[2]
    bias = torch.tensor([100, -20000, 0], dtype=torch.int32)
    target = Target(50.0, 9)
    window: tuple[Any, ...] = ([2, 1], [0, 1], [1, 0], 1, [1, 2])
    with implementation(name):
        arguments = (x, 0.1, low + 40, w, scale, zero_point, bias, *window, *target.arguments)
        found = ops.conv_transpose2d(*arguments)

    def along(values: Tensor, axis: int) -> Tensor:
        return values if values.dim() == 0 else values.double().reshape(*[-1 if d == axis else 1 for d in range(3)])

    real_w = w.double() - (zero_point if zero_point.dim() == 0 else zero_point.reshape(1, 3, 1, 1))
    sums = torch.nn.functional.conv_transpose2d
    acc = sums(x.double() - low - 40, real_w, None, *window) + along(bias, 0)
    size = sums((x.double() - low - 40).abs(), real_w.abs(), None, *window) + along(bias.abs(), 0)
    multiplier = 0.1 * along(scale.double(), 0) / target.scale
    assert errors(found, acc * multiplier, size * multiplier, target) == 0
