"""The engines of torch's quantized kernels, which are a setting of the process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from conformance.backend import About
from conformance.environment import installed


def about(name: str, engine: str, modes: frozenset[str], captures: frozenset[str], lacks: frozenset[str]) -> About:
    """What a flow of torch's own says of itself; an engine that torch was built without is missing."""
    versions, missing = installed(["torch"])
    return About(name, versions, modes, captures, lacks, missing=missing or _absent(engine))


def _absent(engine: str) -> tuple[str, ...]:
    import torch

    return () if engine in torch.backends.quantized.supported_engines else (f"torch's engine {engine}",)


@contextmanager
def using(engine: str) -> Iterator[None]:
    """Have quantized kernels run on an engine; the flows say that they are deprecated whenever they are used."""
    import torch

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


def on_engine(model: Callable[..., object], engine: str) -> Callable[..., object]:
    """The model as a function that runs on an engine whatever the setting of the process is."""

    def call(*inputs: Any) -> object:
        with using(engine):
            return model(*inputs)

    return call
