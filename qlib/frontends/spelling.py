"""A captured graph as quantizers know it: with the operators that torch exports, and fake tensors as examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from qlib.errors import QuantizerError
from qlib.graph import attribute, become

_aten = torch.ops.aten


def _view(node: fx.Node) -> None:
    become(node, _aten.view.default, *node.args)


def _hardtanh(node: fx.Node) -> None:
    become(node, _aten.hardtanh.default, node.args[0], 0.0, 6.0)


# By what torch exported and what `qlib.frontends.normalize` made of it: how the former is written.
SPELLINGS: Mapping[tuple[OpOverload, OpOverload], Callable[[fx.Node], None]] = MappingProxyType(
    {
        (_aten.view.default, _aten.reshape.default): _view,
        (_aten.hardtanh.default, _aten.relu6.default): _hardtanh,
        (_aten.hardtanh_.default, _aten.relu6.default): _hardtanh,
    }
)


def spell_as_exported(model: fx.GraphModule) -> None:
    """Write operators as torch exported them, in place, where quantizers go by that; `normalize` takes it back.

    Nodes get fake tensors of their shapes and types as ``meta["val"]``.
    """
    for node in model.graph.nodes:
        spell = SPELLINGS.get((node.meta.get("exported"), node.target))
        if spell is not None:
            spell(node)
    with FakeTensorMode():
        for node in model.graph.nodes:
            if "dtype" in node.meta:
                node.meta["val"] = torch.empty(node.meta["shape"], dtype=node.meta["dtype"])


def describe_new(model: fx.GraphModule) -> None:
    """Give nodes that a quantizer has put into the graph the metadata that passes go by, in place.

    Shapes are those of their ``meta["val"]``, of the constant, or of what the operator makes of fake tensors. Raises
    QuantizerError where that fails.
    """
    for node in model.graph.nodes:
        if "module_type" in node.meta:  # what capture gives every node
            continue
        node.meta.setdefault("module_path", "")
        node.meta["module_type"] = ""
        if node.op not in ("call_function", "get_attr") or "dtype" in node.meta:
            continue
        value = _example(model, node)
        if isinstance(value, Tensor):
            node.meta.update(shape=tuple(value.shape), dtype=value.dtype, val=value)


def _example(model: fx.GraphModule, node: fx.Node) -> Any:
    if "val" in node.meta:
        return node.meta["val"]
    if node.op == "get_attr":
        return attribute(model, str(node.target))

    def fake(used: fx.Node) -> Tensor:
        return torch.empty(used.meta["shape"], dtype=used.meta["dtype"])

    try:
        with FakeTensorMode():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), fake)
            assert callable(node.target)
            return node.target(*args, **kwargs)
    except Exception as error:
        raise QuantizerError(
            f"{node}, which the quantizer put into the graph, has no meta['val'], and {node.target} can't tell: {error}"
        ) from error
