"""Random chains of layers, norms and activations, trained for some steps: each trained model is its converted one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from ties import disagreements
from torch import Tensor, nn

import qlib
from qlib.frontends.capture import capture
from qlib.passes.prepare import prepare_qat

CHANNELS = 4
LAYERS = {
    "conv": lambda bias: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias),
    "depthwise": lambda bias: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=bias),
    "transposed": lambda bias: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias),
}
AFTER = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "dropout": lambda: nn.Dropout(0.3)}

# A layer: its kind, whether it has a bias, how many batch norms follow, and what follows them.
BLOCK = st.tuples(
    st.sampled_from(sorted(LAYERS)),
    st.booleans(),
    st.integers(0, 2),
    st.lists(st.sampled_from(sorted(AFTER)), max_size=2),
)
FLAT = st.tuples(st.booleans(), st.integers(0, 2), st.lists(st.sampled_from(sorted(AFTER)), max_size=2))
PRESETS = st.sampled_from(["qat", "qat_learnable", "default", "per_tensor", "int8"])


def block(layer: nn.Module, norm: type[nn.Module], norms: int, after: list[str]) -> list[nn.Module]:
    made = [norm(CHANNELS) for _ in range(norms)]
    for part in made:
        nn.init.uniform_(part.weight, -1.5, 1.5)  # type: ignore[arg-type]
        nn.init.uniform_(part.bias, -0.5, 0.5)  # type: ignore[arg-type]
        part.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr,operator]
        part.running_var.uniform_(0.2, 2.0)  # type: ignore[union-attr,operator]
    return [layer, *made, *(AFTER[name]() for name in after)]


def assert_trained_is_converted(module: nn.Module, preset: str, shape: tuple[int, ...], steps: int) -> None:
    example = torch.randn(shape)
    prepared = prepare_qat(capture(module.train(), (example,), "trace"), preset)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss: Tensor = (prepared(torch.randn(shape)) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
    prepared.eval()
    debug = qlib.convert(prepared)
    final = qlib.lower(debug)
    x = torch.randn(shape)
    assert torch.equal(prepared(x), debug(x))
    assert disagreements(debug, final, (x,)) == 0


@given(st.lists(BLOCK, min_size=1, max_size=3), PRESETS, st.integers(1, 3), st.integers(0, 1000))
def test_convolutions(blocks: list[tuple[str, bool, int, list[str]]], preset: str, steps: int, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [
            part
            for kind, bias, norms, after in blocks
            for part in block(LAYERS[kind](bias), nn.BatchNorm2d, norms, after)
        ]
        assert_trained_is_converted(nn.Sequential(*parts), preset, (3, CHANNELS, 5, 5), steps)


@given(st.lists(FLAT, min_size=1, max_size=3), PRESETS, st.integers(1, 3), st.integers(0, 1000))
def test_linear_layers(blocks: list[tuple[bool, int, list[str]]], preset: str, steps: int, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [
            part
            for bias, norms, after in blocks
            for part in block(nn.Linear(CHANNELS, CHANNELS, bias=bias), nn.BatchNorm1d, norms, after)
        ]
        assert_trained_is_converted(nn.Sequential(*parts), preset, (6, CHANNELS), steps)
