"""The bundled library as a backend, and the source of the canonical vocabulary. The only file that touches `qlib`."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from conformance.backend import About, Backend, Explanation, LayerValues, Program, Quantized, Stage, Task
from conformance.errors import EnvironmentTrouble, Inexpressible, UsageError
from conformance.source_tables import FUNCTIONAL, TENSOR_METHODS, TORCH_FUNCTIONS
from conformance.vocabulary import Vocabulary, resolve_operator
from qlib import ops as table
from qlib.qconfig import PRESETS, QConfig, QConfigMapping
from qlib.qparams import DType, QSpec

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from conformance.spec import QConfigBody, QConfigModel, QSpecModel, TensorQParams
    from qlib.quantize import Quantized as AllForms

# Types of the library's that other backends translate.
__all__ = ["QConfig", "QConfigMapping", "QSpec"]

MODES = frozenset({"static", "dynamic", "qat", "numerics"})
# The library's own mode for each that has another name there: of the graph that is given, static quantization made it.
_FLOWS = MappingProxyType({"numerics": "static"})
CAPTURES = frozenset({"export", "trace", "script"})
# Of its default QConfig: others ask for a scheme of their own.
PROPERTIES = MappingProxyType({"activation_scheme": "per_tensor_asymmetric"})
OBSERVERS = ("min_max", "moving_average_min_max", "histogram", "learnable", "fixed", "runtime")

# What other test suites call the same operators; a name in float stands for itself.
ALIASES = {
    "aten::quantize_per_tensor": "quantized::quantize_per_tensor",
    "aten::quantize_per_channel": "quantized::quantize_per_channel",
    "aten::dequantize": "quantized::dequantize_per_tensor",
    **{f"quantized::batch_norm{dim}d": "quantized::batch_norm" for dim in (1, 2, 3)},
    **{f"quantized::batch_norm{dim}d_relu": "quantized::batch_norm_relu" for dim in (1, 2, 3)},
}


# Operators with a range of their own here that ran in 8 bits under their float name there.
_KEPT_IN_8_BITS = frozenset({"aten::clamp", "aten::hardtanh", "aten::leaky_relu"})


@functools.cache
def vocabulary() -> Vocabulary:
    """The names that specs may use, read off the operator table; imports no torch."""
    return Vocabulary(
        operators=frozenset(table.OPS) | frozenset(table.BOUNDARY),
        float_operators=frozenset(
            [name for op in table.OPS.values() for name in op.chain if "::" in name]
            + [f"aten::{name}" for name in FUNCTIONAL | TORCH_FUNCTIONS | TENSOR_METHODS]
        ),
        aliases=ALIASES,
        observers=frozenset(OBSERVERS),
        qconfigs=frozenset(PRESETS),
    )


def table_lines(name: str) -> dict[str, str]:
    """One of the library's tables ("ops", "observers", "modes", "qconfigs"), each entry with one line."""

    def first(doc: str | None) -> str:
        return (doc or "").partition("\n")[0]

    if name == "ops":
        return {**{op.name: op.doc for op in table.OPS.values()}, **table.BOUNDARY}
    if name == "qconfigs":
        return {name: describe(qconfig) for name, qconfig in PRESETS.items()}
    import qlib

    if name == "modes":
        own = {key: mode.doc for key, mode in qlib.MODES.items()}
        return {**own, "numerics": "a quantized graph is given, and run as it is"}
    return {key: first(observer.__doc__) for key, observer in qlib.OBSERVERS.items()}


def describe(qconfig: QConfig) -> str:
    """A QConfig in one line."""

    def text(spec: QSpec | None) -> str:
        if spec is None:
            return "float"
        shape = "per tensor" if spec.axis is None else "per channel"
        if spec.group_size is not None:
            shape = f"per group of {spec.group_size}" if spec.group_size else "per row"
        return f"{spec.dtype} {list(spec.range)} {'symmetric' if spec.symmetric else 'affine'} {shape} {spec.observer}"

    return f"activations {text(qconfig.activation)}; weights {text(qconfig.weight)}"


def backend(target: str) -> Backend:
    """The bundled library, with its fast kernels or with the plain ones they are held against."""
    return Qlib(target)


@dataclass(frozen=True)
class Qlib:
    """The bundled library with one implementation of its kernels."""

    kernels: str

    def about(self) -> About:
        """What the bundled library supports."""
        import torch

        from conformance.environment import suite_version

        versions = {"qlib": suite_version(), "torch": str(torch.__version__)}
        return About("qlib", versions, MODES, CAPTURES, properties=PROPERTIES)

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Capture, prepare, calibrate or train, convert, lower."""
        return quantize_as(task, mapping_of(task.qconfig), stage, self.kernels)[0]


def quantize_as(
    task: Task, qconfig: QConfigMapping | QConfig | str | None, stage: Stage, kernels: str = "fast"
) -> tuple[Quantized, AllForms]:
    """Quantize with the library's own type of QConfig (None for the default); returns the library's own forms too."""
    import qlib
    from qlib.frontends.capture import capture
    from qlib.quantize import mapping_for

    with stage("capture"):
        captured = capture(task.module, task.inputs, task.capture)
    with stage("prepare"):
        flow = qlib.MODES[_FLOWS.get(task.mode, task.mode)]
        mapping = mapping_for(_FLOWS.get(task.mode, task.mode), "default" if qconfig is None else qconfig)
        given = given_of(task.qparams)
        prepared = qlib.prepare(captured, mapping, given) if given else flow.prepare(captured, mapping)
    with stage("calibrate"):
        flow.fit(captured, prepared, task.calibration)
    with stage("convert"):
        debug = qlib.convert(prepared)
    with stage("lower"):
        final = qlib.lower(debug)
    unused = (f"unused QConfig rule: {rule}" for rule in prepared.meta["unused_rules"])
    notes = (*unused, *map(str, prepared.meta["left_in_float"]))
    forms = qlib.Quantized(captured, prepared, debug, final)
    return _forms(forms, kernels, notes), forms


def _forms(forms: AllForms, kernels: str, notes: tuple[str, ...] = ()) -> Quantized:
    """The forms of a model as the suite takes them."""
    import qlib
    from qlib import interpret
    from qlib.printed import graph_text

    captured, prepared, debug, final = forms.captured, forms.prepared, forms.debug, forms.final
    return Quantized(
        float_ops=qlib.executed_ops(captured),
        final=_program(final, kernels, final),
        debug=_program(debug, kernels, lambda *inputs: interpret.run(debug, inputs)),
        explain=functools.partial(_explain, {"debug": debug, "final": final}, kernels),
        layers=functools.partial(_layers, (prepared, debug, final), kernels),
        float_graph=graph_text(captured),
        notes=notes,
    )


@dataclass(frozen=True)
class ByQuantizer:
    """What a quantizer led to: all forms, the converted graph, and the final form in two plain implementations.

    `prepared` is the graph that saw the data, `spelled` is the reference form's, in ATen operators, `plain` that of the
    kernels' plain implementations.
    """

    quantized: Quantized
    converted: fx.GraphModule
    prepared: Program
    spelled: Program
    plain: Program


# How the export flow prepares a graph, by mode.
_PREPARES = {"static": "prepare_pt2e", "qat": "prepare_qat_pt2e"}


def quantize_by(
    module: nn.Module, inputs: Sequence[Tensor], batches: Sequence[Sequence[Tensor]], quantizer: object, mode: str
) -> ByQuantizer:
    """Quantize as a quantizer of the export flow says; the mode is "static" or "qat", whose steps are seeded."""
    import torch

    import qlib

    captured = qlib.capture_pre_autograd_graph(module, tuple(inputs))
    prepared = getattr(qlib, _PREPARES[mode])(captured, quantizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        qlib.MODES[mode].fit(captured, prepared, [tuple(batch) for batch in batches])
    debug = qlib.convert_pt2e(prepared)
    final = qlib.lower(debug)
    spelled = qlib.convert_pt2e(prepared, use_reference_representation=True)
    return ByQuantizer(
        _forms(qlib.Quantized(captured, prepared, debug, final), "fast"),
        debug,
        _program(prepared, "fast", prepared),
        _program(spelled, "reference", spelled),
        _program(final, "reference", final),
    )


# Operators of other libraries' graphs by the names here, where these are not the same in the namespace `quantized`.
_NODE_NAMES = {
    "quantized::choose_qparams.tensor": "quantized::choose_qparams.default",
    "quantized::choose_qparams_symmetric.tensor": "quantized::choose_qparams.default",
    "aten::view.default": "aten::reshape.default",
    "aten::view": "aten::reshape",
}


def node_names(model: fx.GraphModule) -> tuple[str, ...]:
    """Every operator that a graph calls, in order, as `quantized::NAME.OVERLOAD` or `aten::NAME.OVERLOAD`."""
    from torch._ops import OpOverload

    targets = [node.target for node in model.graph.nodes if isinstance(node.target, OpOverload)]
    return tuple(node_name(target) for target in targets)


def node_name(operator: object) -> str:
    """The name of an operator in the graph of the export flow, with its overload where one is given.

    `operator` is an entry of `torch.ops`, of the namespaces `aten` or `quantized_decomposed`, or a name such as
    `aten::linear`. In-place operators are meant out of place, as the graph has them. Raises UsageError for other names.
    """
    text = operator if isinstance(operator, str) else str(operator).replace(".", "::", 1)
    plain, _, overload = text.partition(".")
    namespace, _, short = plain.partition("::")
    space = {"quantized_decomposed": "quantized", "qlib": "quantized"}.get(namespace, namespace)
    full = f"{space}::{short.removesuffix('_')}" + (f".{overload}" if overload else "")
    full = _NODE_NAMES.get(full, full)
    try:
        resolve_operator(full.partition(".")[0], vocabulary())
    except ValueError as error:
        raise UsageError(str(error)) from error
    return full


def train_towards(student: nn.Module, teacher: Callable[..., object], batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Train a prepared model to give what `teacher` gives, by the few steps that mode `qat` means."""
    from qlib import quantize

    quantize.train_towards(student, teacher, batches)


def debug_of(task: Task, stage: Stage, name: str = "given") -> tuple[Any, Quantized]:
    """The debug form that the library makes of a task as an `onnx.ModelProto`, and all forms as the suite takes them.

    Raises EnvironmentTrouble where the package onnx is missing, Inexpressible for what ONNX can't express.
    """
    import qlib

    try:
        from qlib.onnx import to_onnx
    except ModuleNotFoundError as error:
        raise EnvironmentTrouble(str(error)) from error
    quantized, forms = quantize_as(task, mapping_of(task.qconfig), stage)
    with stage("write"):
        try:
            return to_onnx(forms.debug, name), quantized
        except qlib.ConversionError as error:
            raise Inexpressible(str(error)) from error


def float_model(task: Task) -> Any:
    """The float module of a task as an `onnx.ModelProto`; each operator's documentation names the ATen operator.

    Raises Inexpressible for what ONNX can't express.
    """
    import qlib

    try:
        return qlib.to_onnx(qlib.capture(task.module, task.inputs, task.capture))
    except qlib.ConversionError as error:
        raise Inexpressible(str(error)) from error


def float_operators(task: Task) -> tuple[str, ...]:
    """The operators of the float module of a task, in order, by canonical name."""
    from qlib.frontends.capture import capture

    return sequence(capture(task.module, task.inputs, task.capture))


def operators_of(model: Any) -> dict[str, int]:
    """How often each operator of the float module occurs in a model that `float_model` wrote."""
    nodes = {node.doc_string for node in model.graph.node if node.doc_string.startswith("aten::")}
    return dict(sorted(Counter(text.partition(" ")[0] for text in nodes).items()))


def _program(model: fx.GraphModule, kernels: str, run: Callable[..., object]) -> Program:
    from qlib import executed, implementation
    from qlib.printed import graph_text

    def call(*inputs: Tensor) -> object:
        with implementation(kernels):
            return run(*inputs)

    return Program(
        call, executed.sequence(model), executed.native_ops(model), executed.output_scales(model), graph_text(model)
    )


def _explain(forms: Mapping[str, fx.GraphModule], kernels: str, form: str, inputs: Sequence[Tensor]) -> Explanation:
    from conformance.compare import Rounding
    from qlib import executed, implementation, replay

    with implementation(kernels):
        told = replay(forms["debug"], forms[form], inputs)
    dyadic = all(math.frexp(scale)[0] == 0.5 for scale in executed.scales(forms["debug"]))
    steps = ({f.name: getattr(step, f.name) for f in fields(step)} for step in told.steps)
    roundings = (Rounding(**step, dyadic=dyadic) for step in steps)
    return Explanation(tuple(roundings), told.outputs)


def _layers(
    forms: tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule], kernels: str, inputs: Sequence[Tensor]
) -> tuple[LayerValues, ...]:
    from qlib import implementation, layers_of

    with implementation(kernels):
        found = layers_of(*forms, inputs)
    return tuple(LayerValues(**{f.name: getattr(layer, f.name) for f in fields(layer)}) for layer in found)


def sequence(model: fx.GraphModule) -> tuple[str, ...]:
    """The operators that a graph executes, in order, by canonical name."""
    from qlib import executed

    return executed.sequence(model)


def canonical(name: str) -> str:
    """The canonical name for a spelling of `torch.ao`'s tests.

    A trailing parenthesis (their way to an exact match) and the underscore of an in-place operator are dropped.
    Operators that run in 8 bits under their float name there (`aten::clamp`, `aten::max_pool2d`) are meant in 8 bits;
    those that have a quantized name of their own (`aten::add`, `aten::cat`, `aten::linear`) are meant in float.
    Raises UsageError for other names.
    """
    plain = name.removesuffix("(").removesuffix("_")
    plain = ALIASES.get(plain, plain)
    row = table.OPS.get(plain.replace("aten::", "quantized::", 1))
    if row is not None and (row.family in (table.Family.SHARED, table.Family.FIXED) or plain in _KEPT_IN_8_BITS):
        plain = row.name
    try:
        return resolve_operator(plain, vocabulary())
    except ValueError as error:
        raise UsageError(str(error)) from error


def given_of(qparams: Mapping[str, TensorQParams | None]) -> dict[str, QSpec | None]:
    """The parameters of a graph that is written out, as the library takes them; those of biases follow there too."""
    named = {name: params for name, params in qparams.items() if params is None or params.dtype != "int32"}
    return {name: None if params is None else _fixed(params) for name, params in named.items()}


def _fixed(params: TensorQParams) -> QSpec:
    dtype = DType(params.dtype)
    if params.axis is not None:
        return QSpec(dtype, observer="fixed", scale=params.scale, zero_point=params.zero_point, axis=params.axis)
    return QSpec(dtype, observer="fixed", scale=params.scale[0], zero_point=params.zero_point[0])


def mapping_of(qconfig: QConfigModel | None) -> QConfigMapping:
    """A spec's `qconfig:` as the library's own type; None stands for the default."""
    if qconfig is None:
        return QConfigMapping(PRESETS["default"])
    return QConfigMapping(
        _qconfig(qconfig.default),
        {path: _qconfig(rule) for path, rule in qconfig.modules.items()},
        {kind: _qconfig(rule) for kind, rule in qconfig.types.items()},
    )


def _qconfig(rule: str | QConfigBody | None) -> QConfig | None:
    if rule is None or isinstance(rule, str):
        return None if rule is None else PRESETS[rule]
    return QConfig(_qspec(rule.activation), _qspec(rule.weight), _qspec(rule.output))


def _qspec(spec: QSpecModel | None) -> QSpec | None:
    if spec is None:
        return None
    given = {field.name: getattr(spec, field.name) for field in fields(QSpec)}
    return QSpec(**{**given, "dtype": DType(spec.dtype)})
