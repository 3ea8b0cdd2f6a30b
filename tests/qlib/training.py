"""Training for tests: modules and data that follow from a seed, some steps, and what must hold after them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ties import Target, errors
from torch import Tensor, fx, nn

import qlib
from qlib import interpret


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
