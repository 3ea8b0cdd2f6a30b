"""A layer and its batch norm in training: the fold simulated, and exact after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs import names
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from training import assert_settles, drawn, seeded, train

import qlib
from qlib.fake_quantize import FakeQuantize
from qlib.fold import Norm
from qlib.frontends.capture import capture
from qlib.passes.prepare import prepare_qat
from qlib.qconfig import PRESETS
from qlib.trained import FoldedBatchNorm, TrainedLayer

BOTH = pytest.mark.parametrize("method", ["export", "trace"])


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
