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

from conformance.backends.onnx_source import Source, source_of
from conformance.backends.qlib import vocabulary

# What an engine appends to a value's name.
_SUFFIXES = ("_QuantizeLinear_Output", "_DequantizeLinear_Output", "_quantized", "_QuantizeLinear_Input")


@dataclass(frozen=True)
class Reading:
    """A graph that was optimized beside the one that it was made from.

    `ranks` has the dimensions of both graphs' constants, `alike` the operators of the source for those of the optimized
    graph whose values were renamed.
    """

    optimized: Any
    source: Source
    ranks: Mapping[str, int]
    alike: Mapping[str, Any]

    def stem(self, node: Any) -> str:
        """The value of the module that an operator of the optimized graph makes, else an empty string."""
        for value in node.output:
            name = value.rpartition("_token_")[0] or value
            for suffix in _SUFFIXES:
                name = name.removesuffix(suffix)
            if name in self.source.made:
                return self.source.behind(name)
        twin = self.alike.get(node.output[0])
        return self.source.behind(str(twin.output[0])) if twin is not None else ""


def read(optimized: Any, source: Any) -> Reading:
    """Set both graphs side by side."""
    known = source_of(source)
    own = {constant.name: len(constant.dims) for constant in optimized.graph.initializer}
    return Reading(optimized, known, {**known.ranks, **own}, _alike(optimized, source))


def _alike(optimized: Any, source: Any) -> dict[str, Any]:
    """Operators of a kind that both graphs have equally many of, by their order."""
    found: dict[str, Any] = {}
    for kind in {node.op_type for node in optimized.graph.node} - _NOTHING:
        pair = ([node for node in graph.node if node.op_type == kind] for graph in (optimized.graph, source.graph))
        ours, theirs = pair
        if len(ours) == len(theirs):
            found |= {node.output[0]: twin for node, twin in zip(ours, theirs, strict=True)}
    return found


@dataclass(frozen=True)
class _Ran:
    """One operator that ran, the node of the module that it stands for, and whether it computes on integers."""

    name: str
    module_node: str
    computes: bool


def sequence(reading: Reading) -> tuple[str, ...]:
    """The operators that the optimized graph runs, in its order, by canonical name.

    An operator of the module that several of ONNX stand for counts once where they are in float.
    """
    found: list[_Ran] = []
    integers: set[str] = set()
    produced = {reading.stem(node) for node in reading.optimized.graph.node}
    for node in reading.optimized.graph.node:
        gets_integers = any(name in integers for name in node.input)
        name, module_node = _float_name(reading, node)
        if node.op_type in INTEGER:
            name = INTEGER[node.op_type](reading, node)
            name += _relu(reading, node, produced) if f"{name}_relu" in vocabulary().operators else ""
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
            border = node.op_type in _BORDERS
            found.append(_Ran(name, "" if border else module_node, node.op_type in INTEGER and not border))
    return _once(found)


def _once(found: list[_Ran]) -> tuple[str, ...]:
    """The names, without those that merely move or finish what another operator for the same node of the module did."""
    claimed = {ran.module_node for ran in found if ran.computes}
    names = []
    for ran in found:
        if ran.module_node and not ran.computes:
            if ran.module_node in claimed:
                continue
            claimed.add(ran.module_node)
        names.append(ran.name)
    return tuple(names)


def _relu(reading: Reading, node: Any, produced: set[str]) -> str:
    """`_relu` where the module has one after the operator's value that the optimized graph has no operator for."""
    stem = reading.stem(node)
    if stem and reading.source.made[stem].op_type == "Relu":
        return "_relu"
    return "_relu" if reading.source.relu_after(stem, produced) else ""


def _float_name(reading: Reading, node: Any) -> tuple[str, str]:
    """The operator of the module that a node stands for, and the name of that operator's node in the module."""
    stem = _of_the_same_kind(reading, node, reading.stem(node))
    operator, module_node = reading.source.operator(stem)
    return (operator, module_node) if operator else (f"unmapped:{node.op_type}", "")


def _of_the_same_kind(reading: Reading, node: Any, stem: str) -> str:
    """Go back over what the engine has left out after the operator, such as a relu that saturation stands for."""
    name = stem
    while name in reading.source.made and reading.source.made[name].op_type in _LEFT_OUT:
        name = str(reading.source.made[name].input[0])
        if name in reading.source.made and reading.source.made[name].op_type == node.op_type:
            return name
    return stem


def _plain(name: str) -> Callable[[Reading, Any], str]:
    return lambda reading, node: f"quantized::{name}"


def _with_weight(reading: Reading, node: Any) -> str:
    """A convolution, by the dimensions of its weight."""
    ranks = [reading.ranks[name] for name in node.input if reading.ranks.get(name, 0) >= 3]
    return f"quantized::conv{ranks[0] - 2}d" if ranks else "quantized::conv2d"


def _by_value(reading: Reading, node: Any) -> str:
    """The operator of the module whose value this one makes."""
    stem = _of_the_same_kind(reading, node, reading.stem(node))
    return reading.source.quantized(stem) if stem else f"unmapped:{node.op_type}"


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
# Those that make no value of the module: they change how one is stored.
_BORDERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Those whose results are real numbers.
_TO_FLOAT = frozenset({"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
# Operators that move or select elements, of whatever type.
_KEEPS = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Split"}
    | {"Expand", "Tile", "Resize", "DepthToSpace", "SpaceToDepth", "Pad", "GatherElements"}
)
# What the bounds of integers, or the weights before it, can stand for.
_LEFT_OUT = frozenset({"Relu", "Clip", "BatchNormalization", "Identity"})
# What engines add of their own to change types and layouts.
_NOTHING = frozenset({"Identity", "Cast", "Transpose", "ReorderInput", "ReorderOutput", "Clip"})
