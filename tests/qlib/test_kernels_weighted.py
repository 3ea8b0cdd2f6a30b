"""Linear layers and convolutions: the reference against Python integers, the fast form against exact sums."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from ties import Target
from torch import Tensor
from weighted import Layer, convolutions, layers, linears

import qlib.kernels
from qlib.kernels import Implementation, implementation

ops = torch.ops.qlib
BOTH = list(Implementation)


@pytest.mark.parametrize("name", BOTH)
@given(layer=linears())
def test_linear(name: str, layer: Layer) -> None:
    assert layer.wrong(name) == 0


@pytest.mark.parametrize("name", BOTH)
@given(layer=convolutions())
def test_convolution(name: str, layer: Layer) -> None:
    assert layer.wrong(name) == 0


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("size", "dilation", "padding"), [(1, 2, 1), (1, 3, 2), (2, 3, 1), (2, 4, 3)])
def test_a_window_that_reaches_over_the_whole_input(name: str, size: int, dilation: int, padding: int) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (2, 3, 4, size), dtype=torch.uint8, generator=random)
    w = torch.randint(-127, 128, (5, 3, 1, 2), dtype=torch.int8, generator=random)
    window = ([1, 1], [0, padding], [1, dilation], 1)
    layer = Layer(x, 0.1, 98, w, torch.tensor(0.1), torch.tensor(0), None, Target(9.0, 100), window)
    assert layer.wrong(name) == 0


def by_hand(layer: Layer) -> list[list[int]]:
    """A linear layer in Python's integers and fractions."""
    t, rows = layer.target, []
    for x in layer.x.tolist():
        row = []
        for o, w in enumerate(layer.w.tolist()):
            acc = sum((a - layer.x_zero_point) * (b - int(layer.w_zero_point[o])) for a, b in zip(x, w, strict=True))
            acc += int(layer.bias[o]) if layer.bias is not None else 0
            v = acc * Fraction(layer.x_scale * float(layer.w_scale[o]) / t.scale)
            row.append(max(t.qmin, min(t.qmax, round(v) + t.zero_point)))
        rows.append(row)
    return rows


@given(layers((2, 3), (4, 3), ()).filter(lambda layer: layer.w_scale.dim() == 1))
def test_the_reference_is_the_definition(layer: Layer) -> None:
    assert layer.run("reference").tolist() == by_hand(layer)


def test_the_reference_convolution_is_the_definition() -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (1, 2, 4, 5), dtype=torch.uint8, generator=random)
    w = torch.randint(-128, 128, (4, 1, 2, 3), dtype=torch.int8, generator=random)
    target = Target(40.0, 100)
    layer = Layer(x, 0.1, 9, w, torch.tensor(0.5), torch.tensor(2), None, target, ([2, 1], [1, 2], [1, 2], 2))
    found = layer.run("reference")
    assert found.shape == (1, 4, 3, 5)
    for o, i, j in itertools.product(range(4), range(3), range(5)):
        acc = 0
        for ki, kj in itertools.product(range(2), range(3)):
            row, column = 2 * i + ki - 1, j + 2 * kj - 2
            if 0 <= row < 4 and 0 <= column < 5:
                acc += (int(x[0, o // 2, row, column]) - 9) * (int(w[o, 0, ki, kj]) - 2)
        assert int(found[0, o, i, j]) == max(0, min(255, round(acc * Fraction(0.1 * 0.5 / 40.0)) + 100))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize(("a", "b"), [(0, -128), (0, 127), (255, -128), (255, 127)])
def test_extremes_do_not_saturate_in_between(name: str, rows: int, a: int, b: int) -> None:
    inputs = 4096
    x = torch.full((rows, inputs), a, dtype=torch.uint8)
    w = torch.full((3, inputs), b, dtype=torch.int8)
    for zero_point in (0, 255):
        total = inputs * (a - zero_point) * b
        target = Target(max(abs(total), 1) / 100, 128)
        layer = Layer(x, 1.0, zero_point, w, torch.tensor(1.0), torch.tensor(0), None, target)
        assert set(layer.run(name).flatten().tolist()) == {128 + round(Fraction(total) / Fraction(target.scale))}


@pytest.mark.parametrize("name", BOTH)
def test_one_input_feature(name: str) -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    w = torch.tensor([[1], [-1], [127]], dtype=torch.int8)
    layer = Layer(
        x, 0.5, 100, w, torch.tensor([2.0, 2.0, 0.5]), torch.zeros(3, dtype=torch.int32), None, Target(1.0, 100)
    )
    assert layer.wrong(name) == 0


def small(w: Tensor, bias: Tensor | None = None) -> Layer:
    x = torch.randint(0, 256, (16, w.shape[1]), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))
    outputs = w.shape[0]
    return Layer(
        x, 0.1, 5, w, torch.full((outputs,), 0.1), torch.zeros(outputs, dtype=torch.int32), bias, Target(90.0, 128)
    )


@pytest.mark.parametrize("field", ["w", "w_scale", "w_zero_point", "bias"])
def test_constants_changed_in_place_are_noticed(field: str) -> None:
    w = torch.randint(-128, 128, (8, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(9))
    layer = small(w, torch.arange(8, dtype=torch.int32) * 1000)
    before = layer.run("fast")
    changed: Tensor = getattr(layer, field)
    changed.copy_({"w": w.flip(0), "w_scale": changed * 3, "w_zero_point": changed + 90, "bias": changed * 60}[field])
    assert not torch.equal(layer.run("fast"), before)
    assert layer.wrong("fast") == 0


def test_one_weight_serves_every_scale_and_window() -> None:
    w = torch.randint(-128, 128, (4, 4, 3, 3), dtype=torch.int8, generator=torch.Generator().manual_seed(9))
    x = torch.randint(0, 256, (2, 4, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    bias = torch.tensor([100, -100, 20000, 0], dtype=torch.int32)
    scale, zero = torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int32)
    for x_scale, stride, padding in itertools.product((0.1, 0.7), (1, 2), (0, 1)):
        window = ([stride] * 2, [padding] * 2, [1, 1], 1)
        assert Layer(x, x_scale, 5, w, scale, zero, bias, Target(90.0, 128), window).wrong("fast") == 0


@pytest.mark.parametrize("shape", [(2, 1, 6, 5, 3), (1, 3, 4, 4, 4)])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_along_a_dimension_with_one_output(shape: tuple[int, ...], stride: int) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    w = torch.randint(-128, 128, (2, shape[1], 2, 3, 3), dtype=torch.int8, generator=random)
    scale, zero, window = (
        torch.full((2,), 0.1),
        torch.zeros(2, dtype=torch.int32),
        ([1, 1, stride], [0] * 3, [1] * 3, 1),
    )
    assert Layer(x, 0.1, 5, w, scale, zero, None, Target(30.0, 128), window).wrong("fast") == 0


def test_a_copy_of_packed_weights_is_packed_anew() -> None:
    w = torch.randint(-128, 128, (8, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(9))
    layer = small(w)
    layer.run("fast")
    twin = copy.deepcopy(layer)
    twin.w.neg_()
    assert layer.wrong("fast") == 0
    assert twin.wrong("fast") == 0


@pytest.mark.parametrize("name", BOTH)
def test_data_that_is_not_contiguous(name: str) -> None:
    random = torch.Generator().manual_seed(4)
    for dtype in (torch.uint8, torch.int8):
        info = torch.iinfo(dtype)
        columns = torch.randint(info.min, info.max + 1, (20, 6), dtype=dtype, generator=random).t()[:, ::2]
        w = torch.randint(-128, 128, (5, 10), dtype=torch.int8, generator=random)
        target = Target(3.0, 128)
        scale, zero = torch.full((5,), 0.1), torch.zeros(5, dtype=torch.int32)
        assert Layer(columns, 0.1, 5, w, scale, zero, None, target).wrong(name) == 0
        image = torch.randint(info.min, info.max + 1, (2, 3, 5, 7), dtype=dtype, generator=random)
        kernel = torch.randint(-128, 128, (5, 3, 3, 3), dtype=torch.int8, generator=random)
        for x in (image.to(memory_format=torch.channels_last), image.transpose(2, 3), image[:, :, ::2]):
            window = ([1, 1], [1, 1], [1, 1], 1)
            assert Layer(x, 0.1, 5, kernel, scale, zero, None, target, window).wrong(name) == 0


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_linear_weights_that_are_not_contiguous(name: str) -> None:
    w = torch.randint(-128, 128, (64, 8), dtype=torch.int8, generator=torch.Generator().manual_seed(9))
    for view in (w.t(), w.reshape(16, 32)[:, ::2], w[:1].expand(5, 8)):
        assert small(view).wrong(name) == 0


@pytest.mark.parametrize("name", BOTH)
def test_convolution_weights_that_are_not_contiguous(name: str) -> None:
    random = torch.Generator().manual_seed(9)
    w = torch.randint(-128, 128, (4, 6, 3, 3), dtype=torch.int8, generator=random)
    x = torch.randint(0, 256, (2, 3, 7, 7), dtype=torch.uint8, generator=random)
    scale, zero = torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int32)
    for view in (w[:, ::2], w[:, :3].transpose(2, 3), w[:, :3].to(memory_format=torch.channels_last)):
        window = ([1, 1], [1, 1], [1, 1], 1)
        assert Layer(x, 0.1, 5, view, scale, zero, None, Target(30.0, 128), window).wrong(name) == 0


def exact_dynamic(x: Tensor, w: Tensor, w_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer on ``uint8`` data quantized by its own range, in float64, and the sum of its absolute terms."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = float(torch.tensor((high - low) / 255))
    zero_point = round(-low / scale)
    q = torch.round(x / torch.tensor(scale)).double().add(zero_point).clamp(0, 255) - zero_point
    real_w = w.double() * w_scale.double()[:, None]
    return q @ real_w.t() * scale + bias, q.abs() @ real_w.abs().t() * scale + bias.abs()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("op", ["linear_dynamic", "linear_relu_dynamic"])
@pytest.mark.parametrize("shape", [(1, 40), (5, 40), (2, 3, 40)])
def test_dynamic(name: str, op: str, shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(6)
    x = torch.randn(shape, generator=random)
    w = torch.randint(-128, 128, (7, 40), dtype=torch.int8, generator=random)
    w_scale, bias = torch.rand(7, generator=random) * 0.01, torch.randn(7, generator=random)
    arguments = (w, w_scale, torch.zeros(7, dtype=torch.int32), bias, 0, 255, False, torch.uint8)
    with implementation(name):
        found = getattr(ops, op)(x, *arguments)
    real, size = exact_dynamic(x, w, w_scale, bias)
    real = real.clamp_min(0.0) if "relu" in op else real
    assert found.dtype is torch.float32
    assert bool(((found - real).abs() <= 8 * 2.0**-24 * size).all())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_dynamic_on_an_empty_batch(name: str, shape: tuple[int, ...]) -> None:
    w, scale, zero = torch.ones(3, 4, dtype=torch.int8), torch.ones(3), torch.zeros(3, dtype=torch.int32)
    with implementation(name):
        found = ops.linear_dynamic(torch.zeros(shape), w, scale, zero, None, 0, 255, False, torch.uint8)
    assert found.shape == (*shape[:-1], 3)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = small(torch.ones(4, 8, dtype=torch.int8))
        assert layer.wrong("fast") == 0


def test_the_default_is_the_fast_implementation_and_a_block_restores_it() -> None:
    assert chosen() == "fast"
    with pytest.raises(ZeroDivisionError), implementation("reference"):
        assert chosen() == "reference"
        raise ZeroDivisionError
    assert chosen() == "fast"
    with pytest.raises(ValueError, match="quickest"), implementation("quickest"):
        pass


def chosen() -> str:
    return str(qlib.kernels._chosen)


GAPS = """
import torch
import qlib.kernels
x, w = torch.full((2, 2, 1), 9, dtype=torch.uint8), torch.ones(5, 2, 1, dtype=torch.int8)
scale, zero = torch.ones(5), torch.zeros(5, dtype=torch.int32)
for _ in range(300):
    y = torch.ops.qlib.conv1d(x, 1.0, 5, w, scale, zero, None, [2], [1], [2], 1, 1.0, 0, 0, 255, torch.uint8)
    assert y.flatten().tolist() == [0] * 20  # both outputs of each channel lie in the padding
"""


def test_gaps_in_a_window_of_one() -> None:
    assert alone(GAPS) == ""


def alone(program: str) -> str:
    """Run a program in a process of its own; returns how it failed, and nothing where it did not."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    return f"exit code {done.returncode}: {done.stderr}" if done.returncode else ""


WITHOUT_VNNI = """
import torch
import test_kernels_weighted as t
from qlib.kernels import onednn
assert not onednn.exact_products(), "the instruction set was not capped"
for a in (0, 255):
    t.test_extremes_do_not_saturate_in_between("fast", 32, a, -128)
t.test_one_weight_serves_every_scale_and_window()
t.test_dynamic("fast", "linear_dynamic", (5, 40))
t.test_data_that_is_not_contiguous("fast")
"""


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="the processor has no VNNI instructions to cap")
def test_without_vnni_instructions_the_fast_form_is_still_right() -> None:
    # Set before torch is imported, since oneDNN reads it once.
    assert alone(f"import os\nos.environ['ONEDNN_MAX_CPU_ISA'] = 'AVX2'\n{WITHOUT_VNNI}") == ""


@pytest.mark.parametrize("name", list(Implementation))
def test_windows_whose_taps_all_fall_into_the_padding(name: str) -> None:
    x = torch.full((1, 4, 1, 1), 200, dtype=torch.uint8)
    w = torch.full((4, 4, 1, 2), 100, dtype=torch.int8)
    parameters = (torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int32), None)
    window = ([1, 1], [1, 1], [2, 2], 1)
    with implementation(name):
        y = torch.ops.qlib.conv2d(x, 0.1, 7, w, *parameters, *window, 0.5, 100, 0, 255, torch.uint8)
    assert y.flatten().tolist() == [100] * y.numel()


@pytest.mark.parametrize("seed", range(6))
def test_several_output_channels_for_each_input_channel(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (1, 4, 7, 2), dtype=torch.uint8, generator=random)
    w = torch.randint(-128, 128, (20, 1, 3, 3), dtype=torch.int8, generator=random)
    parameters = (torch.full((20,), 0.001), torch.zeros(20, dtype=torch.int32), None)
    results = []
    for name in Implementation:
        with implementation(name):
            arguments = (*parameters, [1, 2], [1, 1], [2, 1], 4, 1.0, 100, 0, 255, torch.uint8)
            results.append(torch.ops.qlib.conv2d(x, 1.0, 200, w, *arguments).int())
    assert int((results[0] - results[1]).abs().max()) <= 1
