"""torchao's export flow (PT2E) with its quantizer for x86: its reference graph, lowered, and compiled by inductor."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import torch_qconfigs, torchao_names
from conformance.backends.qlib import mapping_of
from conformance.backends.torch_qconfigs import PLAIN_TENSORS, Words, arguments, constructor, in_mode
from conformance.backends.torch_spared import spared
from conformance.environment import installed
from conformance.errors import Unsupported

if TYPE_CHECKING:
    from conformance.backends.qlib import QConfig, QConfigMapping, QSpec

# A reference graph's final form, and its debug form where it has one.
Finish = Callable[[Any, Task], tuple[Program, Program | None]]

PACKAGES = ("torchao", "torch")
MODES = frozenset({"static", "dynamic"})
_WEIGHTS_WITH_ZERO_POINT = "weights with a zero point"
LACKS = torch_qconfigs.LACKS - {"int16"} | {_WEIGHTS_WITH_ZERO_POINT}


def reference(target: str) -> Backend:
    """torchao's export flow, its reference graph run as it is: quantize and dequantize around float operators."""
    return TorchAo("torchao-pt2e", _as_it_is)


def x86(target: str) -> Backend:
    """torchao's export flow, lowered to oneDNN's kernels for x86."""
    return TorchAo("torchao-x86", _lowered)


def inductor(target: str) -> Backend:
    """torchao's export flow, compiled by inductor: seconds for each case, and not among `all`."""
    return TorchAo("torchao-inductor", _compiled)


@dataclass(frozen=True)
class TorchAo:
    """The export flow, with what is done to its reference graph in the end."""

    name: str
    finish: Finish

    def about(self) -> About:
        """Versions, and what the flow has."""
        versions, missing = installed(PACKAGES)
        return About(self.name, versions, MODES, frozenset({"export"}), LACKS, missing=missing)

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Export, prepare, calibrate, convert; then lower or compile."""
        with _quietly(), spared():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            from conformance.backends import torch_executed as executed
            from conformance.backends.torch_fitting import calibrate

            quantizer = x86_quantizer(mapping_of(task.qconfig), task.mode)
            with stage("capture"):
                float_ops = executed.counts(task.module, task.inputs)
                exported = _exported(task)
            with stage("prepare"):
                prepared = prepare_pt2e(exported, quantizer)
            with stage("calibrate"):  # in dynamic mode for the weights
                calibrate(prepared, task.calibration or (task.inputs,))
            with stage("convert"):
                converted = convert_pt2e(prepared)
            with stage("lower"):
                final, debug = self.finish(converted, task)
        return Quantized(float_ops, final, debug, float_graph=exported.code)


def _exported(task: Task) -> Any:
    import torch

    return torch.export.export(task.module, tuple(x.clone() for x in task.inputs)).module()


def _as_it_is(converted: Any, task: Task) -> tuple[Program, None]:
    return _program(converted, task), None


def _lowered(converted: Any, task: Task) -> tuple[Program, Program]:
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    lowered = lower_pt2e_quantized_to_x86(converted, tuple(x.clone() for x in task.inputs))
    return _program(lowered, task), _program(converted, task)


def _compiled(converted: Any, task: Task) -> tuple[Program, Program]:
    import torch
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    compiled = torch.compile(converted)

    def call(*inputs: Any) -> object:
        with torch.no_grad(), config.patch(freezing=True):
            return compiled(*inputs)

    _, codes = run_and_get_code(call, *(x.clone() for x in task.inputs))
    ran = tuple(name for code in codes for name in torchao_names.of_code(code, task.mode))
    return Program(call, ran, Counter(ran), graph="\n".join(codes)), _program(converted, task)


def _program(model: Any, task: Task) -> Program:
    from conformance.backends import torch_executed as executed

    steps = executed.steps(model, task.inputs)
    return Program(model, torchao_names.of_graph(model), Counter(torchao_names.native(model)), steps, model.code)


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def x86_quantizer(mapping: QConfigMapping, mode: str) -> Any:
    """torchao's quantizer for x86, as a spec's QConfigs say; raises Unsupported for what it has no word for."""
    import torch
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    quantizer = X86InductorQuantizer()
    if mapping.default is not None:
        quantizer.set_global(_configuration(mapping.default, mode))
    for kind, rule in mapping.types.items():
        quantizer.set_module_type_qconfig(getattr(torch.nn, kind.removeprefix("nn.")), _configuration(rule, mode))
    for path, rule in mapping.modules.items():
        quantizer.set_module_name_qconfig(path, _configuration(rule, mode))
    return quantizer


def _configuration(rule: QConfig | None, mode: str) -> Any:
    from torchao.quantization.pt2e import observer
    from torchao.quantization.pt2e.quantizer.quantizer import QuantizationSpec
    from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig

    if rule is None:
        return None
    (activation, weight), words = in_mode(rule, mode), Words(observer, PLAIN_TENSORS)
    if not weight.symmetric:
        raise Unsupported("its quantizer refuses weights with a zero point", _WEIGHTS_WITH_ZERO_POINT)

    def spec(of: QSpec) -> Any:
        make = constructor(of, words)
        return QuantizationSpec(
            **arguments(of, words),
            ch_axis=of.axis,
            is_dynamic=of.observer == "runtime",
            observer_or_fake_quant_ctr=make,
        )

    return QuantizationConfig(spec(activation), spec(activation), spec(weight), None, False)
