"""Quantization-aware training: the converted model equal to the trained one, and training that trains."""

from __future__ import annotations

import copy

import pytest
import torch
from graphs import Draft, aten, example, names
from torch import Tensor, nn
from training import assert_settles, drawn, seeded, train

import qlib
from qlib.errors import CaptureError
from qlib.fake_quantize import FakeQuantize, LearnableFakeQuantize
from qlib.frontends.capture import capture
from qlib.passes.prepare import prepare_qat
from qlib.qconfig import PRESETS, QConfig, QConfigMapping
from qlib.quantize import MODES, distill
from qlib.trained import BatchNorm, Dropout, FoldedBatchNorm, TrainedLayer

BOTH = pytest.mark.parametrize("method", ["export", "trace"])


# ---- batch norms, dropouts, modes of the module


def test_statistics_can_be_frozen() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    x = drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(module.train(), (x,)))
    statistics = {name: b for name, b in prepared.named_buffers() if "running" in name}
    prepared.apply(qlib.freeze_bn_stats)
    before = {name: b.clone() for name, b in statistics.items()}
    train(prepared, x)
    assert all(torch.equal(before[name], b) for name, b in statistics.items())
    a = prepared(x)
    prepared.apply(qlib.disable_observer).apply(qlib.disable_fake_quant)
    assert not torch.equal(a, prepared(x))
    frozen = prepared(x)
    assert torch.allclose(frozen, prepared.eval()(x), atol=1e-4)  # training with the running statistics is evaluation
    prepared.train().apply(qlib.update_bn_stats)
    prepared(x)
    assert not any(torch.equal(before[name], b) for name, b in statistics.items())


def test_a_batch_norm_that_stands_alone() -> None:
    module = seeded(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())).train()
    x = drawn(4, 3, 5, 5)
    prepared = prepare_qat(capture(module, (x,)))
    assert [type(m) for m in prepared.modules() if isinstance(m, BatchNorm | FoldedBatchNorm)] == [BatchNorm]
    train(prepared, x)
    _, final = assert_settles(prepared, x)
    assert qlib.executed_ops(final)["quantized::batch_norm_relu"] == 1


@pytest.mark.parametrize("method", ["export", "trace", "script"])
def test_dropout_is_for_training_and_leaves_nothing_behind(method: str) -> None:
    layers = [nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3), nn.Dropout(0.5)]
    x = drawn(5, 6)
    prepared = prepare_qat(capture(seeded(lambda: nn.Sequential(*layers)).train(), (x,), method))
    assert sum(isinstance(m, Dropout) for m in prepared.modules()) == 3
    assert not torch.equal(prepared(x), prepared(x))
    _, final = assert_settles(prepared, x)
    expected = {"quantized::linear_relu": 1, "quantized::linear": 1}
    assert {n: c for n, c in qlib.executed_ops(final).items() if "linear" in n or "dropout" in n} == expected


def test_a_dropout_beside_another_user_of_its_input_is_kept_in_its_place() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y + self.drop(y)

    x = drawn(6, 4)
    prepared = prepare_qat(capture(seeded(Both).train(), (x,)))
    train(prepared, x)
    prepared.eval()
    assert "dropout" not in names(qlib.convert(prepared))
    assert torch.equal(prepared(x), qlib.convert(prepared)(x))


def test_a_dropout_between_layer_and_norm_keeps_them_apart() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))).train()
    x = drawn(6, 4)
    prepared = prepare_qat(capture(module, (x,)))
    train(prepared, x)
    assert_settles(prepared, x)


def test_the_mode_of_the_whole_model_reaches_its_parts() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    x = drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(module, (x,)))
    assert prepared.training
    prepared(x)
    mean = dict(prepared.named_buffers())["1.running_mean"].clone()
    assert not torch.equal(mean, module[1].running_mean)
    prepared.eval()
    first = prepared(x)
    assert torch.equal(first, prepared(x))
    assert torch.equal(mean, dict(prepared.named_buffers())["1.running_mean"])


# ---- whole graphs


def test_the_module_and_its_graph_are_left_alone() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).train()
    x = drawn(4, 3, 6, 6)
    captured = capture(module, (x,))
    before = copy.deepcopy(module.state_dict()), str(captured.graph), copy.deepcopy(captured.state_dict())
    train(prepare_qat(captured), x)
    assert str(captured.graph) == before[1]
    for state, wanted in ((module.state_dict(), before[0]), (captured.state_dict(), before[2])):
        assert all(torch.equal(state[name], value) for name, value in wanted.items())


def test_parameters_keep_their_names() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    prepared = prepare_qat(capture(module, (drawn(4, 3, 6, 6),)))
    assert {name for name, _ in prepared.named_parameters()} == {name for name, _ in module.named_parameters()}


def test_three_nodes_in_training_form() -> None:
    draft = Draft()
    model = draft.done(draft.relu(draft.batch_norm(draft.conv(draft.input(2, 3, 4), 4), training=True)))
    prepared = prepare_qat(model)
    assert names(prepared) == ["conv1d", "relu"]
    kinds = [type(prepared.get_submodule(str(n.target))) for n in prepared.graph.nodes if n.op == "call_module"]
    assert kinds == [FakeQuantize, TrainedLayer, FoldedBatchNorm, FakeQuantize]
    x = example(model)[0]
    prepared(x)
    debug, final = assert_settles(prepared, x)
    assert names(debug)[-4:] == ["conv1d", "relu", "quantize_per_tensor", "dequantize_per_tensor"]
    assert names(final) == ["quantize_per_tensor", "conv1d_relu", "dequantize_per_tensor"]


def two_norms() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3, eps=1e-2)]
    return seeded(lambda: nn.Sequential(*layers)).train()


@BOTH
def test_norms_in_a_row_fold_together(method: str) -> None:
    x = drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(two_norms(), (x,), method))
    train(prepared, x)
    debug, final = assert_settles(prepared, x)
    assert "batch_norm" not in names(debug)
    assert qlib.executed_ops(final) == {
        "quantized::quantize_per_tensor": 1, "quantized::conv2d": 1, "quantized::dequantize_per_tensor": 1
    }  # fmt: skip


def test_norms_in_a_row_are_trained_as_in_float() -> None:
    module, x = two_norms(), drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(module, (x,)))
    prepared.apply(qlib.disable_fake_quant)
    expected, found = module(x), prepared(x)
    assert torch.allclose(found, expected, atol=1e-4)
    expected.square().mean().backward()
    found.square().mean().backward()
    gradients = dict(module.named_parameters())
    for name, parameter in prepared.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-3), name
    for name, buffer in module.named_buffers():
        if "running" in name:
            assert torch.allclose(dict(prepared.named_buffers())[name], buffer, atol=1e-5), name
    assert torch.allclose(prepared.eval()(x), module.eval()(x), atol=1e-4)


def test_norms_in_a_row_after_a_layer_in_float_stand_in_their_order() -> None:
    module, x = two_norms(), drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(module, (x,)), None)
    assert torch.allclose(prepared(x), module(x), atol=1e-6)
    norms = [part for part in prepared.modules() if isinstance(part, BatchNorm)]
    calls = [n.target for n in prepared.graph.nodes if n.op == "call_module"]
    assert [prepared.get_submodule(name).settings.momentum for name in calls] == [0.1, 0.3] and len(norms) == 2


@pytest.mark.parametrize("method", ["export", "trace", "script"])
def test_a_cumulative_average_is_refused(method: str) -> None:
    """A graph can't hold a momentum that follows from a count; in evaluation mode torch says 0, which moves nothing."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
    x = drawn(4, 3, 6, 6)
    with pytest.raises(CaptureError, match="found None at '1'"):
        capture(module.train(), (x,), method)
    captured = capture(module.eval(), (x,), method)
    with pytest.raises(CaptureError, match=r"momentum above 0 of the batch norm '1' at .*, found 0 or None"):
        prepare_qat(captured)
    qlib.prepare(captured)


@pytest.mark.parametrize("training", [True, False])
def test_distilling_leaves_the_float_graph_as_it_is(training: bool) -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9))).train(training)
    x = drawn(4, 3, 6, 6)
    captured = capture(module, (x,))
    before = copy.deepcopy(captured.state_dict()), str(captured.graph)
    prepared = prepare_qat(captured)
    distill(captured, prepared, [(x,)])
    assert all(torch.equal(captured.state_dict()[name], value) for name, value in before[0].items())
    assert str(captured.graph) == before[1] and captured.training is training
    wanted = module.eval()(x)  # what it was trained to give: no dropout, running statistics
    assert float((prepared(x) - wanted).detach().square().mean() / wanted.square().mean()) < 1e-3


def test_a_layer_left_in_float_is_trained_with_its_norm() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))).train()
    x = drawn(4, 3, 8, 8)
    mapping = QConfigMapping(PRESETS["qat"], modules={"0": None, "1": None})
    prepared = prepare_qat(capture(module, (x,)), mapping)
    train(prepared, x)
    debug, _ = assert_settles(prepared, x)
    assert names(debug).count("batch_norm") == 1
    assert prepare_qat(capture(module, (x,)), QConfigMapping(None, {}, {"nn.LSTM": None})).meta["unused_rules"] == (
        "types: nn.LSTM",
    )


def test_a_shared_weight_is_one_parameter_with_a_gradient_from_each_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(torch.relu(self.norm(self.conv(x)))))

    x = drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(seeded(Twice).train(), (x,)))
    assert sorted(name for name, _ in prepared.named_parameters()) == [
        "conv.bias", "conv.weight", "norm.bias", "norm.weight"
    ]  # fmt: skip
    train(prepared, x)
    assert_settles(prepared, x)


def test_a_tensor_of_a_group_is_trained_with_its_leaders_parameters() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())).train()
    x = drawn(4, 3, 8, 8)
    prepared = prepare_qat(capture(module, (x,)))
    train(prepared, x)
    assert_settles(prepared, x)


@pytest.mark.parametrize("preset", ["embedding_byte", "embedding_4bit", "weight_only_int4"])
def test_an_embedding(preset: str) -> None:
    module = seeded(lambda: nn.Embedding(8, 6)).train()
    x = torch.tensor([[0, 3], [7, 3]])
    prepared = prepare_qat(capture(module, (x,)), preset)
    before = dict(prepared.named_parameters())["weight"].clone()
    loss = prepared(x).square().mean()
    loss.backward()
    weight = dict(prepared.named_parameters())["weight"]
    assert weight.grad is not None and weight.grad[3].abs().sum() > 0 and weight.grad[1].abs().sum() == 0
    torch.optim.SGD(prepared.parameters(), 0.1).step()
    assert not torch.equal(before, weight)
    prepared.eval()
    debug = qlib.convert(prepared)
    assert torch.equal(prepared(x), debug(x)) and torch.equal(debug(x), qlib.lower(debug)(x))


@pytest.mark.parametrize("preset", ["default", "per_token"])
def test_training_on_ranges_of_run_time(preset: str) -> None:
    mapping = MODES["dynamic"].adapt(QConfigMapping(PRESETS[preset]))
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))).train()
    x = drawn(5, 6)
    prepared = prepare_qat(capture(module, (x,)), mapping)
    train(prepared, x)
    prepared.eval()
    debug = qlib.convert(prepared)
    assert torch.equal(prepared(x), debug(x))
    assert torch.allclose(debug(x), qlib.lower(debug)(x), atol=1e-5)


def test_learnable_scales_are_parameters_of_the_model() -> None:
    x = drawn(4, 3, 6, 6)
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).train()
    prepared = prepare_qat(capture(module, (x,)), "qat_learnable")
    layer = next(m for m in prepared.modules() if isinstance(m, TrainedLayer))
    assert isinstance(layer.weight, LearnableFakeQuantize) and layer.weight.scale.shape == (4,)
    prepared(x)
    before = [p.detach().clone() for name, p in prepared.named_parameters() if name.endswith("scale")]
    train(prepared, x)
    after = [p for name, p in prepared.named_parameters() if name.endswith("scale")]
    assert len(after) == 3 and not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert_settles(prepared, x)


# ---- training


def test_training_trains() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 4))).train()
    x = drawn(16, 3, 6, 6)
    losses = train(prepare_qat(capture(module, (x,))), x, steps=60, rate=0.02)
    assert losses[-1] < 0.3 * losses[0]


def test_distilling_moves_towards_the_float_model_and_ends_in_evaluation() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))).eval()
    x = drawn(32, 6)
    captured = capture(module, (x,))
    prepared = prepare_qat(captured, QConfig(PRESETS["default"].activation, PRESETS["int4_weight"].weight))
    wanted = module(x)
    prepared(x)
    before = (prepared(x) - wanted).square().mean()
    state = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    for _ in range(20):
        distill(captured, prepared, [(x,)])
    assert not prepared.training
    assert not any(torch.equal(state[name], p) for name, p in prepared.named_parameters())
    assert (prepared(x) - wanted).square().mean() < before


def test_quantize_model_in_the_mode_of_training_leaves_the_module_alone() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).eval()
    before = copy.deepcopy(module.state_dict())
    x = drawn(2, 3, 6, 6)
    found = qlib.quantize_model(module, (x,), mode="qat", qconfig="qat")
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(found.prepared(x), found.debug(x))
    assert "quantized::conv2d_relu" in qlib.executed_ops(found.final)


def test_a_trained_model_is_restored_from_its_state() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).train()
    x = drawn(4, 3, 6, 6)
    trained, restored = (prepare_qat(capture(module, (x,))) for _ in range(2))
    train(trained, x)
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(qlib.convert(restored)(x), qlib.convert(trained)(x))
    twin = copy.deepcopy(trained).eval()
    assert torch.equal(twin(x), trained.eval()(x))


def test_converting_trains_nothing() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    x = drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(module, (x,)))
    train(prepared, x)
    state = copy.deepcopy(prepared.state_dict())
    first, second = qlib.convert(prepared)(x), qlib.convert(prepared)(x)
    assert torch.equal(first, second)
    assert all(torch.equal(prepared.state_dict()[name], value) for name, value in state.items())


def test_an_operator_between_observers_and_unknown_to_the_table_stays() -> None:
    draft = Draft()
    x = draft.input(2, 3)
    model = draft.done(draft.linear(draft.call(aten.erf.default, draft.linear(x, 4, "one")), 2, "two"))
    prepared = prepare_qat(model)
    value = example(model)[0]
    prepared(value)
    assert "erf" in names(assert_settles(prepared, value)[1])
