"""Placing observers: the graph that is run on calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import fx, nn

from qlib.errors import QConfigError
from qlib.graph import copy_of
from qlib.observers import Follower, observer_for
from qlib.passes.annotate import Annotation, Placement, annotate
from qlib.passes.fuse import fold_batch_norm
from qlib.qconfig import QConfig, QConfigMapping, as_mapping
from qlib.rewrite import Match


def prepare(model: fx.GraphModule, qconfig: QConfigMapping | QConfig | str | None = "default") -> fx.GraphModule:
    """Return a copy of a captured graph with batch norms folded and one observer at each tensor that will be quantized.

    `qconfig` is a preset's name, a QConfig for the whole model, or a QConfigMapping. Run the result on calibration
    data and hand it to `convert`. ``result.meta["unused_rules"]`` lists the QConfig rules that no module falls under.
    """
    mapping = as_mapping(qconfig)
    prepared = fold_batch_norm(copy_of(model))
    annotation = annotate(prepared, mapping)
    _check_types(annotation)
    place_observers(prepared, annotation, mapping)
    prepared.meta["unused_rules"] = annotation.unused_rules
    prepared.recompile()
    return prepared


def _check_types(annotation: Annotation) -> None:
    weights = [match.head.args[match.op.weight] for match in annotation.matches if match.op.weight is not None]
    for value in (*(placement.value for placement in annotation.placements), *weights):
        assert isinstance(value, fx.Node)
        if value.meta["dtype"] != torch.float32:
            raise QConfigError(
                f"expected float32 tensors to quantize, found {value.meta['dtype']} at {value}: "
                "convert the module and its inputs by .float(), or leave this module in float by a QConfig of None"
            )


def place_observers(model: fx.GraphModule, annotation: Annotation, mapping: QConfigMapping) -> None:
    """Insert an observer for each placement, the followers of a group referring to its leader, and one for each weight.

    The nodes of each operator found carry its name in ``meta["operator"]``: what lowering goes by, so that an
    operator between two quantized ones that a QConfig leaves in float stays there.
    """
    leaders: dict[fx.Node, nn.Module] = {}
    observed: dict[fx.Node, fx.Node] = {}
    targets = _names(model)
    for placement in annotation.placements:
        observer = observer_for(placement.spec)
        if placement.group is not None:
            leader = leaders.setdefault(placement.group, observer)
            observer = observer if leader is observer else Follower(leader)
        name = next(targets)
        model.add_submodule(name, observer)
        node = _insert(model.graph, placement, observed.get(placement.value, placement.value), name)
        if placement.users is None:
            observed[placement.value] = node
    for match in annotation.matches:
        for part in match.nodes:
            part.meta["operator"] = match.op.name
        if match.op.weight is not None:
            _observe_weight(model, match, mapping, next(targets))


def _names(model: nn.Module) -> Iterator[str]:
    """Names for observers that the model does not have yet."""
    return (name for name in (f"observer_{n}" for n in count()) if not hasattr(model, name))


def _insert(graph: fx.Graph, placement: Placement, value: fx.Node, name: str) -> fx.Node:
    """Call the observer on `value`, and hand its result to the users that the placement names."""
    users = list(value.users) if placement.users is None else placement.users
    with graph.inserting_after(value):
        node = graph.call_module(name, (value,))
    node.meta = dict(value.meta)
    for user in users:
        user.replace_input_with(value, node)
    return node


def _observe_weight(model: fx.GraphModule, match: Match, mapping: QConfigMapping, name: str) -> None:
    """Weights don't change: their observer sees them here, once."""
    head, position = match.head, match.op.weight
    assert position is not None
    qconfig = mapping.resolve(str(head.meta.get("module_path", "")), str(head.meta.get("module_type", "")))
    weight = head.args[position]
    assert qconfig is not None and qconfig.weight is not None and isinstance(weight, fx.Node)
    spec = qconfig.weight
    if spec.axis is not None:
        spec = replace(spec, axis=match.weight_axis)
    model.add_submodule(name, observer_for(spec))
    with model.graph.inserting_before(head):
        node = model.graph.call_module(name, (weight,))
    node.meta = dict(weight.meta)
    head.update_arg(position, node)
