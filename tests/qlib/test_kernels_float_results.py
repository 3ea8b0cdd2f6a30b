"""Kernels whose results stay in float: per token, with weights alone in few bits, and dynamic convolutions."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from graphs import Draft, aten, forms
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qlib.arith import dequantize, quantize
from qlib.errors import CalibrationError
from qlib.kernels import Implementation, implementation
from qlib.observers import MinMaxObserver
from qlib.oracle import replay
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time
from qlib.qparams import DType, QSpec

ops = torch.ops.qlib
BOTH = list(Implementation)
STORED = {DType.INT8: (-128, 127, torch.int8), DType.UINT8: (0, 255, torch.uint8)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def within_bound(found: Tensor, real: Tensor, magnitude: Tensor) -> bool:
    assert found.dtype is torch.float32
    assert found.shape == real.shape
    return bool(((found.double() - real).abs() <= 8 * 2.0**-24 * magnitude + 1e-38).all())


@st.composite
def weights(draw: st.DrawFn, outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    low, high, dtype = STORED[draw(st.sampled_from(list(STORED)))]
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    w = torch.randint(low, high + 1, (outputs, inputs), generator=source).to(dtype)
    zero_point = torch.randint(low, high + 1, (outputs,), generator=source).to(torch.int32)
    zero_point = zero_point * draw(st.sampled_from([0, 1]))
    scale = torch.rand(outputs, generator=source) + 1e-3
    return (w, scale, zero_point) if draw(st.booleans()) else (w, scale[0], zero_point[0])


def column(values: Tensor) -> Tensor:
    return values.double().reshape(-1, 1) if values.dim() else values.double()


SIZES = st.sampled_from([1, 2, 7, 17, 33, 64])
ROWS = st.sampled_from([(), (1,), (5,), (2, 3), (0,), (17,)])
KINDS = st.sampled_from([(0, 255, False, torch.uint8), (-127, 127, True, torch.int8), (-128, 127, False, torch.int8)])


@pytest.mark.parametrize("name", BOTH)
@given(data=st.data(), inputs=SIZES, outputs=SIZES, rows=ROWS, kind=KINDS)
def test_each_row_has_its_own_range(
    name: str, data: st.DataObject, inputs: int, outputs: int, rows: tuple[int, ...], kind: tuple[Any, ...]
) -> None:
    w, scale, zero_point = data.draw(weights(outputs, inputs))
    x = random(*rows, inputs) * 10.0 ** torch.randint(-6, 6, (*rows, 1), generator=torch.Generator().manual_seed(2))
    bias = data.draw(st.sampled_from([None, random(outputs, seed=3)]))
    with implementation(name):
        found = ops.linear_per_token_dynamic(x, w, scale, zero_point, bias, *kind)
    x_scale, x_zero_point = ops.choose_qparams_per_token(x, *kind)
    q = ops.quantize_per_token(x, x_scale, x_zero_point, kind[0], kind[1], kind[3])
    real_x, real_w = (q.double() - x_zero_point) * x_scale.double(), (w.double() - column(zero_point)) * column(scale)
    real, size = real_x @ real_w.t(), real_x.abs() @ real_w.abs().t()
    if bias is not None:
        real, size = real + bias, size + bias.abs()
    assert within_bound(found, real, size)


def test_a_row_does_not_look_at_the_others() -> None:
    w = torch.randint(-127, 128, (4, 6), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    rest = (w, torch.ones(4), torch.zeros(4, dtype=torch.int32), None, 0, 255, False, torch.uint8)
    x = random(5, 6) * torch.tensor([1e-8, 1.0, 0.0, -1e8, 1e3]).reshape(-1, 1)
    together = ops.linear_per_token_dynamic(x, *rest)
    assert torch.equal(together, torch.cat([ops.linear_per_token_dynamic(row, *rest) for row in x.split(1)]))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_row_without_a_range_is_refused(bad: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = bad
    with pytest.raises(CalibrationError, match="finite"):
        ops.choose_qparams_per_token(x, 0, 255, False, torch.uint8)


def test_a_long_row_of_extremes_does_not_saturate_in_between() -> None:
    w = torch.full((3, 5000), -128, dtype=torch.int8)
    x = torch.ones(32, 5000)
    found = ops.linear_per_token_dynamic(
        x, w, torch.ones(3), torch.zeros(3, dtype=torch.int32), None, 0, 255, False, torch.uint8
    )
    assert torch.allclose(found, torch.full((32, 3), -128.0 * 5000))


def test_products_are_right_without_fast_instructions() -> None:
    program = (
        "import torch, qlib.kernels\n"
        "w = torch.full((3, 64), -128, dtype=torch.int8)\n"
        "rest = (torch.ones(3), torch.zeros(3, dtype=torch.int32), None, 0, 255, False, torch.uint8)\n"
        "found = torch.ops.qlib.linear_per_token_dynamic(torch.ones(32, 64), w, *rest)\n"
        "assert torch.allclose(found, torch.full((32, 3), -128.0 * 64)), found"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_are_the_columns_side_by_side(size: int, symmetric: bool) -> None:
    spec = QSpec(DType.INT8, symmetric=symmetric, group_size=size)
    w = random(4, 7) * 10.0 ** torch.arange(7)
    observer = MinMaxObserver(spec)
    observer(w)
    params = observer.qparams()
    for first in range(0, 7, size):
        alone = MinMaxObserver(QSpec(DType.INT8, symmetric=symmetric, axis=0))
        alone(w[:, first : first + size])
        assert torch.equal(params.scale[:, first // size], alone.qparams().scale)
    q = quantize(w, params)
    assert torch.equal(ops.dequantize_per_group(q, params.scale, params.zero_point, size), dequantize(q, params))
    step = params.scale.repeat_interleave(size, 1)[:, :7]
    assert bool(((dequantize(q, params) - w).abs() <= 0.51 * step).all())


@pytest.mark.parametrize("name", BOTH)
@given(data=st.data(), inputs=SIZES, outputs=SIZES, rows=ROWS)
def test_weights_alone(name: str, data: st.DataObject, inputs: int, outputs: int, rows: tuple[int, ...]) -> None:
    w, scale, zero_point = data.draw(weights(outputs, inputs))
    x, bias = random(*rows, inputs), data.draw(st.sampled_from([None, random(outputs, seed=3)]))
    with implementation(name):
        found = ops.linear_relu_weight_only(x, w, scale, zero_point, None, bias)
    real_w = (w.double() - column(zero_point)) * column(scale)
    real, size = x.double() @ real_w.t(), x.double().abs() @ real_w.abs().t()
    if bias is not None:
        real, size = real + bias, size + bias.abs()
    assert within_bound(found, real.clamp_min(0.0), size)


def test_half_precision_saturates_and_rounds_to_even() -> None:
    observer = QSpec(DType.FLOAT16, observer="fixed", scale=1.0)
    draft = Draft()
    model = draft.done(draft.call(aten.linear.default, draft.input(1, 3), draft.constant("fc.weight", HALVES), None))
    assert PRESETS["fp16"].weight == observer
    final = forms(model, "fp16").final
    one = torch.eye(3)
    assert torch.equal(final(one).t(), torch.tensor([[65504.0, -65504.0, 2048.0], [1.0, 2052.0, 0.0]]))


HALVES = torch.tensor([[7e4, -3e38, 2049.0], [1.0 + 2.0**-12, 2051.0, 1e-9]])


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("preset", ["embedding_byte", "embedding_4bit", "weight_only_int8", "weight_only_int4"])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_rows_of_a_table(name: str, preset: str, mode: int) -> None:
    draft = Draft()
    table = draft.draw("table.weight", 3, 37)
    indices = draft.constant("indices", torch.tensor([2, 0, 0, 1]))
    offsets = draft.constant("offsets", torch.tensor([0, 3, 3]))
    bag = draft.call(aten.embedding_bag.padding_idx, table, indices, offsets, False, mode, False, None, False, None)
    looked_up = draft.call(aten.embedding.default, table, indices)
    found = forms(draft.done(draft.call(operator.getitem, bag, 0), looked_up), preset)
    with implementation(name):
        steps = replay(found.debug, found.final, ()).steps
    assert len(steps) == 2
    assert all(within_bound(step.given, step.real, step.magnitude) for step in steps)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("preset", ["default", "int8", "asymmetric_weight", "int4_weight", "int16"])
@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 6, 5), (1, 3, 4, 5, 6), (0, 3, 6, 5)])
def test_dynamic_convolutions_are_explained(name: str, preset: str, shape: tuple[int, ...]) -> None:
    draft = Draft()
    model = draft.done(draft.relu(draft.conv(draft.input(*shape), 5)))
    found = forms(model, QConfigMapping(at_run_time(PRESETS[preset])))
    with implementation(name):
        (step,) = replay(found.debug, found.final, found.inputs).steps
    assert within_bound(step.given, step.real, step.magnitude)
