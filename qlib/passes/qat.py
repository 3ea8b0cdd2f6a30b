"""Training and quantization in one graph: what training needs is set aside while it is decided what is quantized."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from qlib.fake_quantize import FakeQuantize, LearnableFakeQuantize
from qlib.fold import channels_of, layer_before
from qlib.graph import add_module, attribute, drop_unused_nodes, finish, get_attr, op_name
from qlib.passes.annotate import Annotation
from qlib.rewrite import Match
from qlib.trained import BatchNorm, Dropout, Fold, FoldedBatchNorm, NormSettings, TrainedLayer

_DROPOUTS = frozenset({"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout"})


@dataclass(frozen=True)
class _Norm:
    """A batch norm that was taken out: the names of its tensors (gamma, beta, mean, variance), and its numbers."""

    tensors: tuple[str | None, ...]
    settings: NormSettings
    meta: dict[str, Any]


@dataclass(frozen=True)
class SetAside:
    """What a graph does in training only: batch norms by the layer that they follow, dropouts by their input."""

    norms: dict[fx.Node, _Norm]
    dropouts: dict[fx.Node, Dropout]


def set_aside(model: fx.GraphModule) -> SetAside:
    """Bring a captured graph into the form that it has in evaluation mode, in place; returns what training needs back.

    Batch norms that can be folded vanish, others are by running statistics, and dropouts vanish that are all that
    uses their input. A count of the batches seen is no longer kept.
    """
    norms: dict[fx.Node, _Norm] = {}
    dropouts: dict[fx.Node, Dropout] = {}
    for node in list(model.graph.nodes):
        name = op_name(node)
        if name == "aten::copy_" and str(node.args[0].target).endswith("num_batches_tracked"):
            model.graph.erase_node(node)
        elif name == "aten::batch_norm" and node.args[3] is not None:
            node.update_arg(5, False)
            layer = layer_before(node)
            if layer is not None and layer not in norms and layer not in dropouts:
                norms[layer] = _Norm(_targets(node.args[1:5]), _settings(node), node.meta)
                _vanish(node)
        elif name in _DROPOUTS and len(node.args[0].users) == 1 and node.args[0] not in dropouts:
            dropouts[node.args[0]] = _dropout(node)
            _vanish(node)
    drop_unused_nodes(model.graph)
    return SetAside(norms, dropouts)


def simulate(model: fx.GraphModule, annotation: Annotation, aside: SetAside) -> None:
    """Put back what `set_aside` took out, in place, after fake-quantize modules were placed by `annotation`.

    Where the annotation quantizes a layer that a batch norm follows, the fold is simulated (see `qlib.trained`). Biases
    are fake-quantized as conversion will. Ranges of weights start at the weights as they are.
    """
    for value, dropout in aside.dropouts.items():
        _insert_after(model, _quantized(value, annotation), "dropout", dropout, ())
    folded = {match.head for match in annotation.matches if match.op.weight is not None}
    for match in annotation.matches:
        if match.op.weight is not None:
            _train_weight(model, match, aside.norms.get(match.head))
    for layer, norm in aside.norms.items():
        if layer not in folded:
            _insert_after(model, layer, "norm", BatchNorm(norm.settings), norm.tensors)
    for node in list(model.graph.nodes):
        if op_name(node) == "aten::batch_norm" and node.args[3] is not None:
            _replace(model, node, "norm", BatchNorm(_settings(node)), node.args[:5])
        elif op_name(node) in _DROPOUTS:
            _replace(model, node, "dropout", _dropout(node), node.args[:1])
    finish(model)


def _targets(nodes: tuple[Any, ...]) -> tuple[str | None, ...]:
    return tuple(None if node is None else str(node.target) for node in nodes)


def _settings(norm: fx.Node) -> NormSettings:
    return NormSettings(float(norm.args[6]), float(norm.args[7]))  # type: ignore[arg-type]


def _dropout(node: fx.Node) -> Dropout:
    return Dropout(op_name(node).removeprefix("aten::"), float(node.args[1]))  # type: ignore[arg-type]


def _vanish(node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _quantized(value: fx.Node, annotation: Annotation) -> fx.Node:
    """The fake-quantize of a value that all its users get, else the value itself."""
    everywhere = any(p.value is value and p.users is None for p in annotation.placements)
    return next(iter(value.users)) if everywhere else value


def _constants(model: fx.GraphModule, targets: tuple[str | None, ...]) -> tuple[fx.Node | None, ...]:
    """Nodes for tensors by name, at the present insertion point."""

    def constant(target: str) -> fx.Node:
        node, tensor = get_attr(model.graph, target), attribute(model, target)
        node.meta.update(shape=tuple(tensor.shape), dtype=tensor.dtype)
        return node

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


def _train_weight(model: fx.GraphModule, match: Match, norm: _Norm | None) -> None:
    """Let the layer take its weight and bias from one module that knows the batch norm and the input's scale."""
    head, op = match.head, match.op
    assert op.weight is not None
    watched: Any = head.args[op.weight]
    quantize = model.get_submodule(str(watched.target))
    assert isinstance(quantize, FakeQuantize | LearnableFakeQuantize)
    bias: Any = None if op.bias is None else head.args[op.bias]
    weight: Any = watched.args[0]
    if norm is None and bias is None:
        quantize.observe(attribute(model, str(weight.target)))
        return
    fold = None if norm is None else Fold(channels_of(head), norm.settings)
    layer = TrainedLayer(quantize, _source(model, match), fold)
    targets = (str(weight.target), None if bias is None else str(bias.target), *(norm.tensors if norm else ()))
    values = [None if target is None else attribute(model, target).detach() for target in targets]
    quantize.observe(layer.folded(*values)[0])  # type: ignore[arg-type]
    name = add_module(model, "layer", layer)
    with model.graph.inserting_before(head):
        pair = model.graph.call_module(name, _constants(model, targets))
        items = [model.graph.call_function(operator.getitem, (pair, position)) for position in (0, 1)]
    pair.meta = {"module_path": head.meta.get("module_path", ""), "module_type": head.meta.get("module_type", "")}
    for item, node in zip(items, (weight, bias), strict=True):
        item.meta.update(pair.meta if node is None else node.meta)
    assert op.bias is not None
    head.update_arg(op.weight, items[0])
    head.update_arg(op.bias, items[1])
    model.graph.erase_node(watched)
    if norm is not None:
        _insert_after(model, head, "norm", FoldedBatchNorm(norm.settings), (targets[1], *norm.tensors))


def _source(model: fx.GraphModule, match: Match) -> nn.Module | None:
    """The fake-quantize at the layer's input, before a dropout; None where the input stays in float."""
    node: Any = match.operands[0] if match.operands else None
    while node is not None and node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if not isinstance(module, Dropout):
            return module
        node = node.args[0]
    return None


def _replace(model: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Put a module that knows training from evaluation in the place of an operator."""
    target = add_module(model, name, module)
    with model.graph.inserting_before(node):
        call = model.graph.call_module(target, arguments)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    model.graph.erase_node(node)
