"""Small modules, and data for them, that the tests of `check_graph_mode_op` share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Apply(nn.Module):
    """Two layers over one or two inputs, and a function of their results."""

    def __init__(self, function: Callable[..., object], layer: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        make = layer or (lambda: nn.Conv2d(2, 2, 3))
        self.first, self.second = make(), make()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.function(self.first(x), self.second(y))


class Plain(nn.Module):
    """A function of the inputs themselves, with no layer that would have them quantized."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


class Residual(nn.Module):
    """A layer with a function after it."""

    def __init__(self, layer: nn.Module, function: Callable[..., object]) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self.layer(x))


def image(dim: int = 2, batch: int = 2) -> Tensor:
    return torch.rand(batch, 2, *[8] * dim) * 2 - 1


def pairs(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(image(), image()) for _ in range(count)]
