"""ONNX Runtime: its own quantization tools on the float module, and its kernels."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task, demand_one_size
from conformance.backends import onnx_names
from conformance.backends.given import given_graph
from conformance.backends.one_qconfig import LACKS as LACKS_OF_ONE
from conformance.backends.one_qconfig import lacking, one_qconfig
from conformance.backends.onnx_source import feeds, source_of, text
from conformance.backends.qlib import float_model, operators_of
from conformance.environment import installed
from conformance.vocabulary import Mode

PACKAGES = ("onnxruntime", "onnx", "torch")
# How much of a graph is rewritten before it runs.
TARGETS: Mapping[str, str] = MappingProxyType({"all": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL"})
_TYPES: Mapping[str, str] = MappingProxyType({"uint8": "QUInt8", "int8": "QInt8", "int16": "QInt16"})
_ACTIVATIONS, _WEIGHTS = frozenset({"uint8", "int8", "int16"}), frozenset({"uint8", "int8"})
_RANGES = MappingProxyType(
    {"uint8": {(0, 255)}, "int8": {(-128, 127), (-127, 127)}, "int16": {(-32768, 32767), (-32767, 32767)}}
)
# What the arguments of its tools have no word for.
LACKS = (
    LACKS_OF_ONE
    | {"narrow ranges", "int4", "uint4", "float16"}
    | {f"the observer {name}" for name in ("histogram", "moving_average_min_max", "fixed", "runtime")}
    | {"other activations at run time than uint8 with a zero point", "uint8 weights beside int8 activations"}
)


def backend(target: str) -> Backend:
    """ONNX Runtime on the CPU, with all graph optimizations or none."""
    return OnnxRuntime(target)


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with one level of graph optimizations."""

    optimizations: str

    def about(self) -> About:
        """Versions, and what its quantization tools can do."""
        versions, missing = installed(PACKAGES)
        return About(
            name="onnxruntime",
            versions=versions,
            modes=frozenset({"static", "dynamic", "numerics"}),
            captures=frozenset({"export"}),  # each gives the same graph, which is all that it gets
            lacks=LACKS,
            missing=missing,
            properties={"activation_scheme": "per_tensor_asymmetric"},
        )

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Write the module in ONNX, quantize that by ONNX Runtime's tools, and open a session; or open one as given."""
        if task.mode == Mode.NUMERICS:
            return self._given(task, stage)
        with stage("capture"):
            source = float_model(task)
        with tempfile.TemporaryDirectory() as folder:
            with stage("quantize"):
                model = _quantized(task, source, Path(folder))
            with stage("compile"):
                final = open_session(model, source, self.optimizations, Path(folder))
        return Quantized(float_ops=operators_of(source), final=final, float_graph=text(source))

    def _given(self, task: Task, stage: Stage) -> Quantized:
        given = given_graph(task, stage)
        with stage("compile"), tempfile.TemporaryDirectory() as folder:
            program = open_session(given.model, given.model, self.optimizations, Path(folder))
        return given.judged(program)


def _quantized(task: Task, source: Any, folder: Path) -> Any:
    import onnx
    from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options = _options(task)
    given, prepared, written = (folder / f"{name}.onnx" for name in ("float", "prepared", "quantized"))
    onnx.save(source, given)
    # Its own advice: batch norms are folded there, and nowhere later.
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    if task.mode == "dynamic":
        quantize_dynamic(prepared, written, weight_type=options["weight_type"], per_channel=options["per_channel"])
    else:
        batches = Batches(source, task)
        quantize_static(prepared, written, batches, quant_format=QuantFormat.QDQ, **options)
    return onnx.load(written)


class Batches:
    """Calibration data as ONNX Runtime wants it: a dictionary of arrays at a time, None at the end."""

    def __init__(self, source: Any, task: Task) -> None:
        demand_one_size(task)
        self._left = iter([feeds(source, batch) for batch in task.calibration])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch."""
        return next(self._left, None)


def _options(task: Task) -> dict[str, Any]:
    """The QConfig as the tools' arguments; raises Unsupported for one that they can't express."""
    from onnxruntime.quantization import QuantType

    asked = one_qconfig(task)
    activation, weight = asked.activation, asked.weight
    if activation.observer != "min_max" and task.mode == "static":
        raise lacking(f"the observer {activation.observer}")
    if task.mode == "dynamic" and (activation.dtype, activation.symmetric) != ("uint8", False):
        raise lacking("other activations at run time than uint8 with a zero point")
    if (activation.dtype, weight.dtype) == ("int8", "uint8"):
        raise lacking("uint8 weights beside int8 activations")
    for spec, types in ((activation, _ACTIVATIONS), (weight, _WEIGHTS)):
        if spec.dtype not in types:
            raise lacking(str(spec.dtype))
        if spec.range not in _RANGES[spec.dtype]:
            raise lacking("narrow ranges")
    return {
        "per_channel": weight.axis is not None,
        "activation_type": getattr(QuantType, _TYPES[activation.dtype]),
        "weight_type": getattr(QuantType, _TYPES[weight.dtype]),
        "extra_options": {"ActivationSymmetric": activation.symmetric, "WeightSymmetric": weight.symmetric},
    }


def open_session(model: Any, source: Any, optimizations: str, folder: Path) -> Program:
    """A session for a model, with the operators that it really runs; `source` names what they were made from."""
    import onnx
    import onnxruntime

    optimized = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, TARGETS[optimizations])
    options.optimized_model_filepath = str(optimized)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = onnx.load(optimized)
    names = [value.name for value in session.get_inputs()]

    def call(*inputs: Any) -> Any:
        import torch

        given = feeds(source, inputs)
        results = session.run(None, {name: given[name] for name in names})
        return tuple(torch.from_numpy(result) for result in results)

    return Program(
        call,
        onnx_names.sequence(onnx_names.read(ran, source)),
        Counter(node.op_type for node in ran.graph.node),
        steps(ran),
        text(ran),
    )


def steps(model: Any) -> tuple[float | None, ...]:
    """The step of each output that is a dequantized tensor with one scale."""
    from onnx import numpy_helper

    source = source_of(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def step(name: str) -> float | None:
        node = source.maker(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in constants:
            return None
        scale = numpy_helper.to_array(constants[node.input[1]])
        return float(scale) if scale.size == 1 else None

    return tuple(step(output.name) for output in model.graph.output)
