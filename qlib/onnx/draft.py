"""An ONNX graph that is being written: its nodes and constants, and the names of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from qlib.errors import ConversionError
from qlib.graph import attribute, op_name

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


@dataclass
class Draft:
    """What was written so far. `names` says under which name the value of a node of the model is to be had."""

    model: fx.GraphModule
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    names: dict[fx.Node, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def fresh(self, wanted: str) -> str:
        """A name that no value has yet: the wanted one, or the next free one like it."""
        name, count = wanted, 0
        while name in self.used:
            count += 1
            name = f"{wanted}_{count}"
        self.used.add(name)
        return name

    def add(self, kind: str, inputs: Sequence[str], wanted: str, **attributes: Any) -> str:
        """Write one operator with one result and return the result's name."""
        return self.add_many(kind, inputs, [wanted], **attributes)[0]

    def add_many(self, kind: str, inputs: Sequence[str], wanted: Sequence[str], **attributes: Any) -> tuple[str, ...]:
        """Write one operator and return the names of its results."""
        results = tuple(self.fresh(name) for name in wanted)
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(kind, list(inputs), list(results), name=results[0], **given))
        return results

    def constant(self, value: Tensor | Sequence[Any] | float, wanted: str, dtype: torch.dtype | None = None) -> str:
        """The name of a constant; numbers become a tensor of `dtype`."""
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        name = self.fresh(wanted)
        self.constants[name] = numpy_helper.from_array(array_of(tensor), name)
        return name

    def integers(self, values: Sequence[int], wanted: str) -> str:
        """The name of a constant of int64: shapes, axes and indices."""
        return self.constant(list(values), wanted, torch.int64)

    def value(self, argument: Any, like: fx.Node) -> str:
        """The name of an argument: a node's value, or a number as a constant of the type of `like`."""
        if isinstance(argument, fx.Node):
            name = self.names[argument]
            if not isinstance(name, str):
                raise ConversionError(f"expected one tensor at {argument}, found a list of {len(name)}")
            return name
        return self.constant(argument, f"{like.name}_number", like.meta["dtype"])

    def promoted(self, argument: Any, result: fx.Node) -> str:
        """As `value`, in the type of the result: ONNX mixes no types."""
        name = self.value(argument, result)
        if not isinstance(argument, fx.Node) or argument.meta["dtype"] == result.meta["dtype"]:
            return name
        return self.add("Cast", [name], f"{result.name}_promoted", to=TYPES[result.meta["dtype"]])

    def stored(self, node: fx.Node) -> Tensor:
        """The tensor of the model that a `get_attr` node stands for."""
        return attribute(self.model, str(node.target)).detach()


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array in the usual order of its elements."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tuple(tensor.shape))


def shape_of(node: Any) -> list[int]:
    """The shape that a node was captured with."""
    return list(node.meta["shape"])


def refuse(node: fx.Node, why: str) -> ConversionError:
    """The error for an operator that ONNX has no counterpart for."""
    place = node.meta.get("source") or "an unknown line"
    return ConversionError(f"can't write {op_name(node) or node.op} at {node} ({place}) in ONNX: {why}")


def over_windows(draft: Draft, node: fx.Node, kind: str, others: Sequence[str], dims: int, **attributes: Any) -> str:
    """Write an operator that slides over the last `dims` dimensions: ONNX wants a batch, which is put there and taken
    away again where the input has none. `others` are its operands after the input.
    """
    x, axis = draft.value(node.args[0], node), [0]
    if len(shape_of(node.args[0])) == dims + 2:
        return draft.add(kind, [x, *others], node.name, **attributes)
    batch = draft.add("Unsqueeze", [x, draft.integers(axis, f"{node.name}_axis")], f"{node.name}_batch")
    y = draft.add(kind, [batch, *others], f"{node.name}_y", **attributes)
    return draft.add("Squeeze", [y, draft.integers(axis, f"{node.name}_axis")], node.name)
