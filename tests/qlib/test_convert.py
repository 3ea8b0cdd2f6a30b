"""The debug form: float operators between quantize and dequantize."""

from __future__ import annotations

import math

import pytest
import torch
from graphs import Draft, aten, debug_form, example, names
from torch import Tensor, fx

from qlib.errors import CalibrationError
from qlib.graph import attribute, op_name
from qlib.passes.convert import convert
from qlib.passes.prepare import prepare
from qlib.qconfig import PRESETS, QConfig, QConfigMapping, at_run_time
from qlib.qparams import DType, QSpec

DYNAMIC = QConfigMapping(at_run_time(PRESETS["default"]))


def layer(bias: str | None = "bias") -> fx.GraphModule:
    draft = Draft()
    return draft.done(draft.linear(draft.input(5, 3), 4, bias=bias))


def quantizes(model: fx.GraphModule) -> list[fx.Node]:
    return [n for n in model.graph.nodes if op_name(n) == "qlib::quantize_per_tensor"]


def step_of(node: fx.Node) -> float:
    step = node.args[1]
    assert isinstance(step, float)
    return step


def test_a_layer_of_one_operator() -> None:
    wanted = ["quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel", "dequantize_per_channel"]
    wanted += ["linear", "quantize_per_tensor", "dequantize_per_tensor"]
    assert names(debug_form(layer())) == wanted


def test_the_parameters_are_those_of_the_range() -> None:
    model = layer()
    x = example(model)[0]
    first, last = quantizes(debug_form(model))
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    assert first.args[1] == pytest.approx((high - low) / 255)
    assert first.args[2] == round(-low / (high - low) * 255)
    assert first.args[3:] == last.args[3:] == (0, 255, torch.uint8)


def test_weights_and_bias_are_integers() -> None:
    model = layer()
    debug = debug_form(model)
    weight, bias = attribute(model, "fc.weight"), attribute(model, "fc.bias")
    stored, scale = attribute(debug, "fc.weight_int8"), attribute(debug, "fc.weight_int8_scale")
    assert stored.dtype is torch.int8
    assert torch.allclose(scale, weight.abs().amax(1) / 127)
    assert torch.equal(stored.double(), torch.round(weight / scale[:, None]).double())
    steps = attribute(debug, "fc.bias_int32")
    product = step_of(quantizes(debug)[0]) * scale.double()
    assert steps.dtype is torch.int32
    assert torch.equal(steps.double(), torch.round(bias.double() / product))
    assert torch.allclose(attribute(debug, "fc.bias_int32_scale").double(), product)


def test_float_weights_are_gone() -> None:
    assert not {"fc.weight", "fc.bias"} & set(debug_form(layer()).state_dict())


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_debug_form_is_close_to_float(preset: str) -> None:
    model = layer()
    inputs = example(model)
    real, found = model(*inputs), debug_form(model, preset)(*inputs)
    assert (real - found).abs().max() < (0.2 if "4" in preset else 0.05) * real.abs().max()


def test_per_tensor_weights_have_one_scale() -> None:
    debug = debug_form(layer(), "per_tensor")
    assert names(debug).count("dequantize_per_channel") == 0
    assert names(debug).count("dequantize_per_tensor") == 4


def test_a_bias_that_overflows_widens_the_weight_scale() -> None:
    draft = Draft()
    x = draft.input(5, 3)
    w, b = draft.constant("fc.weight", torch.full((1, 3), 1e-6)), draft.constant("fc.bias", torch.tensor([5.0]))
    model = draft.done(draft.call(aten.linear.default, x, w, b, module=("fc", "nn.Linear")))
    tiny = QConfig(QSpec(observer="fixed", scale=1e-6), PRESETS["default"].weight, QSpec())
    prepared = prepare(model, tiny)
    prepared(torch.rand(5, 3))
    debug = convert(prepared)
    steps = attribute(debug, "fc.bias_int32").double()
    assert 2**29 <= float(steps) <= 2**30 + 2**7
    assert float(steps * attribute(debug, "fc.bias_int32_scale")) == pytest.approx(5.0, rel=1e-6)


def test_a_bias_shared_by_two_layers_is_stored_in_the_steps_of_each() -> None:
    draft = Draft()
    x, b = draft.input(2, 3), draft.draw("shared.bias", 3)
    one = draft.call(aten.linear.default, x, draft.draw("one.weight", 3, 3), b, module=("one", "nn.Linear"))
    two = draft.call(aten.linear.default, one, draft.draw("two.weight", 3, 3), b, module=("two", "nn.Linear"))
    model = draft.done(two)
    debug = debug_form(model)
    layers = [n for n in debug.graph.nodes if n.target is aten.linear.default]
    stored, scales = zip(
        *([attribute(debug, a.target).double() for a in n.args[2].args[:2]] for n in layers), strict=True
    )
    assert not torch.equal(stored[0], stored[1])
    for steps, scale in zip(stored, scales, strict=True):
        assert torch.allclose(steps * scale, attribute(model, "shared.bias").double(), atol=float(scale.max()))


def test_a_group_has_the_same_parameters_everywhere() -> None:
    draft = Draft()
    conv = draft.conv(draft.input(1, 2, 8), 3)
    debug = debug_form(draft.done(draft.call(aten.avg_pool1d.default, conv, [2], [2])))
    first, second, third = (n.args[1:] for n in quantizes(debug))
    assert second == third
    assert first != second


def test_the_name_of_a_tensor_that_was_never_calibrated_is_told() -> None:
    with pytest.raises(CalibrationError, match=r"^the observer of x0 was never called: run the prepared model"):
        convert(prepare(layer()))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_name_of_a_tensor_with_infinities_is_told(bad: float) -> None:
    model = layer()
    prepared = prepare(model)
    prepared(torch.full((5, 3), bad))
    with pytest.raises(CalibrationError, match=r"observer of x0 .*infinity or NaN"):
        convert(prepared)


def test_the_prepared_graph_can_be_calibrated_further() -> None:
    model = layer()
    prepared = prepare(model)
    inputs = example(model)
    prepared(*inputs)
    before, graph = convert(prepared), str(prepared.graph)
    again = convert(prepared)
    assert str(prepared.graph) == graph
    assert torch.equal(before(*inputs), again(*inputs))
    prepared(inputs[0] * 10)
    wider = convert(prepared)
    assert step_of(quantizes(wider)[0]) == pytest.approx(step_of(quantizes(before)[0]) * 10)


@pytest.mark.parametrize("bias", ["bias", None])
def test_the_dynamic_form(bias: str | None) -> None:
    model = layer(bias)
    debug = debug_form(model, DYNAMIC)
    wanted = ["choose_qparams", "quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel", "linear"]
    assert names(debug) == wanted
    x = example(model)[0] * 100  # far outside of the range that was calibrated
    real = model(x)
    assert (debug(x) - real).abs().max() < 0.03 * real.abs().max()
    assert ("fc.bias" in debug.state_dict()) == (bias is not None)


def test_a_transposed_observer_axis_is_the_output_channels() -> None:
    qconfig = QConfig(QSpec(), QSpec(DType.INT8, symmetric=True, axis=1))
    scale: Tensor = attribute(debug_form(layer(), qconfig), "fc.weight_int8_scale")
    assert scale.shape == (4,)


def test_metadata_of_quantized_tensors() -> None:
    for node in debug_form(layer()).graph.nodes:
        if op_name(node).startswith("qlib::"):
            wanted = torch.uint8 if "::quantize" in op_name(node) else torch.float32
            assert node.meta["dtype"] is wanted
            assert isinstance(node.meta["shape"], tuple)
