"""`check_quantizer` holds for honest quantizers and catches each lie."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import qlib
from conformance import check_quantizer
from conformance.errors import UsageError

aten = torch.ops.aten
INT8 = qlib.QuantizationSpec(torch.int8)
WEIGHT = qlib.QuantizationSpec(torch.int8, "min_max", -127, 127, torch.per_channel_symmetric, 0)
INPUTS = (torch.randn(6, 5, generator=torch.Generator().manual_seed(5)),)


@dataclass(frozen=True)
class Linears:
    """Quantizes linear layers, one activation spec for all; `passed_over` of them, from the first, it forgets."""

    activation: Any = INT8
    passed_over: int = 0

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.find_nodes(op="call_function", target=aten.linear.default)[self.passed_over :]:
            x, weight = node.args[:2]
            note = qlib.QuantizationAnnotation({x: self.activation, weight: WEIGHT}, self.activation)  # type: ignore[dict-item]
            node.meta["quantization_annotation"] = note
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))


COUNTS: dict[object, int] = {
    "quantized::quantize_per_tensor": 3,
    "quantized::dequantize_per_tensor": 3,
    "quantized::dequantize_per_channel": 2,
    "quantized::quantize_per_channel": 0,
    aten.linear.default: 2,
}
ORDER = ("quantized::quantize_per_tensor", "quantized::dequantize_per_tensor", aten.linear, aten.linear.default)


def test_an_honest_quantizer(module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    converted = check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER)
    assert isinstance(converted(*INPUTS), Tensor)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_operators_by_the_names_of_other_test_suites(module: nn.Module) -> None:
    pytest.importorskip("torch.ao.quantization.fx._decomposed")
    theirs = torch.ops.quantized_decomposed
    counts = {
        theirs.quantize_per_tensor.default: 3,
        theirs.dequantize_per_tensor.default: 3,
        theirs.quantize_per_tensor.tensor: 0,
        theirs.dequantize_per_channel.default: 2,
        aten.linear_.default if hasattr(aten, "linear_") else aten.linear.default: 2,
    }
    check_quantizer(module, INPUTS, Linears(), counts, [theirs.dequantize_per_tensor.default, aten.linear.default])
    dynamic = Linears(qlib.QuantizationSpec(torch.int8, is_dynamic=True))
    with pytest.raises(AssertionError, match="occurrence"):
        check_quantizer(module, INPUTS, dynamic, {theirs.choose_qparams.tensor: 9})


def test_dynamic_quantization(module: nn.Module) -> None:
    class Dynamic(Linears):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            super().annotate(model)
            for node in model.graph.nodes:
                if "quantization_annotation" in node.meta:
                    node.meta["quantization_annotation"].output_qspec = None
            return model

    spec = qlib.QuantizationSpec(torch.uint8, is_dynamic=True)
    counts = {"quantized::choose_qparams": 2, "quantized::quantize_per_tensor.tensor": 2}
    check_quantizer(module, INPUTS, Dynamic(spec), counts, ["quantized::choose_qparams", aten.linear])


def test_a_count_that_is_not_so(module: nn.Module) -> None:
    with pytest.raises(AssertionError, match=r"^occurrence: expected .*per_channel': 2.*; got .*per_channel': 1"):
        check_quantizer(module, INPUTS, Linears(passed_over=1), COUNTS, ORDER)


def test_an_overload_does_not_stand_for_another(module: nn.Module) -> None:
    with pytest.raises(AssertionError, match=r"^occurrence: "):
        check_quantizer(module, INPUTS, Linears(), {"quantized::quantize_per_tensor.tensor": 3})


def test_an_order_that_is_not_so(module: nn.Module) -> None:
    order = ["quantized::dequantize_per_channel", aten.linear, "quantized::dequantize_per_channel", aten.linear]
    check_quantizer(module, INPUTS, Linears(), {}, order)
    with pytest.raises(AssertionError, match=r"^order: expected quantized::dequantize_per_channel → .*; got aten::"):
        check_quantizer(module, INPUTS, Linears(passed_over=1), {}, order)


def test_a_scale_that_leaves_nothing(module: nn.Module) -> None:
    coarse = qlib.FixedQParamsQuantizationSpec(torch.int8, 1000.0, 0)
    with pytest.raises(AssertionError, match=r"(?m)^accuracy: expected sqnr_db >= 15; got sqnr_db"):
        check_quantizer(module, INPUTS, Linears(coarse), COUNTS)


def test_a_bound_of_one_s_own(module: nn.Module) -> None:
    with pytest.raises(AssertionError, match=r"^accuracy: expected sqnr_db >= 90; got sqnr_db"):
        check_quantizer(module, INPUTS, Linears(), COUNTS, least_sqnr_db=90.0)


def test_calibration_data_is_used(module: nn.Module) -> None:
    converted = check_quantizer(module, INPUTS, Linears(), {}, calibration=[INPUTS, (INPUTS[0] * 4,)])
    narrow = check_quantizer(module, INPUTS, Linears(), {})
    assert not torch.equal(converted(*INPUTS), narrow(*INPUTS))


def shifted(form: fx.GraphModule) -> fx.GraphModule:
    """A form that moves its integers by one step before it dequantizes them."""
    (output,) = form.graph.find_nodes(op="output")
    result = output.args[0]
    last = result if result.target is not torch.ops.qlib.dequantize_per_tensor.default else result.args[0]
    with form.graph.inserting_after(last):
        moved = form.graph.call_function(torch.ops.aten.add.Scalar, (last, 1))
    moved.meta = dict(last.meta)
    for user in [user for user in last.users if user is not moved]:
        user.replace_input_with(last, moved)
    if "replaces" in last.meta:
        moved.meta["replaces"] = last.meta.pop("replaces")
    form.recompile()
    return form


def test_a_final_form_that_is_off_by_one(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = qlib.lower
    monkeypatch.setattr(qlib, "lower", lambda debug: shifted(lower(debug)))
    with pytest.raises(AssertionError, match=r"(?m)^debug_equal: ") as caught:
        check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER)
    assert "reference: " in str(caught.value)
    assert "occurrence" not in str(caught.value)


def test_a_reference_form_that_is_off_by_one(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = qlib.convert_pt2e

    def lying(model: fx.GraphModule, use_reference_representation: bool = False) -> fx.GraphModule:
        form = convert(model, use_reference_representation)
        return shifted(form) if use_reference_representation else form

    monkeypatch.setattr(qlib, "convert_pt2e", lying)
    with pytest.raises(AssertionError, match=r"^reference: expected the numbers of the final form; got off by"):
        check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER)


def test_all_findings_are_told(module: nn.Module) -> None:
    coarse = qlib.FixedQParamsQuantizationSpec(torch.int8, 1000.0, 0)
    with pytest.raises(AssertionError) as caught:
        check_quantizer(module, INPUTS, Linears(coarse, 1), COUNTS, [aten.linear, aten.conv2d])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["occurrence", "order", "accuracy"]


def test_a_misspelt_operator_is_no_failure_of_the_model(module: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'quantized::quantize_per_tensor'\?"):
        check_quantizer(module, INPUTS, Linears(), {"quantized::quantise_per_tensor": 3})


def test_two_counts_for_one_operator(module: nn.Module) -> None:
    with pytest.raises(UsageError, match="meant twice, 1 and 2 times"):
        check_quantizer(module, INPUTS, Linears(), {aten.view.default: 1, aten.reshape.default: 2})


def test_the_graphs_can_be_printed(module: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    check_quantizer(module, INPUTS, Linears(), COUNTS, is_debug_mode=True)
    printed = capsys.readouterr().out
    for name in ("float graph:", "converted graph:", "final graph:", "reference graph:"):
        assert name in printed


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Convolutions:
    """Quantizes a convolution and what its batch norm gives; the liar has the norm's input quantized too."""

    lies: bool = False
    activation: Any = INT8

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for norm in model.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
            conv = norm.args[0]
            inputs = {conv.args[0]: self.activation, conv.args[1]: WEIGHT}
            conv.meta["quantization_annotation"] = qlib.QuantizationAnnotation(inputs)
            edges = {conv: self.activation} if self.lies else {}
            norm.meta["quantization_annotation"] = qlib.QuantizationAnnotation(edges, self.activation)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass


IMAGES = (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(5)),)
TRAINED: dict[object, int] = {
    "quantized::quantize_per_tensor": 2,
    "quantized::dequantize_per_tensor": 2,
    "quantized::dequantize_per_channel": 1,
    "aten::conv2d": 1,
    "aten::batch_norm": 0,
}


@pytest.fixture
def convolution() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    module(*IMAGES)
    return module


def test_an_honest_quantizer_of_training(convolution: nn.Module) -> None:
    before = {name: value.clone() for name, value in convolution.state_dict().items()}
    state = torch.get_rng_state()
    order = ["quantized::quantize_per_tensor", aten.conv2d, "quantized::quantize_per_tensor"]
    first = check_quantizer(convolution, IMAGES, Convolutions(), TRAINED, order, is_qat=True)
    assert torch.equal(torch.get_rng_state(), state)
    second = check_quantizer(convolution, IMAGES, Convolutions(), TRAINED, order, is_qat=True)
    assert torch.equal(first(*IMAGES), second(*IMAGES))
    assert convolution.training
    assert all(torch.equal(value, before[name]) for name, value in convolution.state_dict().items())


def test_weights_are_trained(module: nn.Module) -> None:
    trained = check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER, is_qat=True)
    calibrated = check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER)
    assert not torch.equal(trained(*INPUTS), calibrated(*INPUTS))


def test_a_quantizer_that_keeps_the_norm_apart(convolution: nn.Module) -> None:
    with pytest.raises(AssertionError, match=r"^occurrence: expected .*batch_norm': 0.*; got .*batch_norm': 1"):
        check_quantizer(convolution, IMAGES, Convolutions(lies=True), TRAINED, is_qat=True)


def test_a_scale_that_leaves_nothing_after_training(convolution: nn.Module) -> None:
    coarse = Convolutions(activation=qlib.FixedQParamsQuantizationSpec(torch.int8, 1000.0, 0))
    with pytest.raises(AssertionError, match=r"(?m)^accuracy: expected sqnr_db >= 15; got sqnr_db"):
        check_quantizer(convolution, IMAGES, coarse, TRAINED, is_qat=True)


def test_a_conversion_that_forgets_the_training(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """It converts the graph before its last step, which all other checks take for right."""
    convert = qlib.convert_pt2e

    def forgetful(model: fx.GraphModule, use_reference_representation: bool = False) -> fx.GraphModule:
        earlier = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in earlier.parameters():
                parameter.mul_(1.02)
        return convert(earlier, use_reference_representation)

    monkeypatch.setattr(qlib, "convert_pt2e", forgetful)
    with pytest.raises(AssertionError, match=r"^trained: expected the numbers of the trained graph .*; got off by"):
        check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER, is_qat=True)
    check_quantizer(module, INPUTS, Linears(), COUNTS, ORDER)
