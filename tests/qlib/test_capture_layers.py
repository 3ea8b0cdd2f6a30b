from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captures import ALL, check, image
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """The fused attention that torch uses without gradients rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


CONV = [
    (nn.Conv1d(2, 4, 3, stride=2, padding=1), image(1, 2, 9)),
    (nn.Conv2d(2, 4, 3, groups=2, bias=False), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), image(2, 2, 8, 7)),
    (nn.Conv2d(2, 4, 3, padding="valid"), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, 3, padding="same"), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, (2, 4), padding="same"), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 3)), image(1, 2, 9, 9)),
    (nn.Conv1d(2, 4, 4, padding="same", dilation=3), image(1, 2, 12)),
    (nn.Conv3d(2, 4, 2, padding="same"), image(1, 2, 4, 5, 6)),
    (nn.Conv3d(2, 4, 3, stride=2), image(1, 2, 5, 5, 5)),
    (nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1), image(1, 2, 5)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), image(1, 2, 5, 5)),
    (nn.ConvTranspose3d(2, 4, 2, dilation=2), image(1, 2, 4, 4, 4)),
    (nn.Conv2d(2, 4, 3), image(2, 6, 7)),
    *(
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), image(1, 2, 6, 7))
        for mode in ("reflect", "replicate", "circular")
    ),
    (nn.Conv1d(2, 4, 3, padding=2, padding_mode="reflect"), image(1, 2, 6)),
    (nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular"), image(1, 2, 6)),
    (nn.Conv3d(2, 4, 3, padding=1, padding_mode="replicate"), image(1, 2, 4, 4, 4)),
    (nn.Conv2d(2, 4, 4, padding="same", padding_mode="reflect"), image(1, 2, 6, 7)),
]
LAYERS = [
    (nn.Linear(4, 3), image(2, 4)),
    (nn.Linear(4, 3, bias=False), image(2, 5, 4)),
    (nn.Bilinear(3, 4, 2), (*image(2, 3), *image(2, 4))),
    (nn.BatchNorm1d(4), image(3, 4)),
    (nn.BatchNorm2d(4, affine=False), image(3, 4, 2, 2)),
    (nn.BatchNorm3d(2, track_running_stats=False), image(3, 2, 2, 2, 2)),
    (nn.LayerNorm(4), image(3, 4)),
    (nn.GroupNorm(2, 4), image(3, 4, 5)),
    (nn.InstanceNorm2d(3, affine=True), image(2, 3, 4, 4)),
    (nn.InstanceNorm1d(3, track_running_stats=True), image(2, 3, 4)),
    (nn.Embedding(5, 3), (torch.tensor([[0, 2], [4, 1]]),)),
    (nn.EmbeddingBag(5, 3), (torch.tensor([[0, 2], [4, 1]]),)),
    (nn.LSTM(3, 4), image(5, 2, 3)),
    (nn.GRU(3, 4, batch_first=True, bidirectional=True), image(2, 5, 3)),
    (nn.RNN(3, 4), image(5, 2, 3)),
    (nn.MultiheadAttention(4, 2, batch_first=True), (*image(2, 3, 4), *image(2, 3, 4), *image(2, 3, 4))),
    (nn.Upsample(scale_factor=2, mode="bilinear"), image(1, 2, 3, 3)),
    (nn.Upsample(size=(5, 6)), image(1, 2, 3, 3)),
    (nn.PixelShuffle(2), image(1, 4, 3, 3)),
    (nn.PixelUnshuffle(2), image(1, 1, 4, 4)),
    (nn.Flatten(), image(2, 3, 4)),
    (nn.Unflatten(1, (2, 3)), image(2, 6)),
    (nn.Identity(), image(2, 3)),
    (nn.Dropout(0.5), image(2, 3)),
    (nn.Dropout2d(0.5, inplace=True), image(2, 3, 4, 4)),
    (nn.AlphaDropout(), image(2, 3)),
    (nn.CosineSimilarity(), (*image(2, 3), *image(2, 3))),
    (nn.ChannelShuffle(2), image(1, 4, 3, 3)),
    (nn.Fold((4, 4), 2), image(1, 8, 9)),
    (nn.Unfold(2), image(1, 2, 4, 4)),
    (nn.LocalResponseNorm(2), image(1, 4, 3, 3)),
    (nn.ZeroPad2d(1), image(1, 2, 3, 3)),
    (nn.ConstantPad1d((1, 2), 3.5), image(1, 2, 3)),
    (nn.ReflectionPad2d(1), image(1, 2, 3, 3)),
    (nn.ReplicationPad1d(2), image(1, 2, 3)),
    (nn.CircularPad2d(1), image(1, 2, 3, 3)),
]
POOLS = [
    (nn.MaxPool1d(2), image(1, 2, 6)),
    (nn.MaxPool2d(2), image(1, 2, 6, 6)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), image(1, 2, 6, 6)),
    (nn.MaxPool2d(2, return_indices=True), image(1, 2, 6, 6)),
    (nn.MaxPool3d(2), image(1, 2, 4, 4, 4)),
    (nn.AvgPool1d(2), image(1, 2, 6)),
    (nn.AvgPool2d((2, 3), padding=1, count_include_pad=False), image(1, 2, 6, 6)),
    (nn.AvgPool3d(2), image(1, 2, 4, 4, 4)),
    (nn.AdaptiveAvgPool1d(2), image(1, 2, 6)),
    (nn.AdaptiveAvgPool2d((1, 1)), image(1, 2, 6, 6)),
    (nn.AdaptiveAvgPool2d((None, 2)), image(1, 2, 6, 6)),
    (nn.AdaptiveMaxPool2d(2), image(1, 2, 6, 6)),
    (nn.LPPool2d(2, 2), image(1, 2, 6, 6)),
]
ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(), nn.Hardtanh(0, 6)),
    *(nn.Hardtanh(-2, 2, inplace=True), nn.Hardswish(), nn.Hardswish(inplace=True), nn.Hardsigmoid(), nn.Sigmoid()),
    *(nn.Tanh(), nn.ELU(), nn.ELU(inplace=True), nn.CELU(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()),
    *(nn.SiLU(inplace=True), nn.Mish(), nn.LeakyReLU(0.2), nn.LeakyReLU(inplace=True), nn.PReLU(), nn.Softplus()),
    *(nn.Softsign(), nn.Softmax(-1), nn.LogSoftmax(1), nn.Softmin(1), nn.Tanhshrink(), nn.Softshrink()),
    *(
        nn.Hardshrink(),
        nn.Threshold(0.1, 2.0),
        nn.Threshold(0.1, 2.0, inplace=True),
        nn.LogSigmoid(),
        nn.GLU(),
        nn.RReLU(),
    ),
]
ZOO = [*CONV, *LAYERS, *POOLS, *((layer, image(2, 4)) for layer in ACTIVATIONS)]


def _ids(cases: list[Any]) -> list[str]:
    return [f"{position}-{repr(case[0]).splitlines()[0][:40]}" for position, case in enumerate(cases)]


@pytest.mark.parametrize(("module", "inputs"), ZOO, ids=_ids(ZOO))
def test_layers_are_captured_alike(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    check(module.eval(), inputs)


NESTED = [case for case in ZOO if len(case[1]) == 1][::10]


@pytest.mark.parametrize(("module", "inputs"), NESTED, ids=_ids(NESTED))
def test_layers_within_a_module(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    check(nn.Sequential(OrderedDict(first=module)).eval(), inputs)


@ALL
@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4)])
def test_cells(cell: nn.Module, method: str) -> None:
    """Tracing takes recurrent cells apart and export does not."""
    check(cell.eval(), image(2, 3), (method,))
