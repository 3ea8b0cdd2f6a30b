"""Quantization-aware training: the fold simulated, the converted model equal to the trained one, training that trains."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from graphs import Draft, aten, example, names
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor, fx, nn

import qlib
from qlib import interpret
from qlib.errors import CaptureError
from qlib.fake_quantize import FakeQuantize, LearnableFakeQuantize
from qlib.fold import Norm
from qlib.frontends.capture import capture
from qlib.passes.prepare import prepare_qat
from qlib.qconfig import PRESETS, QConfig, QConfigMapping
from qlib.quantize import MODES, distill
from qlib.trained import BatchNorm, Dropout, FoldedBatchNorm, TrainedLayer

BOTH = pytest.mark.parametrize("method", ["export", "trace"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The module with weights that follow from a seed, batch norms that are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = make()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
                nn.init.uniform_(part.weight, -1.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
    return module


def train(prepared: nn.Module, x: Tensor, steps: int = 3, rate: float = 0.05) -> list[float]:
    """Some steps towards a smooth function of the input; returns the losses."""
    optimizer = torch.optim.SGD([p for p in prepared.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        y = prepared(x)
        loss = (y - x.flatten(1).mean(1).reshape(-1, *[1] * (y.dim() - 1))).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_settles(prepared: fx.GraphModule, x: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Trained in evaluation mode = debug to the bit, debug = final but for ties of the single roundings."""
    prepared.eval()
    debug = qlib.convert(prepared)
    final = qlib.lower(debug)
    assert torch.equal(prepared(x), debug(x))
    assert torch.equal(interpret.run(prepared, (x,)), debug(x))
    for step in qlib.replay(debug, final, (x,)).steps:
        if step.zero_point is not None:
            target = Target(1.0, step.zero_point, step.qmin, step.qmax, step.given.dtype)
            assert errors(step.given, step.real, step.magnitude, target) == 0
    return debug, final


PAIRS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda b: nn.Sequential(nn.Conv1d(4, 6, 3, bias=b), nn.BatchNorm1d(6)), (8, 4, 9)),
    "conv2d": (lambda b: nn.Sequential(nn.Conv2d(4, 6, 3, bias=b), nn.BatchNorm2d(6)), (8, 4, 6, 6)),
    "conv3d": (lambda b: nn.Sequential(nn.Conv3d(4, 6, 2, bias=b), nn.BatchNorm3d(6)), (4, 4, 4, 4, 4)),
    "grouped": (lambda b: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=b), nn.BatchNorm2d(6)), (8, 4, 6, 6)),
    "conv_transpose1d": (
        lambda b: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, stride=2, bias=b), nn.BatchNorm1d(6)),
        (8, 4, 9),
    ),
    "conv_transpose2d": (
        lambda b: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2, bias=b), nn.BatchNorm2d(6)),
        (8, 4, 5, 5),
    ),
    "conv_transpose3d": (
        lambda b: nn.Sequential(nn.ConvTranspose3d(4, 6, 2, bias=b), nn.BatchNorm3d(6)),
        (4, 4, 3, 3, 3),
    ),
    "linear": (lambda b: nn.Sequential(nn.Linear(7, 6, bias=b), nn.BatchNorm1d(6)), (8, 7)),
}


# ---- pairs of a layer and a batch norm


@BOTH
@pytest.mark.parametrize("relu", ["", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_trained_and_folds_exactly(pair: str, bias: bool, relu: str, method: str) -> None:
    make, shape = PAIRS[pair]
    module = seeded(lambda: nn.Sequential(make(bias), *[nn.ReLU()] * bool(relu))).train()
    x = drawn(*shape)
    prepared = prepare_qat(capture(module, (x,), method))
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    train(prepared, x)
    still = [name for name, p in prepared.named_parameters() if torch.equal(before[name], p)]
    # A bias before a batch norm by the statistics of the batch has no effect, and no gradient but rounding.
    assert [name for name in still if name != "0.0.bias"] == []
    debug, final = assert_settles(prepared, x)
    assert "batch_norm" not in names(debug)
    assert len([n for n in qlib.executed_ops(final) if "conv" in n or "linear" in n]) == 1
    assert all(name.startswith("quantized::") for name in qlib.executed_ops(final))


@pytest.mark.parametrize("preset", ["default", "per_tensor", "histogram", "qat_learnable", "int8", "int4_weight"])
@pytest.mark.parametrize("pair", ["conv2d", "conv_transpose2d", "linear"])
def test_presets(pair: str, preset: str) -> None:
    make, shape = PAIRS[pair]
    x = drawn(*shape)
    prepared = prepare_qat(capture(seeded(lambda: make(True)).train(), (x,)), preset)
    train(prepared, x)
    assert_settles(prepared, x)


@pytest.mark.parametrize("pair", PAIRS)
def test_without_fake_quantization_training_is_that_of_the_float_model(pair: str) -> None:
    """The factor that is multiplied in and divided out changes nothing but rounding, gradients included."""
    make, shape = PAIRS[pair]
    x = drawn(*shape)
    module = seeded(lambda: make(True)).train()
    prepared = prepare_qat(capture(module, (x,)))
    prepared.apply(qlib.disable_fake_quant)
    expected = module(x)
    found = prepared(x)
    assert torch.allclose(found, expected, atol=1e-4)
    expected.square().mean().backward()
    found.square().mean().backward()
    gradients = dict(module.named_parameters())
    for name, parameter in prepared.named_parameters():
        wanted = gradients[name].grad
        assert wanted is not None and parameter.grad is not None
        assert torch.allclose(parameter.grad, wanted, atol=1e-4, rtol=1e-3), name
    for name, buffer in module.named_buffers():
        if "running" in name:
            assert torch.allclose(dict(prepared.named_buffers())[name], buffer, atol=1e-5), name
    prepared.eval()
    assert torch.allclose(prepared(x), module.eval()(x), atol=1e-4)


def test_the_equation_of_training() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    module[1].running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    x = drawn(4, 3, 6, 6)
    prepared = prepare_qat(capture(module, (x,)), PRESETS["default"])
    found: dict[type[nn.Module], list[Tensor]] = {}
    for part in prepared.children():
        part.register_forward_hook(lambda m, _, y: found.setdefault(type(m), []).append(y))
    prepared(x)
    conv, norm = module
    factor = norm.weight / torch.sqrt(torch.tensor([0.5, 1.0, 2.0, 4.0]) + norm.eps)
    layer = next(m for m in prepared.modules() if isinstance(m, TrainedLayer))
    scaled = layer.weight.fake_quantize(conv.weight * factor[:, None, None, None])
    quantized = next(y for y in found[FakeQuantize] if y.shape == x.shape)
    y = nn.functional.conv2d(quantized, scaled) / factor[:, None, None, None].reshape(1, -1, 1, 1)
    wanted = nn.functional.batch_norm(
        y + conv.bias[:, None, None], None, None, norm.weight, norm.bias, training=True, eps=norm.eps
    )
    (after_norm,) = found[FoldedBatchNorm]
    assert torch.allclose(after_norm, wanted, atol=1e-4)


def test_a_channel_with_factor_zero_is_trained_and_folds_to_zero() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))).train()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([0.0, 1.0]))
    x = drawn(4, 3, 5, 5)
    prepared = prepare_qat(capture(module, (x,)))
    losses = train(prepared, x)
    assert all(torch.isfinite(p).all() for p in prepared.parameters()) and losses[0] > 0
    assert dict(prepared.named_parameters())["1.weight"][0] != 0
    assert_settles(prepared, x)


@given(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4), st.floats(0.0625, 9, width=32))
def test_the_equations_of_the_fold(values: list[float], variance: float) -> None:
    gamma, beta, mean, bias = (torch.tensor([v]) for v in values)
    norm = Norm(gamma, beta, mean, torch.tensor([variance]), 1e-3)
    factor = values[0] / (torch.tensor(variance).double().item() + 1e-3) ** 0.5
    assert norm.factor.item() == pytest.approx(factor)
    assert norm.bias(bias).item() == pytest.approx((values[3] - values[2]) * factor + values[1], rel=1e-5, abs=1e-6)
    assert Norm(None, None, mean, torch.tensor([variance]), 1e-3).bias(None).item() == pytest.approx(
        -values[2] / (torch.tensor(variance).double().item() + 1e-3) ** 0.5, rel=1e-5, abs=1e-6
    )


def test_a_bias_that_widens_the_weights_scale_does_so_in_training_too() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1e-12, 0.0], [1.0, 0.5]]))
        module.bias.copy_(torch.tensor([100.0, 1.0]))
    x = drawn(4, 2)
    prepared = prepare_qat(capture(module, (x,)), "default")
    prepared(x)
    debug, _ = assert_settles(prepared, x)
    assert dict(debug.named_buffers())["weight_int8_scale"][0] > 1e-12 / 127


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
