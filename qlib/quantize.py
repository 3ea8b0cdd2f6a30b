"""The flows: from a float module to its quantized forms in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn

from qlib import interpret
from qlib.errors import QConfigError
from qlib.frontends.capture import capture
from qlib.passes.convert import convert
from qlib.passes.lower import lower
from qlib.passes.prepare import prepare
from qlib.qconfig import QConfig, QConfigMapping, as_mapping, at_run_time, transform

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Mode:
    """One way of quantizing: what it does to the QConfigs; the passes are the same for all."""

    doc: str
    adapt: Callable[[QConfigMapping], QConfigMapping]


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "static": Mode("ranges of activations are measured on calibration data", lambda mapping: mapping),
        "dynamic": Mode(
            "activations are quantized by their range at run time, results stay in float",
            lambda mapping: transform(mapping, at_run_time),
        ),
    }
)


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


def quantize_model(
    module: nn.Module,
    inputs: Inputs,
    calibration: Iterable[Inputs] = (),
    mode: str = "static",
    qconfig: QConfigMapping | QConfig | str | None = "default",
    method: str = "export",
) -> Quantized:
    """Quantize a float module: capture, prepare, calibrate, convert, lower.

    `inputs` are example inputs, one tensor per argument; `calibration` yields further ones, and the example is used
    where it yields none. The module itself is not changed. Raises the errors of the single steps.
    """
    mapping = mapping_for(mode, qconfig)
    captured = capture(module, inputs, method)
    prepared = prepare(captured, mapping)
    calibrate(prepared, list(calibration) or [inputs])
    debug = convert(prepared)
    return Quantized(captured, prepared, debug, lower(debug))
