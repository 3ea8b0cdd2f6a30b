"""Layers: the tensors of a model at which its forms are compared."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import torch
from graphs import Draft, Forms, aten, forms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import qlib
from qlib.layers import Layer, layers_of
from qlib.qconfig import QConfig, QConfigMapping
from qlib.quantize import mapping_for


def told(found: Forms) -> tuple[Layer, ...]:
    return layers_of(found.prepared, found.debug, found.final, found.inputs)


def three_nodes() -> fx.GraphModule:
    draft = Draft()
    x = draft.input(2, 3, 6, 6)
    x = draft.relu(draft.conv(x, 4))
    return draft.done(draft.call(aten.max_pool2d.default, x, [2, 2], module=("pool", "nn.MaxPool2d")))


def test_each_quantized_tensor_is_a_layer_in_order_of_execution() -> None:
    first, conv, pool = told(forms(three_nodes()))
    assert [layer.operator for layer in (first, conv, pool)] == [
        "quantized::quantize_per_tensor",
        "quantized::conv2d_relu",
        "quantized::max_pool2d",
    ]
    assert [layer.module_path for layer in (first, conv, pool)] == ["", "act", "pool"]
    assert (first.made_of, conv.made_of, pool.made_of) == ((), (first.name,), (conv.name,))
    assert conv.group == pool.group == "relu_default" and first.group != conv.group
    assert (conv.scale, conv.zero_point) == (pool.scale, pool.zero_point)


def test_the_float_side_is_the_float_model_itself() -> None:
    model = three_nodes()
    found = forms(model)
    torch.testing.assert_close(told(found)[-1].real, model(*found.inputs), rtol=0, atol=0)


def test_the_last_layer_holds_what_the_forms_return() -> None:
    found = forms(three_nodes())
    last = told(found)[-1]
    assert last.final is not None
    assert torch.equal(last.debug.float(), found.debug(*found.inputs))
    assert torch.equal(last.final.float(), found.final(*found.inputs))


def test_observers_learn_nothing_from_it() -> None:
    found = forms(three_nodes())
    before = {name: value.clone() for name, value in found.prepared.named_buffers()}
    wide = tuple(100.0 * x for x in found.inputs)
    layers_of(found.prepared, found.debug, found.final, wide)
    after = dict(found.prepared.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(qlib.convert(found.prepared)(*found.inputs), found.debug(*found.inputs))


def test_a_folded_batch_norm_is_met_behind_it() -> None:
    draft = Draft()
    x = draft.batch_norm(draft.conv(draft.input(2, 3, 5, 5), 4))
    model = draft.done(x)
    found = forms(model)
    _, conv = told(found)
    torch.testing.assert_close(conv.real, model(*found.inputs), rtol=1e-5, atol=1e-5)


def test_at_run_time_the_stored_input_is_in_the_debug_form_only_and_the_result_in_float() -> None:
    draft = Draft()
    found = forms(draft.done(draft.linear(draft.input(4, 8), 3)), mapping_for("dynamic"))
    stored, result = told(found)
    assert stored.final is None and stored.scale is not None and stored.qmax is not None
    assert result.operator == "quantized::linear_dynamic" and result.made_of == (stored.name,)
    assert result.scale is None and result.final is not None
    torch.testing.assert_close(result.final, result.debug)
    assert torch.equal(result.final, found.final(*found.inputs))


def test_what_stays_in_float_in_the_final_form_is_named_after_its_quantize() -> None:
    draft = Draft()
    x = draft.linear(draft.input(4, 8), 8)
    x = draft.call(aten.cumsum.default, x, 1)
    found = forms(draft.done(draft.linear(x, 3, "out")))
    assert [layer.operator for layer in told(found)] == [
        "quantized::quantize_per_tensor",
        "quantized::linear",
        "quantized::quantize_per_tensor",
        "quantized::linear",
    ]


def test_an_item_of_a_list_is_named_after_what_made_the_list() -> None:
    draft = Draft()
    x = draft.linear(draft.input(4, 8), 8)
    parts = draft.call(aten.chunk.default, x, 2, 1)
    halves = [draft.call(operator.getitem, parts, i) for i in (0, 1)]
    layers = told(forms(draft.done(*halves)))
    assert all(layer.operator for layer in layers)
    assert [layer.operator for layer in layers[2:]] == ["quantized::chunk"] * 2


def test_a_final_form_with_another_integer_shows_where() -> None:
    found = forms(three_nodes())
    conv = next(n for n in found.final.graph.nodes if "conv2d_relu" in str(n.target))
    with found.final.graph.inserting_after(conv):
        shifted = found.final.graph.call_function(aten.bitwise_xor.Scalar, (conv, 1))
    conv.replace_all_uses_with(shifted, delete_user_cb=lambda user: user is not shifted)
    shifted.meta["replaces"] = conv.meta.pop("replaces")
    first, second, third = told(found)
    assert torch.equal(first.debug, first.final)
    assert second.final is not None and not torch.equal(second.debug, second.final)
    assert third.final is not None and not torch.equal(third.debug, third.final)


def test_two_descriptions_of_one_tensor_are_two_layers_of_the_same_float_tensor() -> None:
    narrow = QConfig(replace(qlib.PRESETS["default"].activation, qmax=63), qlib.PRESETS["default"].weight)
    draft = Draft()
    x = draft.input(4, 8)
    a, b = draft.linear(x, 3, "a"), draft.linear(x, 3, "b")
    found = forms(draft.done(a, b), QConfigMapping(qlib.PRESETS["default"], {"b": narrow}))
    layers = [layer for layer in told(found) if layer.operator == "quantized::quantize_per_tensor"]
    assert sorted(layer.qmax or 0 for layer in layers) == [63, 255]
    assert all(torch.equal(layer.real, found.inputs[0]) for layer in layers)


class Counting(nn.Module):
    """Writes to a buffer when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc(x)


@pytest.mark.parametrize("method", ["export", "trace", "script"])
def test_buffers_and_inputs_stay_as_they_are(method: str) -> None:
    inputs = (torch.randn(2, 8),)
    model = qlib.quantize_model(Counting(), inputs, method=method)
    before = [value.clone() for value in model.final.buffers()]
    assert len(layers_of(model.prepared, model.debug, model.final, inputs)) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.final.buffers(), strict=True))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), depth=st.integers(1, 4), mode=st.sampled_from(["static", "dynamic"]))
def test_the_forms_agree_with_each_other_at_every_layer(seed: int, depth: int, mode: str) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(6, 6), nn.ReLU())))
    inputs = (torch.randn(3, 6),)
    model = qlib.quantize_model(module, inputs, mode=mode)
    layers = layers_of(model.prepared, model.debug, model.final, inputs)
    names = {layer.name for layer in layers}
    assert len(names) == len(layers)
    for place, layer in enumerate(layers):
        assert layer.real.shape == layer.debug.shape
        assert set(layer.made_of) <= {earlier.name for earlier in layers[:place]}
        if layer.final is not None and layer.scale is not None:
            # A tie at one layer may move an integer of the next ones by little.
            assert (layer.final - layer.debug).abs().max() <= 2 * layer.scale


class Branching(nn.Module):
    """Takes one of two layers, as its data decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return torch.cond(x.sum() > 0, self.one, self.two, (x,))


def test_observers_in_branches_learn_nothing_either() -> None:
    torch.manual_seed(0)
    inputs, others = (torch.randn(4, 6),), (-torch.randn(4, 6),)
    model = qlib.quantize_model(Branching(), inputs, [inputs, others, (-inputs[0],), (-others[0],)])
    before = {name: value.clone() for name, value in model.prepared.named_buffers()}
    layers = layers_of(model.prepared, model.debug, model.final, (100.0 * inputs[0],))
    after = dict(model.prepared.named_buffers())
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())
    assert [layer.operator for layer in layers][:2] == ["quantized::quantize_per_tensor", "quantized::linear"]
