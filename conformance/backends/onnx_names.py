"""Canonical names for the operators that an ONNX engine really runs, read off the graph that it optimized.

An operator counts as quantized only where its kernel computes on integers: one that is named so in `INTEGER`, or one
that moves or selects elements and gets integers. The others have the name of the operator of the module whose value
they make, or `unmapped:KIND` where the engine made them up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# What an engine appends to a value's name.
_SUFFIXES = ("_QuantizeLinear_Output", "_DequantizeLinear_Output", "_quantized", "_QuantizeLinear_Input")


@dataclass(frozen=True)
class Reading:
    """A graph that was optimized beside the one that it was made from, and which of its values are integers."""

    optimized: Any
    source: Any
    made: Mapping[str, Any]
    readers: Mapping[str, tuple[Any, ...]]
    ranks: Mapping[str, int]

    def stem(self, value: str) -> str:
        """The value of the source graph that a value of the optimized graph stands for, else an empty string."""
        name = value.rpartition("_token_")[0] or value
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
        return name if name in self.made else ""


def read(optimized: Any, source: Any) -> Reading:
    """Set both graphs side by side."""
    made = {output: node for node in source.graph.node for output in node.output}
    readers: dict[str, tuple[Any, ...]] = {}
    for node in source.graph.node:
        for name in node.input:
            readers[name] = (*readers.get(name, ()), node)
    constants = (*source.graph.initializer, *optimized.graph.initializer)
    return Reading(optimized, source, made, readers, {c.name: len(c.dims) for c in constants})


def sequence(reading: Reading) -> tuple[str, ...]:
    """The operators that the optimized graph runs, in its order, by canonical name.

    Several ONNX operators may stand for one of the module, which counts once: as quantized where one of them is.
    """
    found: list[tuple[str, str]] = []
    integers: set[str] = set()
    produced = {reading.stem(output) for node in reading.optimized.graph.node for output in node.output}
    for node in reading.optimized.graph.node:
        gets_integers = any(name in integers for name in node.input)
        name, module_node = _float_name(reading, node)
        if node.op_type in INTEGER:
            name = INTEGER[node.op_type](reading, node)
            name += _relu(reading, node, produced) if name.rpartition("::")[2] in _WITH_RELU else ""
            integers.update(() if node.op_type in _TO_FLOAT else node.output)
            name += "_dynamic" if node.op_type in _TO_FLOAT else ""
        elif node.op_type == "DequantizeLinear":
            name = "" if node.input[0] in reading.ranks else "quantized::dequantize_per_tensor"
        elif gets_integers and node.op_type in _KEEPS:
            integers.update(node.output)
            name = "" if name.startswith("unmapped:") else name.replace("aten::", "quantized::", 1)
        elif name.startswith("unmapped:") and node.op_type in _NOTHING:
            name = ""
        if name:
            found.append((name, module_node))
    return _once(found)


def _once(found: list[tuple[str, str]]) -> tuple[str, ...]:
    """The names, without those of an operator of the module that was named before, or that is quantized."""
    claimed = {node for name, node in found if node and name.startswith("quantized::")}
    names = []
    for name, node in found:
        if node and name.startswith("aten::"):
            if node in claimed:
                continue
            claimed.add(node)
        names.append(name)
    return tuple(names)


def _relu(reading: Reading, node: Any, produced: set[str]) -> str:
    """`_relu` where the module has one after the operator's value that the optimized graph has no operator for."""
    readers = reading.readers.get(reading.stem(node.output[0]), ())
    stem = reading.stem(node.output[0])
    if stem and reading.made[stem].op_type == "Relu":
        return "_relu"
    absorbed = len(readers) == 1 and readers[0].op_type == "Relu" and readers[0].output[0] not in produced
    return "_relu" if absorbed else ""


def _float_name(reading: Reading, node: Any) -> tuple[str, str]:
    """The operator of the module whose value a node makes, and the name of that operator's node in the module."""
    stem = next((stem for output in node.output if (stem := reading.stem(output))), "")
    operator, _, module_node = str(reading.made[stem].doc_string).partition(" ") if stem else ("", "", "")
    return (operator, module_node) if operator.startswith("aten::") else (f"unmapped:{node.op_type}", "")


def _plain(name: str) -> Callable[[Reading, Any], str]:
    return lambda reading, node: f"quantized::{name}"


def _with_weight(reading: Reading, node: Any) -> str:
    """A convolution, by the dimensions of its weight."""
    ranks = [reading.ranks[name] for name in node.input if reading.ranks.get(name, 0) >= 3]
    return f"quantized::conv{ranks[0] - 2}d" if ranks else "quantized::conv2d"


def _by_value(reading: Reading, node: Any) -> str:
    """The operator of the module whose value this one makes."""
    return _float_name(reading, node)[0].replace("aten::", "quantized::", 1)


def _product(reading: Reading, node: Any) -> str:
    """A product with a constant is a linear layer."""
    constant = any(reading.ranks.get(name, 0) >= 2 for name in node.input)
    return "quantized::linear" if constant else _by_value(reading, node)


def _choice(reading: Reading, node: Any) -> str:
    return "quantized::choose_qparams"


# Operators that compute on integers, and what they are called here.
INTEGER: Mapping[str, Callable[[Reading, Any], str]] = MappingProxyType(
    {
        "QuantizeLinear": _plain("quantize_per_tensor"),
        "QLinearConv": _with_weight,
        "ConvInteger": _with_weight,
        "QGemm": _plain("linear"),
        "QLinearMatMul": _product,
        "MatMulInteger": _plain("linear"),
        "MatMulIntegerToFloat": _plain("linear"),
        "DynamicQuantizeMatMul": _plain("linear"),
        "DynamicQuantizeLinear": _choice,
        "QLinearAdd": _plain("add"),
        "QLinearMul": _plain("mul"),
        "QLinearConcat": _plain("cat"),
        "QLinearSigmoid": _plain("sigmoid"),
        "QLinearLeakyRelu": _plain("leaky_relu"),
        "QLinearSoftmax": _plain("softmax"),
        "QLinearAveragePool": _by_value,
        "QLinearGlobalAveragePool": _by_value,
        "QLinearWhere": _plain("where"),
        "NhwcMaxPool": _by_value,
    }
)
# Those whose results are real numbers.
_TO_FLOAT = frozenset({"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
# Those that take a relu after them along, by the range that they saturate to.
_WITH_RELU = frozenset({"linear", "add", "mul", "conv1d", "conv2d", "conv3d"})
# Operators that move or select elements, of whatever type.
_KEEPS = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Split"}
    | {"Expand", "Tile", "Resize", "DepthToSpace", "SpaceToDepth", "Pad", "GatherElements"}
)
# What engines add of their own to change types and layouts.
_NOTHING = frozenset({"Identity", "Cast", "Transpose", "ReorderInput", "ReorderOutput", "Clip"})
