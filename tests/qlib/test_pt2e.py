"""The export flow from a module to its forms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from captures import LINEAR, Of, exported, image, linears, names
from quantizers import AT_RUN_TIME, INT8, UINT8, WEIGHT, ByName, ByOperator
from ties import disagreements
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

import qlib
from qlib.errors import CaptureError, QuantizerError
from qlib.graph import op_name
from qlib.quantizer import QuantizationAnnotation, QuantizationSpec

aten = torch.ops.aten
pytestmark = pytest.mark.usefixtures("seeded_and_quiet")


def conv_bn() -> nn.Module:
    layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "drop": nn.Dropout(0.5)}
    module = Of(lambda m, x: m.drop(torch.relu(m.bn(m.conv(x)))), layers)
    module(*image(8, 3, 6, 6))
    return module.eval()


def calibrated(model: fx.GraphModule, quantizer: Any, *inputs: Tensor) -> fx.GraphModule:
    prepared = qlib.prepare_pt2e(model, quantizer)
    prepared(*inputs)
    return prepared


# --------------------------------------------------------------------------------------------------------------- capture


def test_nodes_keep_what_quantizers_go_by() -> None:
    model = qlib.capture_pre_autograd_graph(conv_bn(), image(2, 3, 6, 6))
    (conv,) = model.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert conv.meta["torch_fn"][1].endswith("conv2d")
    assert [kind for _, kind in conv.meta["nn_module_stack"].values()][-1] == "torch.nn.modules.conv.Conv2d"
    assert "captures.py" in conv.meta["stack_trace"]
    for node in model.graph.nodes:
        if node.op != "output":
            assert isinstance(node.meta["val"], FakeTensor)
            assert (tuple(node.meta["val"].shape), node.meta["val"].dtype) == (node.meta["shape"], node.meta["dtype"])


def test_an_operator_in_place_keeps_them_too() -> None:
    module = Of(lambda m, x: torch.relu_(m.fc(x)), {"fc": nn.Linear(5, 4)}).eval()
    model = qlib.capture_pre_autograd_graph(module, LINEAR)
    (relu,) = model.graph.find_nodes(op="call_function", target=aten.relu.default)
    assert relu.meta["torch_fn"][1].endswith("relu_")


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_module_leads_to_the_same(strict: bool) -> None:
    module = linears()
    ours = qlib.convert_pt2e(calibrated(qlib.capture_pre_autograd_graph(module, LINEAR), ByOperator(), *LINEAR))
    theirs = qlib.convert_pt2e(calibrated(exported(module, LINEAR, strict=strict), ByOperator(), *LINEAR))
    assert names(ours) == names(theirs)
    assert torch.equal(ours(*LINEAR), theirs(*LINEAR))
    assert [n.meta["module_path"] for n in theirs.graph.nodes if n.target is aten.linear.default] == ["0", "2"]


def test_sizes_that_export_leaves_open_are_the_example_s() -> None:
    module = Of(lambda m, x: m.fc(x).view(x.shape[0], 2, 2), {"fc": nn.Linear(5, 4)}).eval()
    model = exported(module, LINEAR, dynamic_shapes=(({0: torch.export.Dim("batch")},),))
    prepared = calibrated(model, ByOperator(), *LINEAR)
    assert qlib.lower(qlib.convert_pt2e(prepared))(*LINEAR).shape == (3, 2, 2)


def test_outputs_keep_their_structure() -> None:
    module = Of(lambda m, x: {"a": m.fc(x), "b": (x,)}, {"fc": nn.Linear(5, 4)}).eval()
    debug = qlib.convert_pt2e(calibrated(exported(module, LINEAR), ByOperator(), *LINEAR))
    found = debug(*LINEAR)
    assert list(found) == ["a", "b"]
    assert torch.equal(found["b"][0], LINEAR[0])


def test_the_given_graphs_are_left_alone() -> None:
    for model in (
        qlib.capture_pre_autograd_graph(conv_bn(), image(2, 3, 6, 6)),
        exported(conv_bn(), image(2, 3, 6, 6)),
    ):
        before = (str(model.graph), {name: value.clone() for name, value in model.state_dict().items()})
        prepared = calibrated(model, ByOperator(aten.conv2d.default), *image(2, 3, 6, 6))
        prepared_before = str(prepared.graph)
        qlib.convert_pt2e(prepared)
        assert str(prepared.graph) == prepared_before
        assert str(model.graph) == before[0]
        assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
        assert not any("quantization_annotation" in node.meta for node in model.graph.nodes)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(CaptureError, match="expected a captured graph, found Sequential"):
        qlib.prepare_pt2e(linears(), ByOperator())  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"from torch.export.export"):
        qlib.prepare_pt2e(fx.symbolic_trace(linears()), ByOperator())


def test_arguments_by_name_are_refused() -> None:
    model = torch.export.export(linears(), (), {"input": LINEAR[0]}).module()
    with pytest.raises(CaptureError, match="takes tensors by position"):
        qlib.prepare_pt2e(model, ByOperator())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- the quantizer


class Transforming(ByOperator):
    """Adds a constant to the input of the graph before it annotates."""

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        (x,) = model.graph.find_nodes(op="placeholder")
        model.register_buffer("shift", torch.tensor(0.5))
        user = next(iter(x.users))
        with model.graph.inserting_before(user):
            shift = model.graph.get_attr("shift")
            moved = model.graph.call_function(aten.add.Tensor, (x, shift))
        user.replace_input_with(x, moved)
        return model


def test_a_quantizer_may_change_the_graph_first() -> None:
    prepared = calibrated(qlib.capture_pre_autograd_graph(linears(), LINEAR), Transforming(), *LINEAR)
    debug = qlib.convert_pt2e(prepared)
    assert names(debug).index("add") < names(debug).index("linear")
    assert disagreements(debug, qlib.lower(debug), LINEAR) == 0


def test_constants_that_are_quantized_are_stored_as_integers() -> None:
    def notes(n: Any) -> dict[str, QuantizationAnnotation]:
        (mul,) = (node for node in n.values() if node.target is aten.mul.Tensor)
        return {mul.name: QuantizationAnnotation(dict.fromkeys(mul.args, INT8), INT8)}

    module = Of(lambda m, x: x * m.factor, {"factor": torch.randn(3, 5)})
    prepared = calibrated(qlib.capture_pre_autograd_graph(module, LINEAR), ByName(notes), *LINEAR)
    debug = qlib.convert_pt2e(prepared)
    assert sorted(names(debug)) == ["dequantize_per_tensor"] * 3 + ["mul"] + ["quantize_per_tensor"] * 2
    final = qlib.lower(debug)
    assert qlib.executed_ops(final)["quantized::mul"] == 1
    assert disagreements(debug, final, LINEAR) == 0
    unfolded = qlib.convert_pt2e(prepared, fold_quantize=False)
    assert names(unfolded).count("quantize_per_tensor") == 3
    assert torch.equal(unfolded(*LINEAR), debug(*LINEAR))


def test_operators_are_shown_as_they_were_exported() -> None:
    seen: list[Any] = []

    class Looking(ByOperator):
        def validate(self, model: fx.GraphModule) -> None:
            seen.extend(node.target for node in model.graph.nodes)

    module = Of(lambda m, x: nn.functional.hardtanh(m.fc(x), 0.0, 6.0).view(-1), {"fc": nn.Linear(5, 4)}).eval()
    prepared = qlib.prepare_pt2e(qlib.capture_pre_autograd_graph(module, LINEAR), Looking())
    assert {aten.view.default, aten.hardtanh.default} <= set(seen)
    assert {"reshape", "relu6"} <= set(names(prepared))


def test_a_quantizer_that_changes_observers_is_refused() -> None:
    class Meddling(ByOperator):
        def prepare_obs_or_fq_callback(self, model: fx.GraphModule, observers: Any) -> None:
            pass

    with pytest.raises(QuantizerError, match=r"Meddling.prepare_obs_or_fq_callback changes the observers"):
        qlib.prepare_pt2e(qlib.capture_pre_autograd_graph(linears(), LINEAR), Meddling())


# ------------------------------------------------------------------------------------------------------------ the forms


def test_batch_norms_are_folded_as_in_the_other_flow() -> None:
    inputs = image(2, 3, 6, 6)
    model = qlib.capture_pre_autograd_graph(conv_bn(), inputs)
    debug = qlib.convert_pt2e(calibrated(model, ByOperator(aten.conv2d.default), *inputs))
    assert "batch_norm" not in names(debug)
    assert disagreements(debug, qlib.lower(debug), inputs) == 0


@pytest.mark.parametrize("activation", [INT8, UINT8, QuantizationSpec(torch.int16, qscheme=torch.per_tensor_symmetric)])
def test_each_form_computes_the_same_integers(activation: QuantizationSpec) -> None:
    quantizer = ByOperator(activation=activation, result=activation)
    prepared = calibrated(exported(linears(), LINEAR), quantizer, *LINEAR)
    debug = qlib.convert_pt2e(prepared)
    final = qlib.lower(debug)
    assert qlib.executed_ops(final)["quantized::linear"] == 2
    assert disagreements(debug, final, LINEAR) == 0
    spelled = qlib.convert_pt2e(prepared, use_reference_representation=True)
    with qlib.implementation("reference"):
        assert torch.equal(spelled(*LINEAR), final(*LINEAR))
    assert {name.partition("::")[0] for name in map(op_name, spelled.graph.nodes) if name} == {"aten"}


def test_dynamic_specs() -> None:
    prepared = calibrated(exported(linears(), LINEAR), ByOperator(activation=AT_RUN_TIME, result=None), *LINEAR)
    debug = qlib.convert_pt2e(prepared)
    assert names(debug)[:3] == ["choose_qparams", "quantize_per_tensor", "dequantize_per_tensor"]
    final = qlib.lower(debug)
    assert qlib.executed_ops(final) == {"quantized::linear_dynamic": 1, "quantized::linear_relu_dynamic": 1}
    assert torch.allclose(final(*LINEAR), debug(*LINEAR), atol=1e-6)


@pytest.mark.parametrize("weight", [WEIGHT, QuantizationSpec(torch.int8)])
def test_weights_may_stay_floats_before_a_quantize(weight: QuantizationSpec) -> None:
    prepared = calibrated(exported(linears(), LINEAR), ByOperator(weight=weight), *LINEAR)
    folded = qlib.convert_pt2e(prepared)
    unfolded = qlib.convert_pt2e(prepared, fold_quantize=False)
    assert [n for n in names(unfolded) if "dequantize" in n] == [n for n in names(folded) if "dequantize" in n]
    assert len(names(unfolded)) == len(names(folded)) + 2
    assert {"0.weight", "2.weight"} <= set(dict(unfolded.named_parameters()))
    assert not {"0.weight", "2.weight"} & set(dict(folded.named_parameters()))
    assert torch.equal(unfolded(*LINEAR), folded(*LINEAR))


def test_each_annotated_operator_has_its_own_dequantize() -> None:
    module = Of(lambda m, x: (m.a(x), m.b(x), x.abs(), x.neg()), {"a": nn.Linear(5, 4), "b": nn.Linear(5, 4)}).eval()

    class All(ByOperator):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            (x,) = model.graph.find_nodes(op="placeholder")
            x.meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=INT8)
            return super().annotate(model)

    debug = qlib.convert_pt2e(calibrated(qlib.capture_pre_autograd_graph(module, LINEAR), All(), *LINEAR))
    (quantize,) = (n for n in debug.graph.nodes if "quantize" in n.name and n.args[0].op == "placeholder")
    takers = [sorted(user.name for user in dequantize.users) for dequantize in quantize.users]
    assert sorted(takers) == [["abs_1", "neg"], ["linear"], ["linear_1"]]
    final = qlib.lower(debug)
    assert qlib.executed_ops(final)["quantized::linear"] == 2


def test_a_layer_that_is_called_twice() -> None:
    module = Of(lambda m, x: m.fc(torch.relu(m.fc(x))), {"fc": nn.Linear(5, 5)}).eval()
    debug = qlib.convert_pt2e(calibrated(exported(module, LINEAR), ByOperator(), *LINEAR))
    final = qlib.lower(debug)
    assert qlib.executed_ops(final)["quantized::linear"] == 2
    assert disagreements(debug, final, LINEAR) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_prepared_and_converted_graphs_can_be_kept(copied: Any) -> None:
    prepared = calibrated(qlib.capture_pre_autograd_graph(linears(), LINEAR), ByOperator(), *LINEAR)
    debug, again = qlib.convert_pt2e(prepared), qlib.convert_pt2e(copied(prepared))
    assert names(debug) == names(again)
    assert torch.equal(debug(*LINEAR), again(*LINEAR))
    assert torch.equal(qlib.lower(copied(debug))(*LINEAR), qlib.lower(debug)(*LINEAR))


# ------------------------------------------------------------------------------------------------ training and evaluation


def test_a_graph_in_training_is_one() -> None:
    inputs = image(4, 3, 6, 6)
    module = conv_bn().train()
    model = qlib.capture_pre_autograd_graph(module, inputs)
    eager = copy.deepcopy(module)
    torch.manual_seed(1)
    wanted = eager(*inputs)
    torch.manual_seed(1)
    assert torch.equal(model(*inputs), wanted)
    for name, value in eager.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


@pytest.mark.parametrize("capture", [qlib.capture_pre_autograd_graph, exported])
def test_a_graph_moves_to_evaluation_and_back(capture: Any) -> None:
    inputs = image(4, 3, 6, 6)
    module = conv_bn().train()
    model = capture(module, inputs)
    eager = copy.deepcopy(module).eval()
    assert qlib.move_exported_model_to_eval(model) is model
    torch.testing.assert_close(model(*inputs), eager(*inputs))
    for name, value in eager.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name
    qlib.move_exported_model_to_train(model)
    eager.train()
    torch.manual_seed(1)
    wanted = eager(*inputs)
    torch.manual_seed(1)
    torch.testing.assert_close(model(*inputs), wanted)
    for name, value in eager.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value)


def test_a_graph_captured_in_training_can_be_quantized_after_it() -> None:
    inputs = image(4, 3, 6, 6)
    module = conv_bn()
    trained = qlib.move_exported_model_to_eval(qlib.capture_pre_autograd_graph(copy.deepcopy(module).train(), inputs))
    plain = qlib.capture_pre_autograd_graph(module, inputs)
    both = [
        qlib.convert_pt2e(calibrated(model, ByOperator(aten.conv2d.default), *inputs)) for model in (trained, plain)
    ]
    assert torch.equal(both[0](*inputs), both[1](*inputs))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z: Tensor = torch.cond(y.sum() > 0, lambda y: self.b(y) + 1, lambda y: y - 1, (y,))
        return z


@pytest.mark.parametrize("capture", [qlib.capture_pre_autograd_graph, exported])
def test_what_a_quantizer_does_not_see_stays_in_float(capture: Any) -> None:
    """Branches are graphs of their own."""
    debug = qlib.convert_pt2e(calibrated(capture(Branching().eval(), LINEAR), ByOperator(), *LINEAR))
    final = qlib.lower(debug)
    assert qlib.executed_ops(final)["quantized::linear"] == 1
    assert torch.equal(final(*LINEAR), debug(*LINEAR))
