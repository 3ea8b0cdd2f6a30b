"""Training and quantization in one graph: what training needs is set aside while it is decided what is quantized."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qlib.errors import CaptureError
from qlib.fake_quantize import FAKE_QUANTIZES, FakeQuantize, LearnableFakeQuantize
from qlib.fold import channels_of, layer_before
from qlib.graph import add_module, attribute, drop_unused_nodes, finish, get_attr, nodes_in, op_name
from qlib.ops import BY_HEAD, Op
from qlib.passes.annotate import Annotation
from qlib.quantizer import quantizes_input
from qlib.regions import all_models, regions_in, set_results
from qlib.trained import BatchNorm, Dropout, Fold, FoldedBatchNorm, NormSettings, TrainedLayer

_DROPOUTS = frozenset({"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout"})


@dataclass(frozen=True)
class _Norm:
    """A batch norm that was taken out: the names of its tensors (gamma, beta, mean, variance), and its numbers."""

    tensors: tuple[str | None, ...]
    settings: NormSettings


@dataclass(frozen=True)
class SetAside:
    """What a graph does in training only.

    `norms` has the batch norms that follow a layer, in order, `dropouts` dropouts by their input. `gone` has, for each
    node that was taken out, the one that has its value since.
    """

    norms: dict[fx.Node, list[_Norm]]
    dropouts: dict[fx.Node, Dropout]
    gone: dict[fx.Node, fx.Node]


def set_aside(model: fx.GraphModule) -> SetAside:
    """Bring a captured graph into the form that it has in evaluation mode, in place; returns what training needs back.

    Batch norms that can be folded vanish, several in a row too, others are by running statistics, and dropouts vanish
    that are all that uses their input; not so where a quantizer wants their input quantized. A count of the batches
    seen is no longer kept. Branches and loops are brought into that form too. Raises CaptureError for a batch norm
    whose running statistics would not move in training.
    """
    forget_counts(model)
    aside = SetAside({}, {}, {})
    for part in all_models(model):
        for node in list(part.graph.nodes):
            name = op_name(node)
            if name == "aten::batch_norm" and node.args[3] is not None:
                node.update_arg(5, False)
                _set_norm_aside(node, aside)
            elif name in _DROPOUTS and _vanishes(node, aside) and len(node.args[0].users) == 1:
                aside.dropouts[node.args[0]] = _dropout(node)
                _vanish(node, aside)
        drop_unused_nodes(part.graph)
    return aside


def forget_counts(model: fx.GraphModule) -> None:
    """Take out what counts the batches that batch norms have seen, in place; also what branches give for it alone."""
    for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        if str(node.args[0].target).endswith("num_batches_tracked"):
            model.graph.erase_node(node)
    for part in all_models(model):
        drop_unused_nodes(part.graph)
        for region in regions_in(part):
            if not region.carried:
                set_results(region, [position for position in region.results if region.taken(position)])


def _set_norm_aside(node: fx.Node, aside: SetAside) -> None:
    settings, layer = _settings(node), layer_before(node)
    if layer is not None and _vanishes(node, aside):
        aside.norms.setdefault(layer, []).append(_Norm(_targets(node.args[1:5]), settings))
        _vanish(node, aside)


def _vanishes(node: fx.Node, aside: SetAside) -> bool:
    """Whether nothing is in the way between a node and its input: no dropout before it, and no quantization."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source not in aside.dropouts and not quantizes_input(node)


def simulate(model: fx.GraphModule, annotation: Annotation, aside: SetAside) -> None:
    """Put back what `set_aside` took out, in place, after fake-quantize modules were placed by `annotation`.

    Where the annotation quantizes a layer that a batch norm follows, the fold is simulated (see `qlib.trained`). Biases
    are fake-quantized as conversion will. Ranges of weights start at the weights as they are.
    """
    owners = {part.graph: part for part in all_models(model)}
    for value, dropout in aside.dropouts.items():
        _insert_after(owners[value.graph], _quantized(value, annotation), "dropout", dropout, ())
    layers = list(_layers(annotation))
    outside = _outside(owners)
    sources = [_source(owners, outside, layer) for layer in layers]
    for layer, source in zip(layers, sources, strict=True):
        _train_weight(owners[layer.head.graph], layer, source, aside.norms.get(layer.head, []))
    folded = {layer.head for layer in layers}
    for head, norms in aside.norms.items():
        for norm in reversed(norms if head not in folded else []):
            _insert_after(owners[head.graph], head, "norm", BatchNorm(norm.settings), norm.tensors)
    for part in owners.values():
        for node in list(part.graph.nodes):
            if op_name(node) == "aten::batch_norm" and node.args[3] is not None:
                _replace(part, node, "norm", BatchNorm(_settings(node)), node.args[:5])
            elif op_name(node) in _DROPOUTS:
                _replace(part, node, "dropout", _dropout(node), node.args[:1])
    finish(model)


def _targets(nodes: tuple[Any, ...]) -> tuple[str | None, ...]:
    return tuple(None if node is None else str(node.target) for node in nodes)


def _settings(norm: fx.Node) -> NormSettings:
    momentum, eps = (float(norm.args[position]) for position in (6, 7))  # type: ignore[arg-type]
    if momentum == 0.0:  # which is also what evaluation mode makes of None
        raise CaptureError(
            f"expected a momentum above 0 of the batch norm {norm.meta.get('module_path', '')!r} at "
            f"{norm.meta.get('source') or 'an unknown line'}, found 0 or None, by which its running statistics don't "
            "move: give it a number such as 0.1 before the module is captured"
        )
    return NormSettings(momentum, eps)


def _dropout(node: fx.Node) -> Dropout:
    return Dropout(op_name(node).removeprefix("aten::"), float(node.args[1]))  # type: ignore[arg-type]


def _vanish(node: fx.Node, aside: SetAside) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
    aside.gone[node] = source


def _quantized(value: fx.Node, annotation: Annotation) -> fx.Node:
    """The fake-quantize of a value that all its users get, else the value itself."""
    everywhere = any(p.value is value and p.users is None for p in annotation.placements)
    return next(iter(value.users)) if everywhere else value


def _constants(model: fx.GraphModule, targets: tuple[str | None, ...]) -> tuple[fx.Node | None, ...]:
    """Nodes for tensors by name, at the present insertion point."""

    def constant(target: str) -> fx.Node:
        return get_attr(model.graph, target, attribute(model, target))

    return tuple(None if target is None else constant(target) for target in targets)


def _insert_after(
    model: fx.GraphModule, value: fx.Node, name: str, module: nn.Module, targets: tuple[str | None, ...]
) -> None:
    """Call a module on `value` and the tensors named, and give the result to all that used the value."""
    target = add_module(model, name, module)
    users = list(value.users)
    with model.graph.inserting_before(value.next):
        node = model.graph.call_module(target, (value, *_constants(model, targets)))
    node.meta = {key: item for key, item in value.meta.items() if key != "operator"}
    for user in users:
        user.replace_input_with(value, node)


@dataclass(frozen=True)
class _Layer:
    """An operator whose weight is quantized, and its row; `plain_bias` is whether its bias stays as it is.

    An operator that no kernel takes over is one too, by the row that is tried first for it.
    """

    head: fx.Node
    op: Op
    plain_bias: bool


def _layers(annotation: Annotation) -> Iterator[_Layer]:
    rows = {match.head: match.op for match in annotation.matches}
    for head in dict.fromkeys(user for placement in annotation.weights for user in placement.users or ()):
        row = rows.get(head, BY_HEAD[op_name(head)][0])
        yield _Layer(head, row, head not in rows and head in annotation.float_biases)


def _train_weight(model: fx.GraphModule, layer: _Layer, source: nn.Module | None, norms: list[_Norm]) -> None:
    """Let the layer take its weight and bias from one module that knows the batch norms and the input's scale."""
    head, op = layer.head, layer.op
    assert op.weight is not None
    bias: Any = None if op.bias is None else head.args[op.bias]
    if not norms and bias is None:
        for watched in nodes_in(head.args[op.weight]):
            if watched.op == "call_module":  # of the recurrent layers' list, biases are not
                _quantize_at(model, watched).observe(attribute(model, str(watched.args[0].target)))  # type: ignore[union-attr]
        return
    watching: Any = head.args[op.weight]
    quantize, weight = _quantize_at(model, watching), watching.args[0]
    settings = tuple(norm.settings for norm in norms)
    trained = TrainedLayer(quantize, source, Fold(channels_of(head), settings) if norms else None)
    tensors = [target for norm in norms for target in norm.tensors]
    targets = (str(weight.target), None if bias is None else str(bias.target), *tensors)
    values = [None if target is None else attribute(model, target).detach() for target in targets]
    quantize.observe(trained.folded(*values)[0])  # type: ignore[arg-type]
    name = add_module(model, "layer", trained)
    with model.graph.inserting_before(head):
        pair = model.graph.call_module(name, _constants(model, targets))
        items = [model.graph.call_function(operator.getitem, (pair, position)) for position in (0, 1)]
    pair.meta = {"module_path": head.meta.get("module_path", ""), "module_type": head.meta.get("module_type", "")}
    for item, node in zip(items, (weight, bias), strict=True):
        item.meta.update(pair.meta if node is None else node.meta)
    assert op.bias is not None
    head.update_arg(op.weight, items[0])
    head.update_arg(op.bias, items[1])
    model.graph.erase_node(watching)
    if norms:
        _insert_after(model, head, "norm", FoldedBatchNorm(settings), targets[1:])


def _quantize_at(model: fx.GraphModule, node: fx.Node) -> FakeQuantize | LearnableFakeQuantize:
    quantize = model.get_submodule(str(node.target))
    assert isinstance(quantize, FakeQuantize | LearnableFakeQuantize)
    return quantize


def _source(
    owners: Mapping[fx.Graph, fx.GraphModule], outside: Mapping[fx.Node, fx.Node], layer: _Layer
) -> nn.Module | None:
    """The fake-quantize at the layer's input, before a dropout, perhaps in a graph around the layer's.

    None where the bias stays as it is, since the input is in float or the layer is left to float.
    """
    if layer.plain_bias or not layer.op.operands:
        return None
    node: Any = layer.head.args[layer.op.operands[0]]
    while isinstance(node, fx.Node):
        if node.op == "call_module":
            module = owners[node.graph].get_submodule(str(node.target))
            if isinstance(module, FAKE_QUANTIZES):
                return module
        node = node.args[0] if node.op == "call_module" else outside.get(node)
    return None


def _outside(owners: Mapping[fx.Graph, fx.GraphModule]) -> dict[fx.Node, fx.Node]:
    """What the placeholders of branches and loops stand for, but for what a loop carries."""
    regions = [region for owner in owners.values() for region in regions_in(owner)]
    return {
        entry: region.operands[position]
        for region in regions
        for position in range(region.carried, len(region.operands))
        for entry in region.entries(position)
    }


def _replace(model: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Put a module that knows training from evaluation in the place of an operator."""
    target = add_module(model, name, module)
    with model.graph.inserting_before(node):
        call = model.graph.call_module(target, arguments)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    model.graph.erase_node(node)
