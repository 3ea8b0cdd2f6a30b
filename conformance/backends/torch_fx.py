"""Torch's own flow over symbolic traces (`torch.ao.quantization.quantize_fx`), deprecated, on each of its engines."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import torch_engine
from conformance.backends.qlib import mapping_of
from conformance.backends.torch_qconfigs import LACKS as LACKS_OF_ALL
from conformance.backends.torch_qconfigs import WEIGHTS_WITH_ZERO_POINT, lacking, refuse_zero_points, torch_qconfig
from conformance.errors import Unsupported

if TYPE_CHECKING:
    from conformance.backends.qlib import QConfig, QConfigMapping

MODES = frozenset({"static", "dynamic", "qat"})
# It has a capture of its own, which is most like a trace.
CAPTURES = frozenset({"trace"})
_CONTROL_FLOW = "control flow that depends on an argument"
LACKS = LACKS_OF_ALL | {_CONTROL_FLOW, WEIGHTS_WITH_ZERO_POINT}


def backend(target: str) -> Backend:
    """Torch's own flow over symbolic traces (deprecated), on one of its engines."""
    return TorchFx(target)


@dataclass(frozen=True)
class TorchFx:
    """The flow over symbolic traces on one engine."""

    engine: str

    def about(self) -> About:
        """The version, and what the flow has."""
        return torch_engine.about("torch-fx", self.engine, MODES, CAPTURES, LACKS)

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Trace and prepare, calibrate or train, convert to the reference form and to the final one."""
        from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx

        from conformance.backends import torch_executed as executed

        with torch_engine.using(self.engine):
            with stage("capture"):
                float_ops = executed.counts(task.module, task.inputs)
            with stage("prepare"):
                prepared = _prepared(task, self.engine)
            if task.mode != "dynamic":
                with stage("calibrate"):
                    _fit(prepared, task)
            with stage("convert"):
                debug = convert_to_reference_fx(copy.deepcopy(prepared))
            with stage("lower"):
                final = convert_fx(prepared)
                program = executed.program(torch_engine.on_engine(final, self.engine), task.inputs, final.code)
        reference = Program(torch_engine.on_engine(debug, self.engine), (), graph=debug.code)
        return Quantized(float_ops, program, reference)


def _prepared(task: Task, engine: str) -> Any:
    from torch.ao.quantization.quantize_fx import prepare_fx, prepare_qat_fx
    from torch.fx.proxy import TraceError

    qconfigs = torch_mapping(mapping_of(task.qconfig), task.mode, engine)
    prepare = prepare_qat_fx if task.mode == "qat" else prepare_fx
    # Its own copy: the float module is the one that training is after.
    module = _held(copy.deepcopy(task.module), len(task.inputs)).train(task.mode == "qat")
    try:
        return prepare(module, qconfigs, task.inputs)
    except TraceError as error:
        raise Unsupported(f"its tracer can't follow {_CONTROL_FLOW}: {error}", _CONTROL_FLOW) from error


def _held(module: Any, inputs: int) -> Any:
    """A layer within a model, as the flow expects it: layers are taken as they are, but the model is looked into.

    So it is with each layer that is given one input, whatever else it could be given, as a transposed convolution the
    size of its output.
    """
    from torch import nn

    layer = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
    return nn.Sequential(module) if layer and inputs == 1 else module


def _fit(prepared: Any, task: Task) -> None:
    from conformance.backends.torch_fitting import calibrate, distill

    batches = task.calibration or (task.inputs,)
    if task.mode == "qat":
        distill(prepared, task.module, batches)
    else:
        calibrate(prepared, batches)


def torch_mapping(mapping: QConfigMapping, mode: str, engine: str) -> Any:
    """A spec's QConfigs as the flow's own; raises Unsupported for what it has no word for.

    What the flow's default says of operators whose results have a known range, of reshapes, layer norms and slopes is
    kept: without it they are refused or left in float. Weights of transposed convolutions, which the flow refuses by
    channel in every mode and on every engine, have one scale, as its default gives them where it knows of that.
    """
    import torch
    from torch.ao.quantization import QConfigMapping as TorchMapping

    refuse_zero_points(mapping, engine)
    found = TorchMapping().set_global(_qconfig(mapping.default, mode))
    if mode != "dynamic":
        for kind, qconfig in _of_operators(mapping.default, mode, engine):
            found.set_object_type(kind, qconfig)
    for kind in _transposed():
        found.set_object_type(kind, _qconfig(_per_tensor(mapping.default), mode))
    for kind, rule in mapping.types.items():
        found.set_object_type(getattr(torch.nn, kind.removeprefix("nn.")), _qconfig(rule, mode))
    for path, rule in mapping.modules.items():
        found.set_module_name(path, _qconfig(rule, mode))
    return found


def _qconfig(rule: QConfig | None, mode: str) -> Any:
    """A QConfig, those of tables of embeddings and of half precision among them."""
    from torch.ao import quantization

    if rule is None or rule.activation is not None or rule.weight is None:
        return torch_qconfig(rule, mode)
    weight = rule.weight
    if weight.dtype == "float16" and mode == "dynamic":
        return quantization.float16_dynamic_qconfig
    if weight.dtype in ("uint8", "uint4") and weight.axis == 0 and not weight.symmetric:
        bits = "" if weight.dtype == "uint8" else "_4bit"
        return getattr(quantization, f"float_qparams_weight_only_qconfig{bits}")
    raise lacking("weights alone in few bits")


def _transposed() -> list[Any]:
    """Transposed convolutions, as layers and as functions."""
    from torch import nn
    from torch.nn import functional

    layers: list[Any] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
    return [*layers, functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d]


def _per_tensor(rule: QConfig | None) -> QConfig | None:
    """A QConfig whose weights have one scale; one without activations, which is of weights alone, stays as it is."""
    if rule is None or rule.activation is None or rule.weight is None:
        return rule
    return replace(rule, weight=replace(rule.weight, axis=None))


def _of_operators(rule: QConfig | None, mode: str, engine: str) -> list[tuple[Any, Any]]:
    """What the flow's default says of single operators, with the observers of `rule` in place of its usual ones."""
    from torch.ao import quantization as flow

    if rule is None or rule.activation is None or rule.weight is None:
        return []
    default = flow.get_default_qat_qconfig_mapping if mode == "qat" else flow.get_default_qconfig_mapping
    usual = default(engine)
    common: Any = usual.global_qconfig
    ours = torch_qconfig(rule, mode)

    def adapted(kind: Any, qconfig: Any) -> Any:
        if qconfig == common:
            return ours
        if qconfig.activation in (common.activation, flow.HistogramObserver):
            return flow.QConfig(activation=ours.activation, weight=qconfig.weight)
        return qconfig

    return [(kind, adapted(kind, qconfig)) for kind, qconfig in usual.object_type_qconfigs.items()]
