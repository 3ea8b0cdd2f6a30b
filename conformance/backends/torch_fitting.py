"""Showing data to prepared models: calibration, and a few steps of training as the suite's mode `qat` means it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conformance.backends.qlib import train_towards


def calibrate(prepared: Any, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Run a prepared model on `batches`, so that its observers see them."""
    with torch.no_grad():
        for batch in batches:
            prepared(*(x.clone() for x in batch))


def distill(prepared: nn.Module, teacher: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Train a prepared model to give what the float module `teacher` gives, and leave it in evaluation mode.

    Batch norms go by their running statistics; the steps are those of the bundled library's own training.
    """
    from torch.ao.nn.intrinsic.qat import freeze_bn_stats

    prepared.apply(freeze_bn_stats)
    train_towards(prepared, teacher, batches)
    prepared.eval()
