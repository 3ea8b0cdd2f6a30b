"""Training in the export flow: what a quantizer asked of a layer and its batch norm."""

from __future__ import annotations

import pytest
import torch
from captures import LINEAR, Of, exported, image, linears, names
from quantizers import INT8, WEIGHT, ByOperator
from ties import disagreements
from torch import Tensor, fx, nn

import qlib
from qlib.quantizer import QuantizationAnnotation

aten = torch.ops.aten
pytestmark = pytest.mark.usefixtures("seeded_and_quiet")


class ConvNorm(ByOperator):
    """Quantizes a convolution's input and weight, and the value after its batch norm and relu."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for conv in model.graph.find_nodes(op="call_function", target=aten.conv2d.default):
            conv.meta["quantization_annotation"] = QuantizationAnnotation({conv.args[0]: INT8, conv.args[1]: WEIGHT})
            (norm,) = conv.users
            assert norm.target is aten.batch_norm.default and norm.args[5]  # as in training, whatever was captured
            last = next((user for user in norm.users if user.target is aten.relu.default), norm)
            last.meta["quantization_annotation"] = QuantizationAnnotation({}, INT8)
        return model


def steps(prepared: fx.GraphModule, *inputs: Tensor) -> None:
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        prepared(*inputs).square().mean().backward()
        optimizer.step()


def assert_trained_is_converted(prepared: fx.GraphModule, *inputs: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    qlib.move_exported_model_to_eval(prepared)
    debug = qlib.convert_pt2e(prepared)
    final = qlib.lower(debug)
    assert torch.equal(prepared(*inputs), debug(*inputs))
    assert disagreements(debug, final, inputs) == 0
    return debug, final


WAYS = {
    "ours": qlib.capture_pre_autograd_graph,
    "export": exported,
    "strict": lambda module, inputs: exported(module, inputs, strict=True),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_convolution_is_trained_with_its_norm(way: str, relu: bool, training: bool) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *[nn.ReLU()] * relu, nn.Dropout(0.5)]
    module, x = nn.Sequential(*layers).train(training), image(8, 3, 6, 6)[0]
    captured = WAYS[way](module, (x,))
    before = {name: value.clone() for name, value in captured.state_dict().items()}
    prepared = qlib.prepare_qat_pt2e(captured, ConvNorm())
    assert prepared.training
    assert torch.equal(prepared(x), prepared(x)) is not training  # evaluation mode captures no dropout
    moved = {name: value.clone() for name, value in prepared.state_dict().items()}
    steps(prepared, x)
    for name in ("0.weight", "1.weight", "1.running_mean"):
        assert not torch.equal(prepared.state_dict()[name], moved[name]), name
    debug, final = assert_trained_is_converted(prepared, x)
    last = ["relu"] if relu else []
    assert names(debug)[-4 - relu :] == [
        "dequantize_per_channel", "conv2d", *last, "quantize_per_tensor", "dequantize_per_tensor"
    ]  # fmt: skip
    assert qlib.executed_ops(final)["quantized::conv2d_relu" if relu else "quantized::conv2d"] == 1
    assert all(torch.equal(captured.state_dict()[name], value) for name, value in before.items())


def test_points_at_a_norm_and_a_dropout_are_points_at_the_layer() -> None:
    class Pointing(ConvNorm):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            nodes = {node.name: node for node in model.graph.nodes}
            conv, norm, drop, linear = (nodes[name] for name in ("conv2d", "batch_norm", "dropout", "linear"))
            (x, w), (fc,) = conv.args[:2], linear.args[1:2]
            conv.meta["quantization_annotation"] = QuantizationAnnotation({x: INT8, w: WEIGHT})
            shared = qlib.SharedQuantizationSpec(norm)
            norm.meta["quantization_annotation"] = QuantizationAnnotation({}, INT8)
            linear.meta["quantization_annotation"] = QuantizationAnnotation({drop: shared, fc: WEIGHT}, INT8)
            return model

    layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "drop": nn.Dropout(0.5), "fc": nn.Linear(4, 2)}
    module = Of(lambda m, x: m.fc(m.drop(m.bn(m.conv(x)))), layers).train()
    x = image(8, 3, 6, 6)[0]
    prepared = qlib.prepare_qat_pt2e(qlib.capture_pre_autograd_graph(module, (x,)), Pointing())
    steps(prepared, x)
    debug, final = assert_trained_is_converted(prepared, x)
    quantizes = debug.graph.find_nodes(op="call_function", target=torch.ops.qlib.quantize_per_tensor.default)
    assert len(quantizes) == 3  # input, the convolution's result, the linear layer's
    assert {"quantized::conv2d", "quantized::linear"} <= set(qlib.executed_ops(final))


def test_a_norm_whose_input_is_quantized_is_not_folded() -> None:
    class Apart(ConvNorm):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            nodes = {node.name: node for node in model.graph.nodes}
            conv, norm = nodes["conv2d"], nodes["batch_norm"]
            conv.meta["quantization_annotation"] = QuantizationAnnotation({conv.args[0]: INT8, conv.args[1]: WEIGHT})
            norm.meta["quantization_annotation"] = QuantizationAnnotation({conv: INT8}, INT8)
            return model

    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), image(8, 3, 6, 6)[0]
    prepared = qlib.prepare_qat_pt2e(qlib.capture_pre_autograd_graph(module, (x,)), Apart())
    steps(prepared, x)
    _, final = assert_trained_is_converted(prepared, x)
    assert {"quantized::conv2d", "quantized::batch_norm"} <= set(qlib.executed_ops(final))


def test_a_layer_without_a_kernel_folds_too() -> None:
    """Its result is left in float, so that it runs in float on dequantized values; the bias stays as it is."""

    class Inputs(ConvNorm):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            for conv in model.graph.find_nodes(op="call_function", target=aten.conv2d.default):
                note = QuantizationAnnotation({conv.args[0]: INT8, conv.args[1]: WEIGHT})
                conv.meta["quantization_annotation"] = note
            return model

    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), image(8, 3, 6, 6)[0]
    prepared = qlib.prepare_qat_pt2e(qlib.capture_pre_autograd_graph(module, (x,)), Inputs())
    steps(prepared, x)
    debug, _ = assert_trained_is_converted(prepared, x)
    assert names(debug)[-1] == "conv2d"


def test_biases_without_a_spec_are_trained_as_they_are_converted() -> None:
    prepared = qlib.prepare_qat_pt2e(qlib.capture_pre_autograd_graph(linears().train(), LINEAR), ByOperator())
    steps(prepared, *LINEAR)
    debug, final = assert_trained_is_converted(prepared, *LINEAR)
    assert "0.bias_snapped" in dict(debug.named_buffers())
    assert qlib.executed_ops(final)["quantized::linear"] == 2


def test_modes_are_switched_from_outside() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).train()
    prepared = qlib.prepare_qat_pt2e(exported(module, LINEAR), ByOperator())
    prepared(*LINEAR)
    assert qlib.move_exported_model_to_eval(prepared) is prepared and not prepared.training
    assert torch.equal(prepared(*LINEAR), prepared(*LINEAR))
    qlib.move_exported_model_to_train(prepared)
    assert prepared.training and not torch.equal(prepared(*LINEAR), prepared(*LINEAR))
