"""A graph as text for a person: one line for each node."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.graph import attribute


def graph_text(model: fx.GraphModule, names: Mapping[fx.Node, str] = MappingProxyType({})) -> str:
    """One line for each node, ``name = operator(arguments)``; constants with their type and shape.

    The graphs of branches and loops stand indented under their names. `names` says what operators are called, where
    that is not what torch calls them.
    """
    return "\n".join(_line(model, node, names) for node in model.graph.nodes)


def _line(model: fx.GraphModule, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    if node.op == "placeholder":
        return f"{node.name} = input"
    if node.op == "output":
        return f"return {_text(node.args[0])}"
    if node.op == "get_attr" and isinstance(inner := getattr(model, str(node.target), None), fx.GraphModule):
        return f"{node.name} = graph:\n{indent(graph_text(inner, names), '    ')}"
    if node.op == "get_attr":
        tensor = attribute(model, str(node.target))
        return f"{node.name} = {node.target}: {_text(tensor.dtype)}{list(tensor.shape)}"
    target = str(node.target).removesuffix(".default") if node.op == "call_function" else f"self.{node.target}"
    target = getattr(node.target, "__name__", target) if target.startswith("<") else target
    target = names.get(node, target)
    keywords = [f"{key}={_text(value)}" for key, value in node.kwargs.items()]
    return f"{node.name} = {target}({', '.join([*map(_text, node.args), *keywords])})"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_text, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
