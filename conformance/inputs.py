"""Drawing tensors: inputs, calibration batches and weights, each from a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from conformance.case import Case
from conformance.tensorspec import Distribution, Draw, TensorQParams, TensorSpec

Shape = tuple[int, ...]


def generator(seed: int, purpose: str) -> torch.Generator:
    """A random source for one purpose of one case, independent of all others."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def inputs_of(case: Case) -> tuple[Tensor, ...]:
    """The tensors of the call that is judged, in the order of the spec."""
    return _batch(case, case.inputs, "inputs")


def calibration_of(case: Case, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """The calibration batches: the judged inputs and further draws, or draws of their own if the spec says so."""
    own = case.calibration.inputs
    specs = {**case.inputs, **own}
    drawn = [_batch(case, specs, f"calibration {n}") for n in range(case.calibration.batches)]
    return tuple(drawn) if own else (inputs, *drawn[1:])


def _batch(case: Case, specs: Mapping[str, TensorSpec], purpose: str) -> tuple[Tensor, ...]:
    drawn = {
        name: draw(spec, spec.shape, getattr(torch, spec.dtype), generator(case.seed, f"{purpose} {name}"))
        for name, spec in specs.items()
    }
    return tuple(real(x, params) if (params := case.qparams.get(name)) else x for name, x in drawn.items())


def real(stored: Tensor, params: TensorQParams) -> Tensor:
    """What integers mean: ``scale * (stored - zero_point)``, rounded once to float32; same shape.

    Quantizing the result by the same parameters gives the integers back.
    """
    shape = [1] * stored.dim()
    if params.axis is not None:
        shape[params.axis] = -1
    scale = torch.tensor(params.scale, dtype=torch.float64).reshape(shape)
    zero_point = torch.tensor(params.zero_point, dtype=torch.float64).reshape(shape)
    return ((stored.double() - zero_point) * scale).float()


def draw(spec: Draw | TensorSpec, shape: Shape, dtype: torch.dtype, source: torch.Generator) -> Tensor:
    """Draw one tensor by the spec's distribution; the result has the given shape and dtype."""
    return DRAWN[spec.distribution](spec, shape, source).to(dtype)


def _uniform(spec: Draw | TensorSpec, shape: Shape, source: torch.Generator) -> Tensor:
    low, high = spec.range
    return torch.rand(shape, generator=source, dtype=torch.float64) * (high - low) + low


def _normal(spec: Draw | TensorSpec, shape: Shape, source: torch.Generator) -> Tensor:
    low, high = spec.range
    return torch.randn(shape, generator=source, dtype=torch.float64) * ((high - low) / 6) + (low + high) / 2


def _integers(spec: Draw | TensorSpec, shape: Shape, source: torch.Generator) -> Tensor:
    low, high = (int(bound) for bound in spec.range)
    return torch.randint(low, high + 1, shape, generator=source)


def _constant(spec: Draw | TensorSpec, shape: Shape, source: torch.Generator) -> Tensor:
    assert spec.value is not None
    return torch.full(shape, spec.value, dtype=torch.float64)


def _outliers(spec: Draw | TensorSpec, shape: Shape, source: torch.Generator) -> Tensor:
    assert spec.outliers is not None
    drawn = _uniform(spec, shape, source)
    places = torch.randperm(drawn.numel(), generator=source)[: spec.outliers.count]
    drawn.view(-1)[places] = spec.outliers.value
    return drawn


def _values(spec: Draw | TensorSpec, shape: Shape, source: torch.Generator) -> Tensor:
    return torch.tensor(spec.values, dtype=torch.float64).expand(shape).clone()


DRAWN: Mapping[Distribution, Callable[[Draw | TensorSpec, Shape, torch.Generator], Tensor]] = {
    Distribution.UNIFORM: _uniform,
    Distribution.NORMAL: _normal,
    Distribution.INTEGERS: _integers,
    Distribution.CONSTANT: _constant,
    Distribution.OUTLIERS: _outliers,
    Distribution.VALUES: _values,
}
