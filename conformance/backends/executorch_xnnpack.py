"""ExecuTorch with the XNNPACK backend: PT2E quantization by XNNPACK's quantizer, lowered, on ExecuTorch's runtime."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task, demand_one_size
from conformance.backends.executorch_names import sequence
from conformance.backends.executorch_program import Lowered, executed, recorded, sources, steps
from conformance.backends.one_qconfig import unknown
from conformance.backends.qlib import float_operators, mapping_of
from conformance.backends.torch_spared import spared
from conformance.environment import installed
from conformance.errors import Unsupported

PACKAGES = ("executorch", "torchao", "torch")
# As the quantizer has it: a scale is never less.
LEAST_SCALE = 2.0**-12
OBSERVERS = {
    "min_max": "MinMaxObserver",
    "histogram": "HistogramObserver",
    "moving_average_min_max": "MovingAverageMinMaxObserver",
}
OTHER_OPERATORS = "operators outside of core ATen"
# What its quantizer has no word for, and its lowering no form.
LACKS = frozenset(
    {OTHER_OPERATORS, "QConfigs by module", "results of a type of their own", "groups", "narrow ranges"}
    | {"activations in float", "weights with a zero point", "symmetric activations at run time"}
    | {"one range of the whole tensor at run time"}
    | {f"the observer {name}" for name in ("fixed", "learnable")}
    | {f"{dtype} {what}" for dtype in ("int16", "uint4", "int4", "float16") for what in ("activations", "weights")}
    | {"uint8 weights"}
)


def backend(target: str) -> Backend:
    """ExecuTorch with XNNPACK on the CPU."""
    return ExecuTorch()


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch's runtime with XNNPACK for what its partitioner takes, and the portable kernels for the rest."""

    def about(self) -> About:
        """Versions, and what its quantizer can do."""
        versions, missing = installed(PACKAGES)
        return About(
            name="executorch-xnnpack",
            versions=versions,
            modes=frozenset({"static", "dynamic"}),
            captures=frozenset({"export"}),
            lacks=LACKS,
            missing=missing,
        )

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Export, prepare, calibrate, convert, lower, load."""
        asked = scheme(task)
        with warnings.catch_warnings(), spared():
            warnings.simplefilter("ignore")
            with stage("capture"):
                operators = float_operators(task)
            with stage("quantize"):
                model = _converted(task, asked)
            with stage("lower"):
                lowered = _lowered(model, task)
                program, ran = lowered.manager.exported_program(), executed(lowered)
                quanta = steps(program)
            with stage("compile"):
                call = _loaded(lowered)
        final = Program(
            call,
            sequence(ran, sources(model), operators),
            Counter(part.label for part in ran),
            quanta,
            "\n".join(part.label for part in ran),
        )
        return Quantized(float_ops=dict(sorted(Counter(operators).items())), final=final)


@dataclass(frozen=True)
class Scheme:
    """What the quantizer is asked: how activations and weights are quantized.

    The observer `own` stands for what it does unless it is asked otherwise; `least` is activations' least integer.
    """

    dynamic: bool
    per_channel: bool = True
    symmetric: bool = False
    observer: str = "own"
    least: int = -128


def scheme(task: Task) -> Scheme:
    """A task's QConfig in the quantizer's words; raises Unsupported for one that it has none for.

    Unsigned integers with a zero point are the signed ones with one that is 128 less: the same numbers.
    """
    qconfig = task.qconfig
    if qconfig is None or qconfig.is_modes_own:
        return Scheme(task.mode == "dynamic")
    if qconfig.modules or qconfig.types:
        raise unknown("QConfigs by module")
    rule = mapping_of(qconfig).default
    if rule is None or rule.activation is None or rule.weight is None:
        raise unknown("activations in float")
    if rule.output not in (None, rule.activation):
        raise unknown("results of a type of their own")
    per_channel = _weight(rule.weight)
    activation = rule.activation
    if activation.dtype not in ("uint8", "int8"):
        raise unknown(f"{activation.dtype} activations")
    if activation.range not in ((0, 255), (-128, 127), (-127, 127)):
        raise unknown("narrow ranges")
    if task.mode == "dynamic" or activation.observer == "runtime":
        if activation.symmetric:
            raise unknown("symmetric activations at run time")
        if activation.group_size is None and qconfig.default != "per_tensor":
            raise unknown("one range of the whole tensor at run time")
        return Scheme(True, per_channel)
    if activation.observer not in OBSERVERS:
        raise unknown(f"the observer {activation.observer}")
    return Scheme(
        False, per_channel, activation.symmetric, activation.observer, -127 if -127 in activation.range else -128
    )


def _weight(spec: Any) -> bool:
    """Whether each channel of weights has a scale of its own."""
    if spec.group_size is not None:
        raise unknown("groups")
    if spec.dtype != "int8":
        raise unknown(f"{spec.dtype} weights")
    if not spec.symmetric:
        raise unknown("weights with a zero point")
    if spec.range not in ((-128, 127), (-127, 127)):
        raise unknown("narrow ranges")
    return spec.axis is not None


def _quantizer(asked: Scheme) -> Any:
    from dataclasses import replace

    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization import pt2e

    config = get_symmetric_quantization_config(is_per_channel=asked.per_channel, is_dynamic=asked.dynamic)
    if asked.observer != "own":
        scale = torch.per_tensor_symmetric if asked.symmetric else torch.per_tensor_affine
        observer = getattr(pt2e, OBSERVERS[asked.observer]).with_args(eps=LEAST_SCALE)
        activation = replace(
            config.input_activation, quant_min=asked.least, qscheme=scale, observer_or_fake_quant_ctr=observer
        )
        config = replace(config, input_activation=activation, output_activation=activation)
    quantizer = XNNPACKQuantizer()
    # Patterns of training are traced anew in each case, which takes seconds, and find nothing: batch norms are folded.
    quantizer.SUPPORTED_PATTERNS = [pattern for pattern in quantizer.SUPPORTED_PATTERNS if not pattern.is_qat]
    return quantizer.set_global(config)


def _converted(task: Task, asked: Scheme) -> Any:
    """The graph with integers between quantize and dequantize."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    demand_one_size(task, "the program that it makes is")
    prepared = prepare_pt2e(torch.export.export(task.module, task.inputs, strict=False).module(), _quantizer(asked))
    with torch.no_grad():
        for batch in task.calibration:
            prepared(*batch)
    model = convert_pt2e(prepared)
    for node in model.graph.nodes:
        # From here on what was made from what leads back to this graph; a longer way is copied at each step.
        node.meta.pop("from_node", None)
    return model


def _lowered(model: Any, task: Task) -> Lowered:
    # The operators that quantize and dequantize what XNNPACK was not handed.
    import executorch.kernels.quantized  # noqa: F401
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torch._export.verifier import SpecViolationError

    with recorded() as subgraphs:
        exported = torch.export.export(model, task.inputs, strict=False)
        try:
            return Lowered(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]), subgraphs)
        except SpecViolationError as error:
            text = str(error).partition(" (")[0]
            raise Unsupported(f"it lowers no {OTHER_OPERATORS}: {text}", OTHER_OPERATORS) from error


def _loaded(lowered: Lowered) -> Callable[..., object]:
    """A call of the program on ExecuTorch's runtime."""
    from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer

    content = lowered.manager.to_executorch().buffer
    loaded = _Loaded(_load_for_executorch_from_buffer(content), content)
    return loaded.call


@dataclass(frozen=True)
class _Loaded:
    """A loaded program, and its bytes, which it reads but does not own."""

    module: Any
    content: bytes

    def call(self, *inputs: Any) -> object:
        return tuple(result.clone() for result in self.module.forward(inputs))
