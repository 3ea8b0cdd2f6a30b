"""Placing observers or fake-quantize modules: the graph that is run on calibration data, or trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import fx, nn

from qlib.errors import QConfigError
from qlib.fake_quantize import fake_quantize_for, follower_of
from qlib.graph import copy_of, own_state
from qlib.observers import observer_for
from qlib.passes.annotate import Annotation, Placement, annotate
from qlib.passes.fuse import fold_batch_norm
from qlib.passes.qat import set_aside, simulate
from qlib.qconfig import QConfig, QConfigMapping, as_mapping
from qlib.qparams import QSpec

Watch = Callable[[QSpec], nn.Module]


def prepare(model: fx.GraphModule, qconfig: QConfigMapping | QConfig | str | None = "default") -> fx.GraphModule:
    """Return a copy of a captured graph with batch norms folded and one observer at each tensor that will be quantized.

    `qconfig` is a preset's name, a QConfig for the whole model, or a QConfigMapping. Run the result on calibration
    data and hand it to `convert`. ``result.meta["unused_rules"]`` lists the QConfig rules that no module falls under.
    """
    prepared = fold_batch_norm(copy_of(model))
    _annotate_and_place(prepared, as_mapping(qconfig), observer_for)
    prepared.recompile()
    return prepared


def prepare_qat(model: fx.GraphModule, qconfig: QConfigMapping | QConfig | str | None = "qat") -> fx.GraphModule:
    """Return a copy of a captured graph, in training mode, that is trained on the values of its quantized form.

    As `prepare`, but with fake-quantize modules for observers, and with batch norms that take part in the training:
    the fold into the layer before them is simulated, and exact at conversion. Batch norms and dropouts heed
    ``result.train()`` and ``result.eval()``. The parameters are the result's own, under the names that `model` has for
    them: an optimizer over ``result.parameters()`` leaves `model` alone. Train it, and hand it to `convert`.
    """
    prepared = copy_of(model)
    own_state(prepared)
    aside = set_aside(prepared)
    annotation = _annotate_and_place(prepared, as_mapping(qconfig), fake_quantize_for)
    simulate(prepared, annotation, aside)
    return prepared.train()


def _annotate_and_place(model: fx.GraphModule, mapping: QConfigMapping, watch: Watch) -> Annotation:
    annotation = annotate(model, mapping)
    _check_types(annotation)
    place_observers(model, annotation, watch)
    model.meta["unused_rules"] = annotation.unused_rules
    return annotation


def _check_types(annotation: Annotation) -> None:
    for value in (placement.value for placement in (*annotation.placements, *annotation.weights)):
        if value.meta["dtype"] != torch.float32:
            raise QConfigError(
                f"expected float32 tensors to quantize, found {value.meta['dtype']} at {value}: "
                "convert the module and its inputs by .float(), or leave this module in float by a QConfig of None"
            )


def place_observers(model: fx.GraphModule, annotation: Annotation, watch: Watch = observer_for) -> None:
    """Insert what `watch` makes of each placement's spec, the followers of a group referring to its leader.

    The nodes of each operator found carry its name in ``meta["operator"]``: what lowering goes by, so that an
    operator between two quantized ones that a QConfig leaves in float stays there.
    """
    leaders: dict[fx.Node, nn.Module] = {}
    observed: dict[fx.Node, fx.Node] = {}
    names = _names(model)
    for placement in annotation.placements:
        observer = watch(placement.spec)
        if placement.group is not None:
            leader = leaders.setdefault(placement.group, observer)
            observer = observer if leader is observer else follower_of(leader)
        node = _insert(model, placement, observed.get(placement.value, placement.value), next(names), observer)
        if placement.users is None:
            observed[placement.value] = node
    for placement in annotation.weights:
        _insert(model, placement, placement.value, next(names), watch(placement.spec))
    for match in annotation.matches:
        for part in match.nodes:
            part.meta["operator"] = match.op.name


def _names(model: nn.Module) -> Iterator[str]:
    """Names for observers that the model does not have yet."""
    return (name for name in (f"observer_{n}" for n in count()) if not hasattr(model, name))


def _insert(model: fx.GraphModule, placement: Placement, value: fx.Node, name: str, observer: nn.Module) -> fx.Node:
    """Call the observer on `value`, and hand its result to the users that the placement names."""
    model.add_submodule(name, observer)
    users = list(value.users) if placement.users is None else placement.users
    with model.graph.inserting_after(value):
        node = model.graph.call_module(name, (value,))
    node.meta = dict(value.meta)
    for user in users:
        user.replace_input_with(value, node)
    return node
