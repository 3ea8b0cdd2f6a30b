"""Torch's own flow over TorchScript (`torch.ao.quantization.quantize_jit`), deprecated, on each of its engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import torch_engine, torch_qconfigs
from conformance.backends.qlib import mapping_of
from conformance.errors import Unsupported

if TYPE_CHECKING:
    from conformance.backends.qlib import QConfigMapping

MODES = frozenset({"static", "dynamic"})
CAPTURES = frozenset({"trace", "script"})
_TRANSPOSED_BY_CHANNEL = "transposed convolutions with weights by channel"
LACKS = torch_qconfigs.LACKS | {
    "QConfigs by type",
    torch_qconfigs.OTHER_ACTIVATIONS,
    torch_qconfigs.OTHER_WEIGHTS,
    torch_qconfigs.WEIGHTS_WITH_ZERO_POINT,
    _TRANSPOSED_BY_CHANNEL,
}

# The flow warns that its debug form is of no use where there are sums or products with a number.
_WITHOUT_DEBUG_FORM = tuple(
    f"quantized::{name}_scalar{tail}" for name in ("add", "mul") for tail in ("", "_relu", "_out")
)
_NO_DEBUG_FORM = "not compared with the debug form, which the flow does not support for sums and products with a number"


def backend(target: str) -> Backend:
    """Torch's own flow over TorchScript (deprecated), on one of its engines."""
    return TorchJit(target)


@dataclass(frozen=True)
class TorchJit:
    """The TorchScript flow on one engine."""

    engine: str

    def about(self) -> About:
        """The version, and what the flow has."""
        return torch_engine.about("torch-jit", self.engine, MODES, CAPTURES, LACKS)

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Script or trace, prepare, calibrate, convert to the debug form and to the final one."""
        from conformance.backends import torch_executed as executed
        from conformance.backends.torch_fitting import calibrate

        with torch_engine.using(self.engine):
            with stage("capture"):
                float_ops = executed.counts(task.module, task.inputs)
                scripted = _scripted(task)
            with stage("prepare"):
                prepared = _prepared(task, scripted, self.engine)
            if task.mode == "static":
                with stage("calibrate"):
                    calibrate(prepared, task.calibration or (task.inputs,))
            convert = _converter(task.mode)
            with stage("convert"):
                debug = convert(prepared, debug=True)
            with stage("lower"):
                final = convert(prepared)
                program = executed.program(
                    torch_engine.on_engine(final, self.engine), task.inputs, str(final.inlined_graph)
                )
        readable = Program(torch_engine.on_engine(debug, self.engine), (), graph=str(debug.inlined_graph))
        without = any(name in program.native_ops for name in _WITHOUT_DEBUG_FORM)
        return Quantized(
            float_ops=float_ops,
            final=program,
            debug=None if without else readable,
            float_graph=str(scripted.inlined_graph),
            notes=(_NO_DEBUG_FORM,) if without else (),
        )


def _scripted(task: Task) -> Any:
    import torch

    if task.capture == "script":
        return torch.jit.script(task.module)
    return torch.jit.trace(task.module, tuple(x.clone() for x in task.inputs), check_trace=False)


def _prepared(task: Task, scripted: Any, engine: str) -> Any:
    from torch.ao.quantization.quantize_jit import prepare_dynamic_jit, prepare_jit

    mapping = mapping_of(task.qconfig)
    torch_qconfigs.refuse_types(mapping)
    torch_qconfigs.refuse_zero_points(mapping, engine)
    torch_qconfigs.refuse_types_of_integers(mapping)
    if task.mode == "static":
        _refuse_transposed_by_channel(task.module, mapping)
    rules = {"": mapping.default, **mapping.modules}
    qconfigs = {path: torch_qconfigs.torch_qconfig(rule, task.mode) for path, rule in rules.items()}
    return (prepare_dynamic_jit if task.mode == "dynamic" else prepare_jit)(scripted, qconfigs)


def _refuse_transposed_by_channel(module: Any, mapping: QConfigMapping) -> None:
    """Raise Unsupported where the flow's kernels would refuse the scales of a transposed convolution's weight.

    Those of three dimensions the flow leaves in float.
    """
    from torch import nn

    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d)
    paths = [path for path, layer in module.named_modules() if isinstance(layer, kinds)]
    rules = [mapping.resolve(path, "") for path in paths]
    if any(rule is not None and rule.weight is not None and rule.weight.axis is not None for rule in rules):
        raise Unsupported(
            "its transposed convolutions know no weights with a scale for each channel", _TRANSPOSED_BY_CHANNEL
        )


def _converter(mode: str) -> Any:
    from torch.ao.quantization.quantize_jit import convert_dynamic_jit, convert_jit

    return convert_dynamic_jit if mode == "dynamic" else convert_jit
