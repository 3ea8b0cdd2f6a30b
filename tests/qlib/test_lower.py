"""The final form: integer kernels where the debug form has what they need, float elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graphs import Draft, aten, forms, names
from torch import fx

from qlib.graph import op_name
from qlib.passes.lower import lower
from qlib.qconfig import PRESETS, QConfigMapping, as_mapping, at_run_time

DEFAULT = as_mapping("default")
DYNAMIC = QConfigMapping(at_run_time(PRESETS["default"]))
Q, DQ = "quantize_per_tensor", "dequantize_per_tensor"


def test_a_layer_becomes_one_kernel() -> None:
    draft = Draft()
    found = forms(draft.done(draft.linear(draft.input(2, 3), 4)))
    assert names(found.final) == [Q, "linear", DQ]
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


def test_the_longest_chain_is_taken() -> None:
    draft = Draft()
    found = forms(draft.done(draft.relu(draft.linear(draft.input(2, 3), 4))))
    assert names(found.final) == [Q, "linear_relu", DQ]


def test_a_layer_that_is_used_twice_is_not_fused() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    found = forms(draft.done(draft.relu(layer), layer))
    assert sorted(names(found.final)) == [DQ, DQ, "linear", Q, "relu"]


def test_a_relu_with_its_own_none_runs_in_float() -> None:
    draft = Draft()
    relu = draft.relu(draft.linear(draft.input(2, 3), 4))
    model = draft.done(draft.linear(relu, 2, "fc2"))
    found = forms(model, replace(DEFAULT, modules={"act": None}))
    assert names(found.final) == [Q, "linear", DQ, "relu", Q, "linear", DQ]
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


def test_a_float_operator_between_two_regions() -> None:
    draft = Draft()
    soft = draft.call(aten.cumsum.default, draft.linear(draft.input(2, 3), 4), 1)
    found = forms(draft.done(draft.linear(soft, 2, "fc2")))
    assert names(found.final) == [Q, "linear", DQ, "cumsum", Q, "linear", DQ]


def test_a_residual() -> None:
    draft = Draft()
    first = draft.relu(draft.conv(draft.input(1, 3, 6, 6), 3, "one"), "act1")
    second = draft.conv(first, 3, "two")
    total = draft.relu(draft.call(aten.add.Tensor, second, first), "act2")
    found = forms(draft.done(total))
    assert names(found.final) == [Q, "conv2d_relu", "conv2d", "add_relu", DQ]


def test_an_operand_that_is_used_twice_by_one_operator() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    found = forms(draft.done(draft.call(aten.mul.Tensor, layer, layer)))
    assert names(found.final) == [Q, "linear", "mul", DQ]


def test_a_sum_with_a_float_tensor_stays_in_float() -> None:
    draft = Draft()
    x = draft.input(2, 4)
    found = forms(draft.done(draft.call(aten.add.Tensor, draft.linear(x, 4), x)))
    assert names(found.final) == [Q, "linear", DQ, "add"]


def test_two_descriptions_of_one_tensor() -> None:
    draft = Draft()
    one = draft.linear(draft.input(2, 4), 4, "one")
    two, three = draft.linear(one, 4, "two"), draft.linear(one, 4, "three")
    found = forms(draft.done(two, three), replace(DEFAULT, modules={"two": PRESETS["int8"]}))
    assert sorted(names(found.final)) == sorted([Q, "linear", DQ, Q, "linear", "linear", DQ, DQ])
    for a, b in zip(found.final(*found.inputs), found.debug(*found.inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bias", ["bias", None])
@pytest.mark.parametrize("relu", ["", "_relu"])
def test_dynamic_layers(bias: str | None, relu: str) -> None:
    draft = Draft()
    layer = draft.linear(draft.input(5, 3), 4, bias=bias)
    found = forms(draft.done(draft.relu(layer) if relu else layer), DYNAMIC)
    assert names(found.final) == [f"linear{relu}_dynamic"]
    assert torch.allclose(found.final(*found.inputs), found.debug(*found.inputs), rtol=1e-5, atol=1e-5)


def test_a_dynamic_layer_behind_a_static_one() -> None:
    draft = Draft()
    two = draft.linear(draft.linear(draft.input(5, 3), 4, "one"), 4, "two")
    found = forms(draft.done(two), replace(DEFAULT, modules={"two": at_run_time(PRESETS["default"])}))
    assert names(found.final) == [Q, "linear", DQ, "linear_dynamic"]


def test_a_constant_can_be_the_only_weight_of_two_layers() -> None:
    draft = Draft()
    x, w = draft.input(2, 3), draft.draw("shared.weight", 3, 3)
    one = draft.call(aten.linear.default, x, w, None, module=("one", "nn.Linear"))
    two = draft.call(aten.linear.default, one, w, None, module=("two", "nn.Linear"))
    found = forms(draft.done(two))
    assert names(found.final) == [Q, "linear", "linear", DQ]
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


def test_a_normalisation_that_can_not_be_folded() -> None:
    draft = Draft()
    norm = draft.relu(draft.batch_norm(draft.input(4, 3, 5)))
    found = forms(draft.done(norm))
    assert names(found.final) == [Q, "batch_norm_relu", DQ]
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


def test_the_debug_form_is_left_alone() -> None:
    draft = Draft()
    found = forms(draft.done(draft.relu(draft.linear(draft.input(2, 3), 4))))
    before = (str(found.debug.graph), sorted(found.debug.state_dict()))
    lower(found.debug)
    assert (str(found.debug.graph), sorted(found.debug.state_dict())) == before


def test_the_final_form_keeps_integers_only() -> None:
    draft = Draft()
    found = forms(draft.done(draft.linear(draft.input(2, 3), 4)))
    kinds = {name: value.dtype for name, value in found.final.state_dict().items()}
    assert kinds == {
        "fc.weight_int8": torch.int8,
        "fc.weight_int8_scale": torch.float32,
        "fc.weight_int8_zero_point": torch.int32,
        "fc.bias_int32": torch.int32,
    }


def test_every_kernel_names_the_node_that_it_takes_the_place_of() -> None:
    draft = Draft()
    first = draft.relu(draft.conv(draft.input(1, 3, 6), 3))
    found = forms(draft.done(draft.call(aten.max_pool1d.default, first, [2])))
    rounded = [n.name for n in found.debug.graph.nodes if op_name(n) == "qlib::quantize_per_tensor"]
    replaced = [n.meta["replaces"] for n in found.final.graph.nodes if "replaces" in n.meta]
    assert replaced == rounded[1:]


def test_a_graph_without_quantization_is_left_as_it_is() -> None:
    draft = Draft()
    found = forms(draft.done(draft.relu(draft.linear(draft.input(2, 3), 4))), None)
    assert names(found.final) == ["linear", "relu"]
    assert isinstance(found.final, fx.GraphModule)


WITH_FLOAT_RESULTS = {
    "per_token": "per_token_dynamic",
    "per_token_symmetric": "per_token_dynamic",
    "weight_only_int8": "weight_only",
    "weight_only_int4": "weight_only",
    "embedding_byte": "weight_only",
    "embedding_4bit": "weight_only",
    "fp16": "dynamic_fp16",
}


@pytest.mark.parametrize("preset", sorted(WITH_FLOAT_RESULTS))
def test_presets_with_float_results_are_lowered(preset: str) -> None:
    draft = Draft()
    hidden = draft.relu(draft.linear(draft.input(8, 6), 7, "one"))
    found = forms(draft.done(draft.linear(hidden, 5, "two")), preset)
    tail = WITH_FLOAT_RESULTS[preset]
    assert names(found.final) == [f"linear_relu_{tail}", f"linear_{tail}"]
    assert torch.allclose(found.final(*found.inputs), found.debug(*found.inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - WITH_FLOAT_RESULTS.keys()))
def test_every_preset_is_lowered(preset: str) -> None:
    draft = Draft()
    hidden = draft.relu(draft.linear(draft.input(8, 6), 7, "one"))
    found = forms(draft.done(draft.linear(hidden, 5, "two")), preset)
    assert names(found.final) == [Q, "linear_relu", "linear", DQ]
    step = float(found.final.graph.output_node().args[0].args[1])  # type: ignore[union-attr, arg-type]
    difference = (found.final(*found.inputs) - found.debug(*found.inputs)).abs()
    assert float(difference.max()) <= 1.01 * step
