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
    for norm in _norms(prepared):
        norm.eval()
    train_towards(prepared, teacher, batches)
    prepared.eval()


def _norms(prepared: nn.Module) -> list[nn.Module]:
    """All batch norms, those within fused layers among them.

    Torch's own `freeze_bn_stats` knows those within fused convolutions alone.
    """
    return [module for module in prepared.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
