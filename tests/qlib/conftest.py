"""Fixtures that several files of these tests use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seeded_and_quiet() -> Iterator[None]:
    """The same weights each time, and nothing of what torch warns of."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
