"""The export flow: a quantizer writes into the captured graph what is quantized, and the rest follows.

graph = capture_pre_autograd_graph(module, inputs)     # or torch.export.export(module, inputs).module()
prepared = prepare_pt2e(graph, quantizer)              # the quantizer's own or torchao's
prepared(*batch)                                       # calibration data; or prepare_qat_pt2e, and train
debug = convert_pt2e(prepared)
final = qlib.lower(debug)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn

from qlib.errors import CaptureError, QuantizerError
from qlib.fake_quantize import fake_quantize_for
from qlib.frontends.capture import capture, captured
from qlib.frontends.normalize import normalize
from qlib.frontends.spelling import describe_new, spell_as_exported
from qlib.graph import Model, copy_of, own_state
from qlib.observers import observer_for
from qlib.passes.annotate import Annotation
from qlib.passes.annotated import annotated
from qlib.passes.convert import as_integers, as_quantize, convert
from qlib.passes.fuse import fold_batch_norm
from qlib.passes.own_dequantize import own_dequantize
from qlib.passes.prepare import Watch, check_types, place_observers
from qlib.passes.qat import forget_counts, set_aside, simulate
from qlib.passes.reference import reference
from qlib.quantizer import Quantizer, read_annotation
from qlib.training import move_exported_model_to_train

# What quantizers for torchao inherit, and does nothing.
_NO_CALLBACK = "Quantizer.prepare_obs_or_fq_callback"


def capture_pre_autograd_graph(module: nn.Module, args: tuple[Tensor, ...]) -> fx.GraphModule:
    """Capture a module by `torch.export` as one functional graph, in training mode where the module is.

    `args` are example inputs; nodes keep what torch notes of their origin, and ``meta["val"]`` is a fake tensor of
    their shape and type. Raises CaptureError as `qlib.capture` does.
    """
    model = capture(module, args, "export")
    spell_as_exported(model)
    normalize(model.graph)
    return model


def prepare_pt2e(model: fx.GraphModule, quantizer: Quantizer) -> fx.GraphModule:
    """Return a copy of a captured graph with batch norms folded and observers where the quantizer wants them.

    `model` is a graph of `capture_pre_autograd_graph` or what ``torch.export.export(...).module()`` gives, which is
    brought into the same form first. `quantizer` has the methods of `qlib.Quantizer`; those written for torchao do, and
    are read by names. Points that share parameters are watched together. Raises QuantizerError where annotations
    contradict each other, QConfigError for types and observers that do not exist here.
    """
    prepared = _annotate(fold_batch_norm(_own_graph(model)), quantizer)
    _place(prepared, {}, observer_for)
    prepared.recompile()
    return prepared


def prepare_qat_pt2e(model: fx.GraphModule, quantizer: Quantizer) -> fx.GraphModule:
    """Return a copy of a captured graph, in training mode, that is trained on the values of its quantized form.

    As `prepare_pt2e`, but with fake-quantize modules for observers, and with batch norms and dropouts as `prepare_qat`
    has them. The quantizer sees the graph of training mode: what it asks of the value of a batch norm, that is folded
    into the layer before it, it gets for the value of the layer. ``result.train()`` and ``result.eval()`` switch modes,
    and so do `move_exported_model_to_train` and `move_exported_model_to_eval`. Train it, and hand it to `convert_pt2e`.
    Raises what `prepare_pt2e` and `prepare_qat` do.
    """
    own = move_exported_model_to_train(_own_graph(model))
    own_state(own)
    forget_counts(own)  # of which quantizers would take each for a second result of its batch norm
    prepared = _annotate(own, quantizer)
    aside = set_aside(prepared)
    simulate(prepared, _place(prepared, aside.gone, fake_quantize_for), aside)
    return prepared.train()


def _place(model: fx.GraphModule, gone: Mapping[fx.Node, fx.Node], watch: Watch) -> Annotation:
    """Put what `watch` makes where the annotations say, and mark the nodes that have one."""
    annotation = annotated(model, gone)
    check_types(annotation)
    for node in (*model.graph.nodes, *gone):
        if read_annotation(node) is not None:
            gone.get(node, node).meta["annotated"] = True
    place_observers(model, annotation, watch)
    return annotation


def _own_graph(model: fx.GraphModule) -> fx.GraphModule:
    if not isinstance(model, fx.GraphModule):
        raise CaptureError(
            f"expected a captured graph, found {type(model).__name__}; capture it by capture_pre_autograd_graph first"
        )
    return copy_of(model) if isinstance(model, Model) else captured(model)


def _annotate(model: fx.GraphModule, quantizer: Quantizer) -> fx.GraphModule:
    """Let the quantizer write into the graph as it knows it, and bring the graph back into normal form."""
    callback = getattr(type(quantizer), "prepare_obs_or_fq_callback", None)
    if callback is not None and callback.__qualname__ != _NO_CALLBACK:
        raise QuantizerError(
            f"{callback.__qualname__} changes the observers themselves, which are others here: say it by specs instead"
        )
    spell_as_exported(model)
    transform = getattr(quantizer, "transform_for_annotation", None)
    if transform is not None:
        model = transform(model)
    quantizer.annotate(model)
    quantizer.validate(model)
    describe_new(model)
    normalize(model.graph)
    return model


def convert_pt2e(
    model: fx.GraphModule, use_reference_representation: bool = False, fold_quantize: bool = True
) -> fx.GraphModule:
    """Return the debug form of a calibrated graph, in which each annotated operator has a dequantize of its own.

    With `fold_quantize` weights and other constants are stored as integers, else as floats before a quantize: for
    consumers that fold by themselves, as `qlib.lower` does not. Biases without a spec are float32 multiples of the
    product of the scales of input and weight. `use_reference_representation` gives integers in ATen operators instead,
    always folded. Raises CalibrationError, naming the tensor, where an observer never saw data or saw infinities.
    """
    if use_reference_representation:
        return reference(convert(model))
    return own_dequantize(convert(model, as_integers if fold_quantize else as_quantize))
