"""Placing observers or fake-quantize modules: the graph that is run on calibration data, or trained."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, count
from types import MappingProxyType

import torch
from torch import fx, nn

from qlib.errors import QConfigError
from qlib.fake_quantize import fake_quantize_for, follower_of
from qlib.given import find_given
from qlib.graph import copy_of, own_state
from qlib.leftovers import leftovers
from qlib.observers import observer_for
from qlib.passes.annotate import Annotation, Placement, annotate
from qlib.passes.fuse import fold_batch_norm
from qlib.passes.qat import set_aside, simulate
from qlib.qconfig import QConfig, QConfigMapping, as_mapping
from qlib.qparams import QSpec
from qlib.regions import add_operand, all_models, inner_model, region_in, regions_in

Watch = Callable[[QSpec], nn.Module]
GivenByName = Mapping[str, QSpec | None]

_NONE: GivenByName = MappingProxyType({})


def prepare(
    model: fx.GraphModule,
    qconfig: QConfigMapping | QConfig | str | None = "default",
    given: GivenByName = _NONE,
) -> fx.GraphModule:
    """Return a copy of a captured graph with batch norms folded and one observer at each tensor that will be quantized.

    `qconfig` is a preset's name, a QConfig for the whole model, or a QConfigMapping. Run the result on calibration
    data and hand it to `convert`. ``result.meta["unused_rules"]`` lists the QConfig rules that no module falls under,
    ``result.meta["left_in_float"]`` the operators that stay in float, each a `Leftover` with the reason.

    `given` names tensors whose parameters are known: inputs by the names of the arguments, constants by their paths,
    outputs as ``output_0`` and so on. Each has a QSpec with the observer "fixed" (for weights perhaps a scale for each
    channel), or None to stay in float. These are used exactly, and by all that shares its parameters with such a
    tensor; inputs and constants that are named are quantized even where the operators that take them would not ask.

    Raises QConfigError for a rule whose path the captured module does not have, for tensors that are not float32, and
    for given parameters that no kernel can keep to: two tensors that share theirs, an output of a float operator.
    """
    return observe(copy_of(model), as_mapping(qconfig), given)


def observe(model: fx.GraphModule, mapping: QConfigMapping, given: GivenByName = _NONE) -> fx.GraphModule:
    """Do to `model` itself what `prepare` does to a copy; returns `model`."""
    check_paths(mapping, model.meta.get("modules", mapping.modules))
    fold_batch_norm(model)
    _place(model, annotate(model, mapping, find_given(model.graph, given)), observer_for)
    model.recompile()
    return model


def prepare_qat(model: fx.GraphModule, qconfig: QConfigMapping | QConfig | str | None = "qat") -> fx.GraphModule:
    """Return a copy of a captured graph, in training mode, that is trained on the values of its quantized form.

    As `prepare`, but with fake-quantize modules for observers, and with batch norms that take part in the training:
    the fold into the layer before them, of several in a row too, is simulated, and exact at conversion. Batch norms and
    dropouts heed ``result.train()`` and ``result.eval()``. Branches and loops are trained too. The parameters are the
    result's own, under the names that `model` has for them: an optimizer over ``result.parameters()`` leaves `model`
    alone. Train it, and hand it to `convert`. Raises CaptureError for a batch norm whose momentum is 0 or None.
    """
    return observe_trained(copy_of(model), as_mapping(qconfig))


def observe_trained(model: fx.GraphModule, mapping: QConfigMapping) -> fx.GraphModule:
    """Do to `model` itself what `prepare_qat` does to a copy; returns `model`."""
    check_paths(mapping, model.meta.get("modules", mapping.modules))
    own_state(model)
    aside = set_aside(model)
    annotation = annotate(model, mapping)
    _place(model, annotation, fake_quantize_for)
    simulate(model, annotation, aside)
    return model.train()


def _place(model: fx.GraphModule, annotation: Annotation, watch: Watch) -> None:
    check_types(annotation)
    taken = {node for match in annotation.matches for node in match.nodes}
    left = [leftovers(part.graph, taken, annotation.refused) for part in all_models(model)]
    model.meta["left_in_float"] = tuple(chain.from_iterable(left))
    place_observers(model, annotation, watch)
    model.meta["unused_rules"] = annotation.unused_rules


def check_paths(mapping: QConfigMapping, known: Iterable[str]) -> None:
    """Raise QConfigError, naming paths like it, for a rule whose path is not among the `known` ones."""
    paths = [path for path in known if path]
    for path in mapping.modules:
        if path not in paths:
            close = get_close_matches(path, paths, n=3) or paths[:12]
            raise QConfigError(
                f"a QConfig is given for the module {path!r}, which the model does not have; "
                f"expected a path such as {', '.join(map(repr, close)) or 'none, as it has no submodules'}"
            )


def check_types(annotation: Annotation) -> None:
    """Raise QConfigError where a tensor is to be quantized that is not float32."""
    for value in (placement.value for placement in (*annotation.placements, *annotation.weights)):
        if (found := value.meta.get("dtype", "a list of tensors")) != torch.float32:
            raise QConfigError(
                f"expected float32 tensors to quantize, found {found} at {value}: "
                "convert the module and its inputs by .float(), or leave this module in float by a QConfig of None"
            )


def place_observers(model: fx.GraphModule, annotation: Annotation, watch: Watch = observer_for) -> None:
    """Insert what `watch` makes of each placement's spec: one for each group, which all its sources show their data to.

    The rest of a group follows it. An observer stands in the graph that has the value.
    The nodes of each operator found carry its name in ``meta["operator"]``: what lowering goes by, so that an
    operator between two quantized ones that a QConfig leaves in float stays there. An observer's node carries the name
    of the tensor that leads its group in ``meta["group"]``.
    """
    sites = _sites(model)
    leaders: dict[Hashable, nn.Module] = {}
    for placement in annotation.placements:
        if placement.group is not None and placement.watches and placement.group not in leaders:
            leaders[placement.group] = watch(placement.spec)
    observed: dict[fx.Node, fx.Node] = {}
    for placement in annotation.placements:
        if placement.group is None:
            observer = watch(placement.spec)
        else:
            watching = leaders[placement.group]
            observer = watching if placement.watches else follower_of(watching)
        node = _insert(sites, placement, observed.get(placement.value, placement.value), observer)
        leader = placement.group if isinstance(placement.group, fx.Node) else placement.value
        node.meta["group"] = leader.name
        if placement.users is None:
            observed[placement.value] = node
    for placement in annotation.weights:
        _insert(sites, placement, placement.value, watch(placement.spec))
    for match in annotation.matches:
        for part in match.nodes:
            part.meta["operator"] = match.op.name
    for head in annotation.float_biases:
        head.meta["float_bias"] = True


@dataclass(frozen=True)
class _Site:
    """One graph of a model, with names for its observers, and the region that runs it: which it is in whose graph."""

    model: fx.GraphModule
    names: Iterator[str]
    region: fx.Node | None
    index: int


_Sites = dict[fx.Graph, _Site]


def _sites(model: fx.GraphModule, region: fx.Node | None = None, index: int = 0) -> _Sites:
    sites = {model.graph: _Site(model, _names(model), region, index)}
    for inside in regions_in(model):
        for number, reference in enumerate(inside.references):
            sites |= _sites(inner_model(model, reference), inside.node, number)
    return sites


def _names(model: nn.Module) -> Iterator[str]:
    """Names for observers that the model does not have yet."""
    return (name for name in (f"observer_{n}" for n in count()) if not hasattr(model, name))


def _insert(sites: _Sites, placement: Placement, value: fx.Node, observer: nn.Module) -> fx.Node:
    """Call the observer on `value`, and hand its result to the users that the placement names."""
    site = sites[value.graph]
    name = next(site.names)
    site.model.add_submodule(name, observer)
    users = list(value.users) if placement.users is None else placement.users
    with value.graph.inserting_after(value):
        node = value.graph.call_module(name, (value,))
    node.meta.update(value.meta)
    for user in users:
        user.replace_input_with(_reach(sites, value, user.graph), _reach(sites, node, user.graph))
    return node


def _reach(sites: _Sites, node: fx.Node, graph: fx.Graph) -> fx.Node:
    """What a value is called in a graph within its own, to which it is handed where it isn't yet."""
    if node.graph is graph:
        return node
    site = sites[graph]
    assert site.region is not None
    outer = _reach(sites, node, site.region.graph)
    region = region_in(sites[site.region.graph].model, site.region)
    assert region is not None
    return add_operand(region, outer)[site.index]
