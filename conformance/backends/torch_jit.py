"""Torch's own flow over TorchScript (`torch.ao.quantization.quantize_jit`), deprecated, on each of its engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import torch_engine, torch_qconfigs
from conformance.backends.qlib import mapping_of

MODES = frozenset({"static", "dynamic"})
CAPTURES = frozenset({"trace", "script"})
LACKS = torch_qconfigs.LACKS | {"QConfigs by type"}


def backend(target: str) -> Backend:
    """Torch's own flow over TorchScript; targets: its engines `fbgemm`, `x86` (the default), `onednn`, `qnnpack`."""
    return TorchJit(torch_engine.engine_of(target, "torch-jit"))


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

        with torch_engine.using(self.engine):
            with stage("capture"):
                float_ops = executed.sequence(executed.calls(_example(task.module, task)))
                scripted = _scripted(task)
            with stage("prepare"):
                prepared = _prepared(task, scripted)
            if task.mode == "static":
                with stage("calibrate"):
                    _calibrate(prepared, task)
            with stage("convert"):
                debug = _converted(prepared, task.mode, debug=True)
            with stage("lower"):
                final = _converted(prepared, task.mode, debug=False)
                program = self._program(final, task)
        return Quantized(
            float_ops=dict(sorted(Counter(float_ops).items())),
            final=program,
            debug=Program(self._call(debug), (), graph=str(debug.inlined_graph)),
            float_graph=str(scripted.inlined_graph),
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
        return Program(
            call,
            executed.sequence(ran),
            Counter(executed.native(ran)),
            executed.steps(call, task.inputs),
            str(model.inlined_graph),
        )


def _example(call: Callable[..., object], task: Task) -> Callable[[], object]:
    inputs = tuple(x.clone() for x in task.inputs)
    return lambda: call(*inputs)


def _scripted(task: Task) -> Any:
    import torch

    if task.capture == "script":
        return torch.jit.script(task.module)
    return torch.jit.trace(task.module, tuple(x.clone() for x in task.inputs), check_trace=False)


def _prepared(task: Task, scripted: Any) -> Any:
    from torch.ao.quantization.quantize_jit import prepare_dynamic_jit, prepare_jit

    mapping = mapping_of(task.qconfig)
    torch_qconfigs.refuse_types(mapping)
    rules = {"": mapping.default, **mapping.modules}
    qconfigs = {path: torch_qconfigs.torch_qconfig(rule, task.mode) for path, rule in rules.items()}
    return (prepare_dynamic_jit if task.mode == "dynamic" else prepare_jit)(scripted, qconfigs)


def _calibrate(prepared: Any, task: Task) -> None:
    import torch

    with torch.no_grad():
        for batch in task.calibration or (task.inputs,):
            prepared(*(x.clone() for x in batch))


def _converted(prepared: Any, mode: str, debug: bool) -> Any:
    from torch.ao.quantization.quantize_jit import convert_dynamic_jit, convert_jit

    return (convert_dynamic_jit if mode == "dynamic" else convert_jit)(prepared, debug=debug)
