"""Showing data to prepared models: calibration, and a few steps of training as the suite's mode `qat` means it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Steps, how far each goes, and the share of its norm by which a parameter moves in one at most.
STEPS = 4
RATE = 1e-3
SHARE = 1e-3


def calibrate(prepared: Any, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Run a prepared model on `batches`, so that its observers see them."""
    with torch.no_grad():
        for batch in batches:
            prepared(*(x.clone() for x in batch))


def distill(prepared: Any, teacher: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Train a prepared model to give what the float module `teacher` gives, and leave it in evaluation mode.

    `STEPS` steps of stochastic gradient descent on the mean squared difference of the outputs, going round `batches`,
    with batch norms by their running statistics. A step is shortened for parameters whose norm it would change by more
    than `SHARE` (You et al. 2017, section 4).
    """
    from torch.ao.nn.intrinsic.qat import freeze_bn_stats

    parameters = [parameter for parameter in prepared.parameters() if parameter.requires_grad]
    prepared.apply(freeze_bn_stats)
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        with torch.no_grad():
            wanted = teacher(*(x.clone() for x in batch))
        with torch.enable_grad():
            loss = _difference(prepared(*(x.clone() for x in batch)), wanted)
        if loss.requires_grad:
            _descend(loss, parameters)
    prepared.eval()


def _descend(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and bool(gradient.isfinite().all()):
                shortened = (SHARE * parameter.norm() / (RATE * gradient.norm())).clamp(max=1.0).nan_to_num(0.0)
                parameter.sub_(RATE * shortened * gradient)


def _difference(found: object, wanted: object) -> Tensor:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    terms = (nn.functional.mse_loss(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point())
    return sum(terms, torch.zeros(()))
