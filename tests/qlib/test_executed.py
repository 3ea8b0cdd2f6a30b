"""The names and counts of what a graph executes."""

from __future__ import annotations

import operator

import pytest
from graphs import Draft, aten, forms

from qlib.executed import executed_ops, native_ops, output_scales, sequence
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time

Q, DQ = "quantized::quantize_per_tensor", "quantized::dequantize_per_tensor"
DYNAMIC = QConfigMapping(at_run_time(PRESETS["default"]))


def test_each_form_of_a_layer() -> None:
    draft = Draft()
    found = forms(draft.done(draft.relu(draft.linear(draft.input(2, 3), 4))))
    assert sequence(found.prepared) == ("aten::linear", "aten::relu")
    constants = ("quantized::dequantize_per_channel",) * 2
    assert sequence(found.debug) == (Q, DQ, *constants, "aten::linear", "aten::relu", Q, DQ)
    assert sequence(found.final) == (Q, "quantized::linear_relu", DQ)


def test_counts_are_exact_and_names_are_whole() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 4), 4)
    total = draft.call(aten.add.Tensor, draft.relu(draft.call(aten.add.Tensor, layer, layer)), layer)
    counts = executed_ops(forms(draft.done(total)).final)
    assert counts == {Q: 1, DQ: 1, "quantized::add": 1, "quantized::add_relu": 1, "quantized::linear": 1}
    assert list(counts) == sorted(counts)


def test_movement_is_quantized_only_where_integers_move() -> None:
    draft = Draft()
    before = draft.call(aten.reshape.default, draft.input(4, 3), [2, 6])
    inside = draft.call(aten.reshape.default, draft.linear(before, 4), [4, 2])
    after = draft.call(aten.reshape.default, draft.call(aten.cumsum.default, inside, 1), [8])
    found = forms(draft.done(after)).final
    wanted = ("aten::reshape", Q, "quantized::linear", "quantized::reshape", DQ, "aten::cumsum", "aten::reshape")
    assert sequence(found) == wanted


def test_items_of_lists_are_not_named() -> None:
    draft = Draft()
    pieces = draft.call(aten.chunk.default, draft.linear(draft.input(2, 3), 4), 2, 1)
    moved = draft.call(aten.flatten.using_ints, draft.call(operator.getitem, pieces, 1))
    found = forms(draft.done(moved)).final
    assert sequence(found) == (Q, "quantized::linear", "quantized::chunk", "quantized::flatten", DQ)


@pytest.mark.parametrize("relu", ["", "_relu"])
def test_results_of_dynamic_layers_are_float(relu: str) -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    flat = draft.call(aten.flatten.using_ints, draft.relu(layer) if relu else layer)
    found = forms(draft.done(flat), DYNAMIC)
    assert sequence(found.final) == (f"quantized::linear{relu}_dynamic", "aten::flatten")
    assert sequence(found.debug)[:2] == ("quantized::choose_qparams", Q)


def test_names_that_torch_knows() -> None:
    draft = Draft()
    flat = draft.call(aten.flatten.using_ints, draft.linear(draft.input(2, 3), 4))
    counts = native_ops(forms(draft.done(flat)).final)
    wanted = ["aten::flatten", "qlib::dequantize_per_tensor", "qlib::linear", "qlib::quantize_per_tensor"]
    assert counts == dict.fromkeys(wanted, 1)


def test_steps_of_the_outputs() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    model = draft.done(draft.call(aten.sigmoid.default, layer), draft.call(aten.cumsum.default, layer, 1))
    for form in (forms(model).debug, forms(model).final):
        assert output_scales(form) == (1 / 256, None)
