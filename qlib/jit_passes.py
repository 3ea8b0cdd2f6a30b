"""Single passes over a captured graph, with the arguments of the TorchScript passes of these names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import fx
from torch._ops import OpOverload

from qlib.errors import ConversionError
from qlib.graph import add_buffer, attribute, copy_of, finish
from qlib.jit import QConfigDict, QuantType, mapping_of
from qlib.passes.prepare import observe, observe_trained
from qlib.qconfig import QConfigMapping

# What stands at the tensors, where it is not observers.
_OBSERVE: Mapping[QuantType, Callable[[fx.GraphModule, QConfigMapping], fx.GraphModule]] = MappingProxyType(
    {QuantType.QAT: observe_trained}
)


def insert_observers(
    model: fx.GraphModule,
    method_name: str,
    qconfig_dict: QConfigDict,
    inplace: bool = False,
    quant_type: QuantType = QuantType.STATIC,
) -> fx.GraphModule:
    """Fold batch norms and place an observer at each tensor of a captured graph that will be quantized.

    `method_name` is "forward", which is all that a captured graph holds. With `inplace` the graph given is changed and
    returned, else a copy. ``QuantType.QAT`` places fake-quantize modules and simulates the folds, as `prepare_qat`, so
    that the result is trained; its parameters are its own. Raises QConfigError as `prepare` does, and ConversionError
    for another method.
    """
    _check_method(method_name)
    observing = _OBSERVE.get(quant_type, observe)
    return observing(model if inplace else copy_of(model), mapping_of(qconfig_dict, quant_type))


def is_weight(node: fx.Node) -> bool:
    """Whether a node fetches the stored weight of a quantized operator of the final form."""
    return node.op == "get_attr" and any(_takes_as_weight(user, node) for user in node.users)


def _takes_as_weight(user: fx.Node, node: fx.Node) -> bool:
    if not isinstance(user.target, OpOverload) or user.target.namespace != "qlib":
        return False
    names = [argument.name for argument in user.target._schema.arguments]
    return any(name == "w" and value is node for name, value in zip(names, user.args, strict=False))


def register_prepacked_params(
    model: fx.GraphModule, method_name: str, is_packed_param: Callable[[fx.Node], bool], attr_prefix: str
) -> set[str]:
    """Keep the constants that satisfy `is_packed_param` under names of their own; returns these names.

    The n-th such constant becomes the buffer ``attr_prefix + "_" + n`` of the root of `model`, which is changed. With
    `is_weight` these are the weights of the quantized operators: plain integers, which a kernel packs for the machine
    when it first meets them, so that a saved model holds no packed form. Raises ConversionError for another method than
    "forward", and for a name that is taken.
    """
    _check_method(method_name)
    registered: dict[str, str] = {}
    for node in model.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if target in registered.values() or not is_packed_param(node):
            continue
        if target not in registered:
            name = f"{attr_prefix}_{len(registered)}"
            if hasattr(model, name):
                raise ConversionError(f"expected a prefix whose names are free, found {name!r}: choose another")
            registered[target] = add_buffer(model, name, attribute(model, target).detach())
        node.target = registered[target]
    finish(model)
    return set(registered.values())


def _check_method(name: str) -> None:
    if name != "forward":
        raise ConversionError(f"expected the method 'forward', which is what a captured graph holds, found {name!r}")
