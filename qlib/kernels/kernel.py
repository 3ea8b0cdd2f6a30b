"""What a kernel is, and what it is given when a graph is lowered to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qlib.arith import quantize_bias
from qlib.graph import Model, attribute, hold, op_name
from qlib.ops import Op
from qlib.rewrite import DEQUANTIZE, Match

Implementation = Callable[..., Any]


@dataclass(frozen=True)
class Source:
    """A quantized operand: the node that holds its integers, their scale, zero point and storage type."""

    node: fx.Node
    scale: float
    zero_point: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Result:
    """How the result is quantized; `dtype` is the type that the integers are stored in."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int
    dtype: torch.dtype

    @property
    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        """The fields in the order in which every kernel takes them last."""
        return (self.scale, self.zero_point, self.qmin, self.qmax, self.dtype)


@dataclass(frozen=True)
class Runtime:
    """An operand that is quantized at run time.

    The float node, the arguments of `choose_qparams` after it, and the nodes of the integers that it becomes, of their
    scale and of their zero point.
    """

    node: fx.Node
    arguments: tuple[Any, ...]
    integers: fx.Node
    scale: fx.Node
    zero_point: fx.Node


@dataclass(frozen=True)
class Site:
    """One place in a graph where an operator is replaced by its kernel.

    A static operator has `sources` and a `result`, a dynamic one `runtime`; an operator whose result is a list of
    tensors has no `result`.
    """

    model: fx.GraphModule
    match: Match
    sources: tuple[Source, ...] = ()
    result: Result | None = None
    runtime: Runtime | None = None

    @property
    def bounded_result(self) -> Result:
        """The result, its least integer raised to zero's where the chain ends in relu: clamping is all that does."""
        assert self.result is not None
        result = self.result
        if self.match.op.chain[-1] != "aten::relu":
            return result
        return Result(result.scale, result.zero_point, max(result.qmin, result.zero_point), result.qmax, result.dtype)

    @property
    def weight(self) -> tuple[fx.Node, fx.Node, fx.Node]:
        """The nodes of the integer weights, their scales and their zero points."""
        (dequantized,) = self.match.weights
        return self.stored(dequantized)

    def stored(self, dequantized: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
        """The nodes of the integers that a weight was dequantized from, their scales and their zero points."""
        weight, scale, zero_point = dequantized.args[:3]
        assert isinstance(weight, fx.Node)
        if not isinstance(scale, fx.Node):
            scale = self.constant("weight_scale", torch.tensor(scale, dtype=torch.float32))
            zero_point = self.constant("weight_zero_point", torch.tensor(zero_point, dtype=torch.int32))
        assert isinstance(zero_point, fx.Node)
        return weight, scale, zero_point

    @property
    def bias(self) -> fx.Node | None:
        """The node of the bias, if any: int32 in steps of ``x_scale * w_scale`` for an input of integers, else float32.

        A bias that the debug form holds as multiples of that step in float32 is made integers again.
        """
        assert self.match.op.bias is not None
        bias = self.match.head.args[self.match.op.bias]
        if isinstance(bias, fx.Node) and op_name(bias) in DEQUANTIZE:
            bias = bias.args[0]
        elif isinstance(bias, fx.Node) and self.sources:
            input_scale = torch.tensor(self.sources[0].scale, dtype=torch.float32)
            step = input_scale.double() * self.tensor(self.weight[1]).double()
            bias = self.constant("bias_int32", quantize_bias(self.tensor(bias), step))
        assert bias is None or isinstance(bias, fx.Node)
        return bias

    def tensor(self, node: Any) -> Tensor:
        """The constant tensor behind a `get_attr` node."""
        return attribute(self.model, str(node.target))

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """A `get_attr` node for a new buffer beside the operator's module."""
        return hold(self.model, str(self.match.head.meta.get("module_path", "")), name, value)

    def evaluate(self, *operands: Tensor) -> Tensor:
        """Run the float operators of the chain on `operands`, in the operands' dtype (float64 for exact tables)."""
        values = iter(operands)
        head = self.match.head

        def argument(position: int, value: Any) -> Any:
            if position in self.match.op.operands:
                return next(values)
            return self.tensor(value).to(operands[0].dtype) if isinstance(value, fx.Node) else value

        assert callable(head.target)
        out = head.target(*(argument(i, value) for i, value in enumerate(head.args)), **head.kwargs)
        for node in self.match.nodes[1:]:
            assert callable(node.target)
            out = node.target(out, *node.args[1:])
        assert isinstance(out, Tensor)
        return out


@dataclass(frozen=True)
class Call:
    """The node that replaces an operator: what it calls, and with which arguments."""

    target: Any
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Kernel:
    """How a row of the operator table is computed on integers.

    doc         one line for people
    arguments   what the kernel is handed at a site, in the order of its schema
    schema      the library operator's schema without its name; None where the float operator runs on integers as it is
    reference   the plain implementation for a row: integers or float64, obviously right
    fast        the quick implementation for a row; equal to the reference but for ties
    fake        shape, dtype and strides of the result, for tracing
    inside      the graph that the debug form calls in the operator's place, for a kernel that quantizes on the way too;
                from the float operator and the arguments of `choose_qparams` after the tensor
    """

    doc: str
    arguments: Callable[[Site], tuple[Any, ...]]
    schema: Callable[[Op], str] | None = None
    reference: Callable[[Op], Implementation] | None = None
    fast: Callable[[Op], Implementation] | None = None
    fake: Callable[[Op], Implementation] | None = None
    inside: Callable[[fx.Node, tuple[Any, ...]], Model] | None = None
