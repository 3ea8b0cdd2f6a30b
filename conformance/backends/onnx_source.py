"""A written ONNX graph as an account of the module: which of its operators makes each value, and which take it.

Each operator of ONNX says in its documentation for which operator and node of the module it stands. Those that stand
for none, such as quantize and dequantize, make no value of the module: their results are other names of what they got.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.backends.qlib import vocabulary

_MODULES = "aten::"


@dataclass(frozen=True)
class Source:
    """`made` has the operator that makes each value, `readers` those that take it, `ranks` constants' dimensions."""

    made: Mapping[str, Any]
    readers: Mapping[str, tuple[Any, ...]]
    ranks: Mapping[str, int]

    def behind(self, name: str) -> str:
        """The module's value that a name stands for, else an empty string."""
        while name in self.made and not self._makes_a_value(self.made[name]) and self.made[name].input:
            name = str(self.made[name].input[0])
        return name if name in self.made else ""

    def same(self, name: str) -> str:
        """The value that an output of the graph is another name for."""
        while name in self.made and self.made[name].op_type == "Identity":
            name = str(self.made[name].input[0])
        return name

    def maker(self, name: str) -> Any:
        """The node that makes the value that a name is another name for; None for an input or a constant."""
        return self.made.get(self.same(name))

    def _makes_a_value(self, node: Any) -> bool:
        return node.op_type != "Identity" and is_the_modules(node)

    def operator(self, name: str) -> tuple[str, str]:
        """The module's operator that makes a value, and its node there; empty strings where none does."""
        if name not in self.made or not is_the_modules(self.made[name]):
            return "", ""
        operator, _, node = str(self.made[name].doc_string).partition(" ")
        return operator, node

    def quantized(self, name: str) -> str:
        """What the module's operator that makes a value is called where it runs on integers."""
        operator = self.operator(name)[0].replace("aten::", "quantized::", 1)
        with_number = any(self.ranks.get(given) == 0 for given in self.made[name].input)
        return f"{operator}_scalar" if with_number and f"{operator}_scalar" in vocabulary().operators else operator

    def relu_after(self, name: str, ran: Container[str]) -> str:
        """The value of the relu that is the only reader of a value, and that no operator that `ran` makes."""
        readers = self.readers.get(name, ())
        alone = len(readers) == 1 and readers[0].op_type == "Relu" and readers[0].output[0] not in ran
        return str(readers[0].output[0]) if alone else ""


def feeds(model: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """The arrays that the inputs of a model get, by name, from tensors in their order."""
    import numpy as np

    names = [value.name for value in model.graph.input]
    arrays = (np.array(x.detach().numpy(), order="C") for x in inputs)
    return dict(zip(names, arrays, strict=True))


def text(model: Any) -> str:
    """A graph for a person, an operator in a line."""
    return "\n".join(f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)})" for node in model.graph.node)


def is_the_modules(node: Any) -> bool:
    """Whether an operator stands for one of the module."""
    return str(node.doc_string).startswith(_MODULES)


def source_of(model: Any) -> Source:
    """Read a model whose operators are documented."""
    readers: dict[str, tuple[Any, ...]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = (*readers.get(name, ()), node)
    made = {output: node for node in model.graph.node for output in node.output}
    return Source(made, readers, {constant.name: len(constant.dims) for constant in model.graph.initializer})
