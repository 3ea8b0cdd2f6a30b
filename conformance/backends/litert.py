"""LiteRT: modules converted by litert-torch, quantized by the AI Edge Quantizer, on three sets of kernels."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task, demand_one_size
from conformance.backends import litert_names
from conformance.backends.litert_model import CHANGED_INPUTS, NO_LOWERING, float_model, nodes_of
from conformance.backends.one_qconfig import unknown
from conformance.backends.qlib import float_operators, mapping_of
from conformance.backends.torch_spared import spared
from conformance.environment import installed

PACKAGES = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch")
# Which kernels run: those of the delegate that is on by default where it has one, the optimized ones, the plain ones.
TARGETS: Mapping[str, str] = MappingProxyType(
    {"xnnpack": "BUILTIN", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
)
SIGNATURE = "serving_default"
# How ranges of several batches become one.
OBSERVERS: Mapping[str, str] = MappingProxyType(
    {"min_max": "min_max_update", "moving_average_min_max": "moving_average_update"}
)
# What recipes of the quantizer have no word for.
LACKS = frozenset(
    {NO_LOWERING, CHANGED_INPUTS, "QConfigs by module", "results of a type of their own", "groups", "narrow ranges"}
    | {"activations in float for some operators", "weights with a zero point", "int16 with a zero point"}
    | {f"the observer {name}" for name in ("histogram", "fixed", "learnable")}
    | {f"{dtype} {what}" for dtype in ("uint8", "uint4", "int4", "float16") for what in ("activations", "weights")}
    | {"int16 weights", "activations by the row", "ranges at run time in static mode", "chosen activations at run time"}
)


def backend(target: str) -> Backend:
    """LiteRT on the CPU; targets: kernels of `xnnpack` (the default), `builtin` ones and `reference` ones."""
    return LiteRT(target)


@dataclass(frozen=True)
class LiteRT:
    """LiteRT with one set of kernels."""

    kernels: str

    def about(self) -> About:
        """Versions, and what its converter and quantizer can do."""
        versions, missing = installed(PACKAGES)
        return About(
            name="litert",
            versions=versions,
            modes=frozenset({"static", "dynamic"}),
            captures=frozenset({"export"}),
            lacks=LACKS,
            missing=missing,
        )

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Convert the float module, quantize the model by a recipe, and open an interpreter."""
        asked = recipe(task)
        with stage("capture"):
            operators = float_operators(task)
        with stage("convert"), spared():
            source = float_model(task)
        with stage("quantize"):
            content = _quantized(source, asked, task)
        with stage("compile"):
            final = open_interpreter(content, operators, self.kernels)
        return Quantized(float_ops=dict(sorted(Counter(operators).items())), final=final)


@dataclass(frozen=True)
class Recipe:
    """What the quantizer is asked: bits of activations (None for float) and weights, and how scales are laid out.

    `precision` is how operators compute, `INTEGER` or `FLOAT`; the observer is its own unless another one is asked for.
    """

    activation: int | None
    symmetric: bool
    weight: int
    per_channel: bool
    precision: str = "INTEGER"
    observer: str = "moving_average_min_max"


# What it does unless it is asked otherwise.
DEFAULT: Mapping[str, Recipe] = MappingProxyType(
    {"static": Recipe(8, False, 8, True), "dynamic": Recipe(None, False, 8, True)}
)


def recipe(task: Task) -> Recipe:
    """A task's QConfig in the quantizer's words; raises Unsupported for one that it has none for."""
    qconfig = task.qconfig
    if qconfig is None or qconfig.is_modes_own:
        return DEFAULT[task.mode]
    if qconfig.modules or qconfig.types:
        raise unknown("QConfigs by module")
    rule = mapping_of(qconfig).default
    if rule is None or rule.weight is None:
        raise unknown("activations in float for some operators")
    if rule.output not in (None, rule.activation):
        raise unknown("results of a type of their own")
    weight = _weight(rule.weight)
    if rule.activation is None:
        return Recipe(None, False, *weight, precision="FLOAT")
    if task.mode == "dynamic":
        if qconfig.default != "per_tensor":
            raise unknown("chosen activations at run time")
        return Recipe(None, False, *weight)
    return Recipe(*_activation(rule.activation), *weight, observer=rule.activation.observer)


def _weight(spec: Any) -> tuple[int, bool]:
    """Bits, and whether each channel has a scale of its own."""
    if spec.group_size is not None:
        raise unknown("groups")
    if spec.dtype not in ("int8", "int4"):
        raise unknown(f"{spec.dtype} weights")
    if not spec.symmetric:
        raise unknown("weights with a zero point")
    return _bits(spec), spec.axis is not None


def _activation(spec: Any) -> tuple[int, bool]:
    """Bits, and whether zero lies in the middle.

    Unsigned integers with a zero point are the signed ones with one that is 128 less: the same numbers.
    """
    if spec.group_size is not None:
        raise unknown("activations by the row")
    if spec.dtype not in ("uint8", "int8", "int16"):
        raise unknown(f"{spec.dtype} activations")
    if spec.observer == "runtime":
        raise unknown("ranges at run time in static mode")
    if spec.observer not in OBSERVERS:
        raise unknown(f"the observer {spec.observer}")
    if spec.dtype == "int16" and not spec.symmetric:
        raise unknown("int16 with a zero point")
    return _bits(spec), spec.symmetric


def _bits(spec: Any) -> int:
    signed = not str(spec.dtype).startswith("u")
    bits = int(str(spec.dtype).removeprefix("u").removeprefix("int"))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if spec.range not in ((low, high), (low + 1, high)):
        raise unknown("narrow ranges")
    return bits


def _quantized(source: bytes, asked: Recipe, task: Task) -> bytes:
    """The model with integers between real inputs and outputs; the model as it is where nothing is quantized."""
    with contextlib.redirect_stdout(io.StringIO()):
        from ai_edge_quantizer import quantizer

        manager = _manager(asked)
        work = quantizer.Quantizer(bytearray(source), manager.get_quantization_recipe())
        seen = _seen(source, asked, task, manager) if asked.activation else None
        if seen == {}:
            return source
        return bytes(work.quantize(seen, enable_progress_report=False).quantized_model)


def _manager(asked: Recipe) -> Any:
    """The recipe as the quantizer keeps it."""
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    tensor, granularity = qtyping.TensorQuantizationConfig, qtyping.QuantGranularity
    spread = granularity.CHANNELWISE if asked.per_channel else granularity.TENSORWISE
    config = qtyping.OpQuantizationConfig(
        activation_tensor_config=tensor(asked.activation, asked.symmetric) if asked.activation else None,
        weight_tensor_config=tensor(asked.weight, True, spread),
        compute_precision=qtyping.ComputePrecision[asked.precision],
        explicit_dequantize=asked.precision == "FLOAT",
    )
    manager = recipe_manager.RecipeManager()
    manager.add_quantization_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, config)
    for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        manager.add_quantization_config(".*", border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return manager


def _seen(source: bytes, asked: Recipe, task: Task, manager: Any) -> dict[str, Any]:
    """The ranges of a model's tensors on the calibration data."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    update = getattr(qsv_utils, OBSERVERS[asked.observer])
    work = calibrator.Calibrator(source, num_threads=1, qsv_update_func=update)
    work.calibrate({SIGNATURE: batches(source, task)}, manager)
    found: dict[str, Any] = work.get_model_qsvs()
    return found


def batches(source: bytes, task: Task) -> list[dict[str, Any]]:
    """Calibration data as the quantizer wants it: arrays by the names of the model's inputs."""
    demand_one_size(task)
    runner = _interpreter(source, "builtin").get_signature_runner(SIGNATURE)
    return [_given(runner, batch) for batch in task.calibration]


def _interpreter(content: bytes, kernels: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_content=content, num_threads=1, experimental_op_resolver_type=OpResolverType[TARGETS[kernels]]
    )


def _given(runner: Any, inputs: Any) -> dict[str, Any]:
    """A call's tensors by name and type as the model has its inputs; it has none that it does not use."""
    import numpy as np

    details = runner.get_input_details()
    named = {f"args_{position}": x for position, x in enumerate(inputs)}
    return {
        name: np.ascontiguousarray(named[name].detach().numpy(), detail["dtype"]) for name, detail in details.items()
    }


def open_interpreter(content: bytes, operators: tuple[str, ...], kernels: str) -> Program:
    """An interpreter for a model, with the operators that it runs; `operators` are those of the float module."""
    interpreter = _interpreter(content, kernels)
    runner = interpreter.get_signature_runner(SIGNATURE)
    nodes = nodes_of(content)
    outputs = sorted(runner.get_output_details(), key=lambda name: int(name.rpartition("_")[2]))

    def call(*inputs: Any) -> Any:
        import numpy as np
        import torch

        results = runner(**_given(runner, inputs))
        return tuple(torch.from_numpy(np.array(results[name])) for name in outputs)

    return Program(
        call,
        litert_names.sequence(nodes, operators),
        Counter(_native(interpreter)),
        tuple(_steps(runner, outputs, nodes)),
        "\n".join(map(_line, nodes)),
    )


def _native(interpreter: Any) -> Iterator[str]:
    """Operators by the interpreter's names with the types of their tensors; a delegate stands beside what it runs."""
    for op in interpreter._get_ops_details():
        types = [",".join(kind.__name__ for kind in op[side]) for side in ("operand_types", "result_types")]
        yield f"{op['op_name']}:{types[0]}>{types[1]}"


def _steps(runner: Any, outputs: list[str], nodes: tuple[litert_names.Node, ...]) -> Iterator[float | None]:
    """The step of each output that is dequantized from one scale."""
    made = {value.name: node for node in nodes for value in node.outputs}
    for output in outputs:
        node = made.get(runner.get_output_details()[output]["name"])
        yield node.inputs[0].step if node is not None and node.kind == "DEQUANTIZE" else None


def _line(node: litert_names.Node) -> str:
    made, given = (", ".join(f"{value.name}:{value.dtype}" for value in side) for side in (node.outputs, node.inputs))
    return f"{made} = {node.kind}{f'+{node.activation}' if node.activation else ''}({given})"
