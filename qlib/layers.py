"""The tensors of a model at which its forms can be compared, with what each form holds there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

import qlib.kernels  # noqa: F401  (registers the operators)
from qlib.executed import named
from qlib.graph import op_name
from qlib.interpret import Look, value_of, walk
from qlib.rewrite import DEQUANTIZE

_OPS = torch.ops.qlib
# What stores a tensor as integers by parameters that are known beforehand or chosen at run time; its arguments are the
# tensor, scale, zero point, qmin and qmax.
_QUANTIZE = frozenset(
    {_OPS.quantize_per_tensor.default, _OPS.quantize_per_tensor.tensor, _OPS.quantize_per_token.default}
)


@dataclass(frozen=True)
class Layer:
    """One tensor, in real units, as the float model, the debug form and the final form have it on the same inputs.

    `name` is its node in the debug form and `tensor` that of the float model, `operator` what made it in the final
    form, by canonical name, and `made_of` names the layers that it was computed from. `group` names the tensor whose
    parameters it shares. `final` is None where the final form has no such tensor. A tensor that is stored as integers
    has `scale` and `zero_point` (with one entry for each row where each has its own), the range ``[qmin, qmax]``, and
    in `unrounded` the number that the debug form rounded, in real units; these are None for one that stays in float.
    """

    name: str
    tensor: str
    operator: str
    module_path: str
    source: str
    group: str
    made_of: tuple[str, ...]
    real: Tensor
    debug: Tensor
    final: Tensor | None
    unrounded: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    qmin: int | None = None
    qmax: int | None = None


@dataclass(frozen=True)
class _Forms:
    """The values of each form by the names of the debug form's nodes, and the operators of the final form by them."""

    real: dict[str, Any]
    debug: dict[str, Any]
    final: dict[str, Any]
    operators: dict[str, str]


def layers_of(
    prepared: fx.GraphModule, debug: fx.GraphModule, final: fx.GraphModule, inputs: Sequence[Tensor]
) -> tuple[Layer, ...]:
    """Run the float model and its quantized forms on the same inputs and line up their tensors, in order of execution.

    `prepared` is the graph with observers, which has the debug form's names; they see nothing of this run. There is a
    layer for each tensor that the debug form stores as integers, and for each float result of a kernel of the final
    form. No state is changed: not the inputs, not the buffers that a model writes to.
    """
    forms = _Forms(_values(prepared, inputs), _values(debug, inputs), _values(final, inputs), _operators(final))
    kernels = {str(node.meta["replaces"]) for node in final.graph.nodes if "replaces" in node.meta}
    names = dict(named(debug))
    layers: list[Layer] = []
    sources: dict[fx.Node, tuple[str, ...]] = {}
    for node in debug.graph.nodes:
        made_of = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in sources[source]))
        layer = _layer(node, made_of, forms, names.get(node, "")) if _holds(node, kernels, forms) else None
        sources[node] = made_of if layer is None else (layer.name,)
        if layer is not None:
            layers.append(layer)
    return tuple(layers)


def _operators(final: fx.GraphModule) -> dict[str, str]:
    """What made each tensor of the final form, by the name of the debug node; an item is made by what made its list."""
    names = dict(named(final))
    for node in final.graph.nodes:
        if op_name(node) == "getitem":
            names[node] = names.get(node.all_input_nodes[0], "")
    return {str(node.meta.get("replaces", node.name)): name for node, name in names.items()}


def _values(model: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """What each node gives, by the name of the debug node that it takes the place of; observers hand their input on."""
    given = [x.clone() for x in inputs]
    holders = (node.name for node in model.graph.nodes if node.op == "placeholder")
    found: dict[str, Any] = dict(zip(holders, given, strict=True))

    def visit(node: fx.Node, look: Look) -> Any:
        value = _value(model, node, look)
        found[node.meta.get("replaces", node.name)] = value
        return value

    with torch.no_grad():
        walk(model.graph, given, visit)
    return found


def _value(model: fx.GraphModule, node: fx.Node, look: Look) -> Any:
    """The result of a node, without a trace in observers and state."""
    if node.op == "call_module" and hasattr(model.get_submodule(str(node.target)), "qparams"):
        return look(node.all_input_nodes[0])
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        return None  # what the model writes to its buffers and inputs comes last, and nothing reads it
    inner = getattr(model, str(node.target), None) if node.op == "get_attr" else None
    return partial(_quietly, inner) if isinstance(inner, fx.GraphModule) else value_of(model, node, look)


def _quietly(model: fx.GraphModule, *inputs: Any) -> Any:
    """Run the graph of a branch or loop, the tensors of which are no layers."""
    return walk(model.graph, inputs, partial(_value, model))


def _observed(node: fx.Node) -> fx.Node:
    """The float tensor that a node of the debug form is about: one may have been quantized once more before."""
    while node.target in _QUANTIZE or op_name(node) in DEQUANTIZE:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def _holds(node: fx.Node, kernels: set[str], forms: _Forms) -> bool:
    """Whether a layer stands at this node of the debug form: a real tensor, stored as integers or made by a kernel."""
    if node.target not in _QUANTIZE and node.name not in kernels:
        return False
    held = [forms.real.get(_observed(node).name), forms.debug.get(node.name)]
    if node.target not in _QUANTIZE:
        held.append(forms.final.get(node.name))
        return all(isinstance(x, Tensor) and x.is_floating_point() for x in held)
    return all(isinstance(x, Tensor) for x in held)


def _layer(node: fx.Node, made_of: tuple[str, ...], forms: _Forms, name: str) -> Layer:
    value, reached = _observed(node), forms.final.get(node.name)
    layer = Layer(
        name=node.name,
        tensor=value.name,
        operator=forms.operators.get(node.name, name),
        module_path=str(value.meta.get("module_path", "")),
        source=str(value.meta.get("source", "")),
        group=str(node.meta.get("group", value.name)),
        made_of=made_of,
        real=forms.real[value.name],
        debug=forms.debug[node.name],
        final=reached if isinstance(reached, Tensor) else None,
    )
    return _stored(layer, node, forms) if node.target in _QUANTIZE else layer


def _stored(layer: Layer, node: fx.Node, forms: _Forms) -> Layer:
    """The layer at a quantize: its tensors are integers until here, and there is more to say of them."""
    arguments: tuple[Any, ...] = node.args[:5]
    unrounded, scale, zero_point, qmin, qmax = (
        forms.debug[argument.name] if isinstance(argument, fx.Node) else argument for argument in arguments
    )
    scale, zero_point = torch.as_tensor(scale), torch.as_tensor(zero_point)
    return replace(
        layer,
        debug=_real(layer.debug, scale, zero_point),
        final=None if layer.final is None else _real(layer.final, scale, zero_point),
        unrounded=unrounded,
        scale=scale,
        zero_point=zero_point,
        qmin=qmin,
        qmax=qmax,
    )


def _real(stored: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``scale * (stored - zero_point)`` in float64, the same number for the same integer in every form."""
    return (stored.double() - zero_point) * scale.double()
