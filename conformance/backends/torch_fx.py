"""Torch's own flow over symbolic traces (`torch.ao.quantization.quantize_fx`), deprecated, on each of its engines."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import torch_engine
from conformance.backends.qlib import mapping_of
from conformance.backends.torch_qconfigs import LACKS as LACKS_OF_ALL
from conformance.backends.torch_qconfigs import lacking, torch_qconfig, torch_words, trainable
from conformance.errors import Unsupported

if TYPE_CHECKING:
    from qlib.qconfig import QConfig, QConfigMapping

MODES = frozenset({"static", "dynamic", "qat"})
# It has a capture of its own, which goes the example's way as little as `trace` keeps conditions on data.
CAPTURES = frozenset({"trace"})
_CONTROL_FLOW = "control flow that depends on an argument"
LACKS = LACKS_OF_ALL | {_CONTROL_FLOW}


def backend(target: str) -> Backend:
    """Torch's own flow over symbolic traces; targets: its engines `fbgemm`, `x86` (the default), `onednn`, `qnnpack`."""
    return TorchFx(torch_engine.engine_of(target, "torch-fx"))


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
                float_ops = executed.sequence(executed.calls(_example(task.module, task)))
            with stage("prepare"):
                prepared = _prepared(task, self.engine)
            if task.mode != "dynamic":
                with stage("calibrate"):
                    _fit(prepared, task)
            with stage("convert"):
                debug = convert_to_reference_fx(copy.deepcopy(prepared))
            with stage("lower"):
                final = convert_fx(prepared)
                program = self._program(final, task)
        return Quantized(
            float_ops=dict(sorted(Counter(float_ops).items())),
            final=program,
            debug=Program(self._call(debug), (), graph=debug.code),
        )

    def _call(self, model: Any) -> Callable[..., object]:
        def call(*inputs: Any) -> object:
            with torch_engine.using(self.engine):
                return model(*inputs)

        return call

    def _program(self, model: Any, task: Task) -> Program:
        from conformance.backends import torch_executed as executed

        call = self._call(model)
        ran = executed.calls(_example(call, task))
        steps = executed.steps(call, task.inputs)
        return Program(call, executed.sequence(ran), Counter(executed.native(ran)), steps, model.code)


def _example(call: Callable[..., object], task: Task) -> Callable[[], object]:
    inputs = tuple(x.clone() for x in task.inputs)
    return lambda: call(*inputs)


def _prepared(task: Task, engine: str) -> Any:
    from torch.ao.quantization.quantize_fx import prepare_fx, prepare_qat_fx
    from torch.fx.proxy import TraceError

    qconfigs = torch_mapping(mapping_of(task.qconfig), task.mode, engine)
    prepare = prepare_qat_fx if task.mode == "qat" else prepare_fx
    # Its own copy: the float module is the one that training is after.
    module = copy.deepcopy(task.module).train(task.mode == "qat")
    try:
        return prepare(module, qconfigs, task.inputs)
    except TraceError as error:
        raise Unsupported(f"its tracer can't follow {_CONTROL_FLOW}: {error}", _CONTROL_FLOW) from error


def _fit(prepared: Any, task: Task) -> None:
    import torch

    from conformance.backends.torch_training import distill

    batches = task.calibration or (task.inputs,)
    if task.mode == "qat":
        distill(prepared, task.module, batches)
        return
    with torch.no_grad():
        for batch in batches:
            prepared(*(x.clone() for x in batch))


def torch_mapping(mapping: QConfigMapping, mode: str, engine: str) -> Any:
    """A spec's QConfigs as the flow's own; raises Unsupported for what it has no word for.

    What the flow's default says of operators whose results have a known range, of reshapes, of transposed convolutions,
    layer norms and slopes is kept: without it they are refused or left in float.
    """
    import torch
    from torch.ao.quantization import QConfigMapping as TorchMapping

    found = TorchMapping().set_global(_qconfig(mapping.default, mode))
    if mapping.default is not None and mode != "dynamic" and mapping.default.activation is not None:
        for kind, qconfig in _of_operators(mapping.default, mode, engine):
            found.set_object_type(kind, qconfig)
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


def _of_operators(rule: QConfig, mode: str, engine: str) -> list[tuple[Any, Any]]:
    """What the flow's default says of single operators, with the observers of `rule` where it has none for a purpose."""
    from torch.ao import quantization as flow

    default = flow.get_default_qat_qconfig_mapping if mode == "qat" else flow.get_default_qconfig_mapping
    ours, found = _qconfig(rule, mode), []
    per_tensor = _qconfig(replace(rule, weight=replace(rule.weight, axis=None)), mode)
    usual = default(engine)
    for kind, qconfig in usual.object_type_qconfigs.items():
        if "transpose" in str(kind).lower():
            qconfig = per_tensor if qconfig != usual.global_qconfig else ours
        elif qconfig.activation == usual.global_qconfig.activation:
            qconfig = flow.QConfig(activation=ours.activation, weight=qconfig.weight)
        found.append((kind, qconfig))
    return found
