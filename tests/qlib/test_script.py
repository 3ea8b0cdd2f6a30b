from __future__ import annotations

import re
from typing import Dict, List, Optional, Tuple  # noqa: UP035  (TorchScript knows these)

import pytest
import torch
from captures import assert_same, spelled
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.errors import CaptureError
from qlib.frontends.capture import capture

LAYERS = [
    (nn.Linear(4, 3), (2, 4)),
    (nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Dropout()), (2, 4)),
    (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Hardswish()), (2, 3, 8)),
    (nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU6()), (2, 3, 8, 8)),
    (nn.Sequential(nn.Conv3d(2, 4, 2), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten()), (1, 2, 6, 6, 6)),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.AvgPool2d(2)), (1, 3, 8, 8)),
    (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Softmax(-1)), (2, 4)),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.PixelShuffle(2)), (1, 3, 4, 4)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=lambda value: re.sub(r"\s+", " ", str(value))[:40])
def test_the_graph_is_that_of_a_trace(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = (torch.rand(shape),)
    scripted, traced = capture(module.eval(), x, "script"), capture(module, x, "trace")
    assert spelled(scripted.graph) == spelled(traced.graph)
    assert_same(scripted(*x), module(*x))


class Attention(nn.Module):
    """Attention of a tensor to itself."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return y


@pytest.mark.parametrize(
    "module",
    [Attention(True), Attention(False), nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)],
    ids=["with weights", "without weights", "a whole layer"],
)
def test_attention_is_not_fused(module: nn.Module) -> None:
    x = (torch.rand(2, 3, 4),)
    scripted = capture(module.eval(), x, "script")
    assert not [name for name in spelled(scripted.graph) if "_native" in str(name) or "_fwd" in str(name)]
    assert sum(node.target is torch.ops.aten.softmax.int for node in scripted.graph.nodes) == 1
    torch.testing.assert_close(scripted(*x), module(*x))


class Choices(nn.Module):
    """Conditions and loops that attributes, arguments and shapes decide, and returns from within them."""

    def __init__(self, rounds: int, short: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.rounds = rounds
        self.short = short

    def forward(self, x: Tensor, other: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        if other is not None:
            return self.fc(other)
        for i in range(self.rounds):
            x = x + i if i % 2 else F.relu(x)
        if self.short:
            return x
        while x.dim() < 4:
            x = x.unsqueeze(0)
        assert x.size(-1) == 4
        return self.fc(x)


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("short", [True, False])
def test_what_does_not_depend_on_data_is_resolved(rounds: int, short: bool) -> None:
    module, x = Choices(rounds, short).eval(), torch.randn(2, 4)
    graph = capture(module, (x,), "script")
    assert spelled(graph.graph) == spelled(capture(module, (x,), "trace").graph)
    assert_same(graph(x), module(x))


def test_an_optional_argument_that_is_given() -> None:
    module, x = Choices(1, True).eval(), torch.randn(2, 4)
    assert_same(capture(module, (x, x + 1), "script")(x, x + 1), module(x, x + 1))


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])

    def forward(self, x: Tensor) -> Tuple[Tensor, Dict[str, Tensor], List[Tensor]]:  # noqa: UP006
        outs: List[Tensor] = []  # noqa: UP006
        for layer in self.layers:
            x = layer(x)
            outs.append(x)
        named = {"last": outs[-1]}
        named["first"] = outs[0]
        a, b = outs[1].chunk(2, 1)
        return torch.cat([a, b * len(outs)], 1), named, outs


def test_lists_dicts_and_tuples() -> None:
    module, x = Containers().eval(), torch.randn(3, 4)
    assert_same(capture(module, (x,), "script")(x), module(x))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(2)
        y = self.fc(x)
        y[:, 0] = 1.5
        return F.relu_(y) + self.calls


def test_changes_in_place_are_kept_where_the_module_makes_them() -> None:
    module = InPlace().eval()
    graph = capture(module, (torch.randn(2, 4),), "script")
    assert float(module.calls) == 0.0
    assert not any(str(n.target).endswith("_.default") and "copy_" not in str(n.target) for n in graph.graph.nodes)
    x, y = torch.ones(2, 4), torch.ones(2, 4)
    assert_same(graph(x), module(y))
    assert_same(x, y)


@pytest.mark.parametrize("module", [nn.LSTM(4, 3, batch_first=True), nn.GRU(4, 3), nn.Upsample(scale_factor=2.0)])
def test_library_modules_with_control_flow(module: nn.Module) -> None:
    x = torch.rand(1, 2, 4, 4) if isinstance(module, nn.Upsample) else torch.rand(2, 5, 4)
    assert_same(capture(module.eval(), (x,), "script")(x), module(x))


def test_a_module_that_is_scripted_already() -> None:
    module, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    again = capture(torch.jit.script(module), (x,), "script")
    assert_same(again(x), module(x))


class Attends(nn.Module):
    def __init__(self, *, wanted: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wanted = wanted

    def forward(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:  # noqa: UP006, UP045
        y, weights = self.attention(x, x, x, need_weights=self.wanted)
        return y, weights


@pytest.mark.parametrize(
    "module",
    [Attends(wanted=True), Attends(wanted=False), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)],
    ids=["weights", "none", "encoder"],
)
@pytest.mark.parametrize("trained", [True, False])
def test_attention_is_seen_through(module: nn.Module, trained: bool) -> None:
    x = torch.randn(2, 5, 8)
    module.eval().requires_grad_(trained)
    scripted, traced = capture(module, (x,), "script"), capture(module, (x,), "trace")
    count = [sum(node.target is torch.ops.aten.linear.default for node in g.graph.nodes) for g in (scripted, traced)]
    assert count[0] == count[1] >= 2
    assert_same(scripted(x), traced(x))


class Tensors(nn.Module):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        table = torch.tensor([0, 1])
        table[0] = 2
        single = torch.tensor([1.0, 2.0], dtype=torch.float64)
        nested = torch.as_tensor([[1, 2], [3, x.size(1)]])
        return x[:, [2, 0]], x[:, table], single, nested, torch.tensor([True, False])


def test_tensors_of_known_numbers_are_constants() -> None:
    module, x = Tensors(), torch.randn(2, 4)
    graph = capture(module, (x,), "script")
    assert not any("aten.tensor" in str(node.target) for node in graph.graph.nodes)
    assert_same(graph(x), module(x))
    assert_same(graph(x + 1), module(x + 1))


class OfData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, float(x.sum())])


def test_a_list_with_a_number_of_the_data_is_no_constant() -> None:
    with pytest.raises(CaptureError, match="a number that comes from the data"):
        capture(OfData(), (torch.randn(3, 2),), "script")


def test_what_cannot_be_compiled_is_refused_in_the_same_words_each_time() -> None:
    module, x = nn.Sequential(nn.Threshold(1, -2)), torch.randn(2, 4)
    for _ in range(2):
        with pytest.raises(CaptureError, match="Expected a value of type 'float' for argument 'threshold'"):
            capture(module, (x,), "script")
    assert_same(capture(nn.Sequential(nn.Threshold(1.0, -2.0)), (x,), "script")(x), module(x))


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise ValueError("three dimensions, please")
        return x


def test_a_module_that_refuses_the_example() -> None:
    with pytest.raises(CaptureError, match="raises 'three dimensions, please' on the example"):
        capture(Raises().eval(), (torch.rand(2),), "script")


class NotScriptable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        add = lambda y: y + 1  # noqa: E731
        return add(x)


def test_what_torch_script_refuses_is_a_capture_error() -> None:
    with pytest.raises(CaptureError, match=r"by 'script'.*try the method 'export'"):
        capture(NotScriptable().eval(), (torch.rand(2),), "script")
