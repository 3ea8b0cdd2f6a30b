"""The rule that tells a tie from an error, written from its definition and independent of the code under test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qlib.oracle import replay


@dataclass(frozen=True)
class Target:
    """How a result is quantized; ``dtype`` is the type that its integers are stored in."""

    scale: float
    zero_point: int
    qmin: int = 0
    qmax: int = 255
    dtype: torch.dtype = torch.uint8

    @property
    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        return (self.scale, self.zero_point, self.qmin, self.qmax, self.dtype)


def exact(real: Tensor, target: Target) -> Tensor:
    """``clamp(round_half_even(v) + zero_point)`` in float64, for `real` v in steps of the result."""
    return (torch.round(real) + target.zero_point).clamp(target.qmin, target.qmax)


def errors(given: Tensor, real: Tensor, magnitude: Tensor, target: Target) -> int:
    """How many elements of `given` are neither exact nor a neighbour across a boundary that float32 can't tell."""
    assert given.shape == real.shape, f"shape {tuple(given.shape)} where {tuple(real.shape)} is right"
    assert given.dtype is target.dtype
    expected, found = exact(real, target), given.to(torch.float64)
    boundary = torch.minimum(expected, found) + 0.5 - target.zero_point
    bound = 8 * 2.0**-24 * (magnitude + abs(target.zero_point) + 1)
    tie = ((expected - found).abs() == 1) & ((real - boundary).abs() <= bound)
    return int(((expected != found) & ~tie).sum())


def disagreements(debug: fx.GraphModule, form: fx.GraphModule, inputs: tuple[Tensor, ...]) -> int:
    """How many integers of a form are neither those that its debug form says, nor neighbours across a tie."""
    return sum(
        errors(
            step.given, step.real, step.magnitude, Target(1.0, step.zero_point, step.qmin, step.qmax, step.given.dtype)
        )
        for step in replay(debug, form, inputs).steps
        if step.zero_point is not None
    )
