"""The flows: from a float module to its quantized forms in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qlib import interpret
from qlib.errors import QConfigError
from qlib.frontends.capture import capture
from qlib.graph import copy_of
from qlib.passes.convert import convert
from qlib.passes.lower import lower
from qlib.passes.prepare import prepare, prepare_qat
from qlib.qconfig import QConfig, QConfigMapping, as_mapping, at_run_time, transform
from qlib.trained import freeze_bn_stats, update_bn_stats
from qlib.training import move_exported_model_to_eval

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Mode:
    """One way of quantizing; conversion and lowering are the same for all.

    doc      one line for people
    adapt    what it does to the QConfigs
    prepare  makes the graph that sees data, of the captured one and the QConfigs
    fit      shows data to that graph; given the captured graph, the prepared one and the batches
    """

    doc: str
    adapt: Callable[[QConfigMapping], QConfigMapping]
    prepare: Callable[[fx.GraphModule, QConfigMapping], fx.GraphModule]
    fit: Callable[[fx.GraphModule, fx.GraphModule, Sequence[Inputs]], None]


@dataclass(frozen=True)
class Quantized:
    """All the forms that a module goes through; each is a graph module that can be called like the original."""

    captured: fx.GraphModule
    prepared: fx.GraphModule
    debug: fx.GraphModule
    final: fx.GraphModule


def mapping_for(mode: str, qconfig: QConfigMapping | QConfig | str | None = "default") -> QConfigMapping:
    """The QConfigs as `mode` uses them; raises QConfigError for a mode that does not exist."""
    if mode not in MODES:
        raise QConfigError(f"no mode is named {mode!r}; expected one of {', '.join(MODES)}")
    return MODES[mode].adapt(as_mapping(qconfig))


def calibrate(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> None:
    """Run a prepared graph on calibration data, so that its observers see it."""
    with torch.no_grad():
        for batch in batches:
            interpret.run(prepared, batch)


# Steps of `train_towards`, how far each goes, and the share of its norm by which a parameter moves in one at most:
# enough to move every parameter, too little to leave the float model behind, however large its outputs are.
STEPS = 4
RATE = 1e-3
SHARE = 1e-3


def distill(captured: fx.GraphModule, prepared: fx.GraphModule, batches: Sequence[Inputs]) -> None:
    """Train a graph from `prepare_qat` to give what the float graph gives, and leave it in evaluation mode.

    The float graph is run in evaluation mode, whatever it was captured in, and stays as it is. Batch norms go by their
    running statistics, as befits a model that was trained already. See `train_towards` for the steps.
    """
    teacher = move_exported_model_to_eval(copy_of(captured))  # so that its statistics stay as they are
    prepared.train()
    prepared.apply(freeze_bn_stats)
    train_towards(prepared, lambda *inputs: interpret.run(teacher, inputs), batches)
    prepared.apply(update_bn_stats)
    prepared.eval()


def train_towards(student: nn.Module, teacher: Callable[..., object], batches: Sequence[Inputs]) -> None:
    """Train a model, in the mode that it is in, to give what `teacher` gives.

    Makes `STEPS` steps of stochastic gradient descent on the mean squared difference of the outputs, going round
    `batches`. A step is shortened for parameters whose norm it would change by more than `SHARE` (You et al. 2017,
    section 4).
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        with torch.no_grad():
            wanted = teacher(*(x.clone() for x in batch))
        with torch.enable_grad():
            loss = _difference(student(*(x.clone() for x in batch)), wanted)
        if loss.requires_grad:
            _descend(loss, parameters)


def _descend(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """One step down the gradient; by hand, as the first use of `torch.optim` in a process takes seconds."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and bool(gradient.isfinite().all()):
                shortened = (SHARE * parameter.norm() / (RATE * gradient.norm())).clamp(max=1.0).nan_to_num(0.0)
                parameter.sub_(RATE * shortened * gradient)


def _difference(found: object, wanted: object) -> Tensor:
    """The mean squared differences of all float tensors in two results, summed."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    terms = (nn.functional.mse_loss(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point())
    return sum(terms, torch.zeros(()))


def _calibrated(captured: fx.GraphModule, prepared: fx.GraphModule, batches: Sequence[Inputs]) -> None:
    calibrate(prepared, batches)


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "static": Mode(
            "ranges of activations are measured on calibration data", lambda mapping: mapping, prepare, _calibrated
        ),
        "dynamic": Mode(
            "activations are quantized by their range at run time, results stay in float",
            lambda mapping: transform(mapping, at_run_time),
            prepare,
            _calibrated,
        ),
        "qat": Mode(
            "as static, after a few steps of training on fake-quantized values",
            lambda mapping: mapping,
            prepare_qat,
            distill,
        ),
    }
)


def quantize_model(
    module: nn.Module,
    inputs: Inputs,
    calibration: Iterable[Inputs] = (),
    mode: str = "static",
    qconfig: QConfigMapping | QConfig | str | None = "default",
    method: str = "export",
) -> Quantized:
    """Quantize a float module: capture, prepare, calibrate or train, convert, lower.

    `inputs` are example inputs, one tensor per argument; `calibration` yields further ones, and the example is used
    where it yields none. `mode` is a key of `MODES`; the training of "qat" is `distill`. The module itself is not
    changed. Raises the errors of the single steps.
    """
    mapping = mapping_for(mode, qconfig)
    captured = capture(module, inputs, method)
    prepared = MODES[mode].prepare(captured, mapping)
    MODES[mode].fit(captured, prepared, list(calibration) or [inputs])
    debug = convert(prepared)
    return Quantized(captured, prepared, debug, lower(debug))
