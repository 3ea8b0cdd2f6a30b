"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

import pytest
import torch
from graphs import Draft, aten, example, names
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from qlib.graph import attribute, copy_of
from qlib.passes.fuse import fold_batch_norm


def folded(model: fx.GraphModule) -> fx.GraphModule:
    return fold_batch_norm(copy_of(model))


def assert_same(model: fx.GraphModule, other: fx.GraphModule) -> None:
    inputs = example(model)
    a, b = model(*inputs), other(*inputs)
    for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", ["yes", "no"])
@pytest.mark.parametrize("bias", ["bias", None])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_convolution(dim: int, bias: str | None, affine: str) -> None:
    draft = Draft()
    layer = draft.conv(draft.input(2, 3, *[5] * dim), 4, bias=bias)
    model = draft.done(draft.batch_norm(layer, affine=affine))
    after = folded(model)
    assert names(after) == [f"conv{dim}d"]
    assert_same(model, after)
    assert sorted(after.state_dict()) == ["conv.bias_folded", "conv.weight_folded"]
    assert "batch_norm" in names(model)


@pytest.mark.parametrize("bias", ["bias", None])
def test_linear_layer_on_rows(bias: str | None) -> None:
    draft = Draft()
    model = draft.done(draft.batch_norm(draft.linear(draft.input(5, 3), 4, bias=bias)))
    after = folded(model)
    assert names(after) == ["linear"]
    assert_same(model, after)


def test_linear_layer_on_sequences_is_left_alone() -> None:
    draft = Draft()
    model = draft.done(draft.batch_norm(draft.linear(draft.input(5, 4, 3), 4)))
    after = folded(model)
    assert names(after) == ["linear", "batch_norm"]
    assert_same(model, after)


def test_a_result_that_is_used_twice_is_left_alone() -> None:
    draft = Draft()
    layer = draft.conv(draft.input(2, 3, 5, 5), 4)
    model = draft.done(draft.batch_norm(layer), draft.relu(layer))
    after = folded(model)
    assert "batch_norm" in names(after)
    assert_same(model, after)


def test_a_normalisation_by_the_batch_is_left_alone() -> None:
    draft = Draft()
    model = draft.done(draft.batch_norm(draft.conv(draft.input(2, 3, 5, 5), 4), training=True))
    assert names(folded(model)) == ["conv2d", "batch_norm"]


def test_a_computed_weight_is_left_alone() -> None:
    draft = Draft()
    x, w = draft.input(5, 3), draft.input(4, 3)
    layer = draft.call(aten.linear.default, x, w, None)
    assert names(folded(draft.done(draft.batch_norm(layer)))) == ["linear", "batch_norm"]


@pytest.mark.parametrize("channels_along", ["the length", "the channels as well"])
def test_a_convolution_without_a_batch_is_left_alone(channels_along: str) -> None:
    """The normalisation's channels are dimension 1, which is the convolution's length here."""
    draft = Draft()
    weight, bias = draft.draw("conv.weight", 4, 3, 3), draft.draw("conv.bias", 4)
    x = draft.input(3, 4 if "as well" in channels_along else 6)
    layer = draft.call(aten.conv1d.default, x, weight, bias, [1], [1], module=("conv", "nn.Conv1d"))
    model = draft.done(draft.batch_norm(layer))
    after = folded(model)
    assert names(after) == ["conv1d", "batch_norm"]
    assert_same(model, after)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(3, 2, 1), (4, 6, 2), (4, 4, 4)])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_transposed_convolution_is_folded_by_group(dim: int, inputs: int, outputs: int, groups: int) -> None:
    draft = Draft()
    target = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}[dim]
    weight = draft.draw("up.weight", inputs, outputs // groups, *[2] * dim)
    window = ([2] * dim, [1] * dim, [1] * dim, groups, [1] * dim)
    layer = draft.call(target, draft.input(2, inputs, *[4] * dim), weight, draft.draw("up.bias", outputs), *window)
    model = draft.done(draft.batch_norm(layer))
    after = folded(model)
    assert names(after) == [f"conv_transpose{dim}d"]
    assert_same(model, after)


def test_a_weight_shared_by_two_layers_is_folded_for_each() -> None:
    draft = Draft()
    x, w = draft.input(2, 3), draft.draw("shared.weight", 3, 3)
    first = draft.batch_norm(draft.call(aten.linear.default, x, w, None, module=("one", "nn.Linear")), "bn1")
    second = draft.call(aten.linear.default, draft.relu(first), w, None, module=("two", "nn.Linear"))
    model = draft.done(draft.batch_norm(second, "bn2"))
    after = folded(model)
    assert names(after) == ["linear", "relu", "linear"]
    assert_same(model, after)


def test_two_normalisations_in_a_row_are_both_folded() -> None:
    draft = Draft()
    layer = draft.conv(draft.input(2, 3, 5), 4)
    model = draft.done(draft.batch_norm(draft.batch_norm(layer, "bn1"), "bn2"))
    after = folded(model)
    assert names(after) == ["conv1d"]
    assert_same(model, after)


@given(st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5), st.floats(0.0625, 9, width=32))
def test_the_equation(values: list[float], variance: float) -> None:
    weight, bias, gamma, beta, mean = values
    draft = Draft()
    x = draft.input(2, 1)
    constants = [draft.constant(f"c{i}", torch.tensor([[weight]] if i == 0 else [v])) for i, v in enumerate(values)]
    layer = draft.call(aten.linear.default, x, *constants[:2], module=("fc", "nn.Linear"))
    statistics = (constants[4], draft.constant("var", torch.tensor([variance])))
    norm = draft.call(aten.batch_norm.default, layer, *constants[2:4], *statistics, False, 0.1, 1e-3, False)
    after = folded(draft.done(norm))
    factor = gamma / (torch.tensor(variance).double().item() + 1e-3) ** 0.5
    assert float(attribute(after, "fc.weight_folded")) == pytest.approx(weight * factor, rel=1e-6, abs=1e-30)
    assert float(attribute(after, "fc.bias_folded")) == pytest.approx((bias - mean) * factor + beta, rel=1e-5, abs=1e-6)
