"""A quantized graph as a spec writes it out, and the float module, inputs and parameters that stand for it.

graph:
  inputs:    {x: {shape: [1, 4], dtype: uint8, scale: 0.5, zero_point: 200}}
  constants: {weight: {shape: [8, 4], dtype: int8, scale: 0.25}, bias: {shape: [8], dtype: int32, range: [-9, 9]}}
  compute:   F.linear(x, weight, bias)
  output:    {dtype: uint8, scale: 4, zero_point: 3}
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from conformance.errors import Mistake, SpecError
from conformance.frozenmap import FrozenMap
from conformance.source import Composite, Expression, Function, Leaf, ModuleSource, parse_forward
from conformance.source_expression import check_expression
from conformance.source_forward import LayerNames, own_name_fault
from conformance.tensorspec import (
    EIGHT_BITS,
    KEY,
    Draw,
    Dtype,
    GraphTensor,
    Integer,
    Scale,
    TensorQParams,
    TensorSpec,
    WrittenAlone,
    check_zero_points,
    listed,
    misplaced,
)
from conformance.yamltree import Fields, Node, Piece, Scalar, mistake_at

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_INPUTS = EIGHT_BITS | {Dtype.INT64, Dtype.BOOL, Dtype.FLOAT32}
_CONSTANTS = EIGHT_BITS | {Dtype.INT32, Dtype.FLOAT32}
_OUTPUT = re.compile(r"output_\d+", re.ASCII)
# A float32 keeps these apart from their neighbours, times any scale.
MAX_BIAS = 2**22


class GraphOutput(BaseModel):
    """How one result is quantized."""

    model_config = _FROZEN

    dtype: Dtype = Field(description="uint8 or int8.")
    scale: Scale = Field(description="Step between integers.")
    zero_point: Integer = Field(0, description="The integer for 0.0.")

    @model_validator(mode="after")
    def _fits(self) -> GraphOutput:
        _check_dtype(self.dtype, EIGHT_BITS)
        check_zero_points(self.dtype, (self.zero_point,))
        return self

    @property
    def qparams(self) -> TensorQParams:
        """What the result's integers mean."""
        return TensorQParams(self.dtype, (self.scale,), (self.zero_point,))


def _check_dtype(dtype: Dtype, allowed: Iterable[Dtype], *path: str) -> None:
    if dtype not in allowed:
        raise misplaced(f"expected one of {', '.join(sorted(allowed))} here, found {dtype}", *path, "dtype")


class GraphSpec(BaseModel):
    """A quantized graph that is written out: integers, what they mean, and the operators on them."""

    model_config = _FROZEN

    inputs: Annotated[Mapping[str, GraphTensor], AfterValidator(FrozenMap)] = Field(
        min_length=1, max_length=16, description="Name in `compute` to tensor, in positional order."
    )
    constants: Annotated[Mapping[str, GraphTensor], AfterValidator(FrozenMap)] = Field(
        default_factory=FrozenMap, description="Weights and biases by name; an int32 one is a bias."
    )
    compute: str = Field(description="An expression in PyTorch on these names, or the lines of a forward.")
    output: Annotated[tuple[GraphOutput | None, ...], BeforeValidator(listed), Field(min_length=1), WrittenAlone()] = (
        Field(description="How each result is quantized; null for one that stays in float.")
    )

    @model_validator(mode="after")
    def _fits(self) -> GraphSpec:
        for role, tensors, allowed in (("inputs", self.inputs, _INPUTS), ("constants", self.constants, _CONSTANTS)):
            for name, tensor in tensors.items():
                fault = own_name_fault(name) or _taken(name, self.inputs if role == "constants" else ())
                if fault:
                    raise misplaced(fault, role, name, KEY)
                _check_dtype(tensor.dtype, allowed, role, name)
        for name, tensor in self.constants.items():
            if tensor.dtype is Dtype.INT32 and max(map(abs, tensor.range)) > MAX_BIAS:
                message = f"expected a bias within {MAX_BIAS}, which float32 tells apart, found {list(tensor.range)}"
                raise misplaced(message, "constants", name, "range")
        return self


def _taken(name: str, others: Iterable[str]) -> str | None:
    if name in others:
        return f"the name {name!r} is an input's already: choose another"
    return f"the name {name!r} is an output's: choose another" if _OUTPUT.fullmatch(name) else None


@dataclass(frozen=True)
class Desugared:
    """The same case as a module in float and what is known of its tensors.

    `qparams` has the parameters of inputs and constants by name, and of results as `output_0` and so on, None for
    those that stay in float. Inputs and weights are drawn as integers of these.
    """

    module: Composite
    inputs: Mapping[str, TensorSpec]
    weights: Mapping[str, Draw]
    qparams: Mapping[str, TensorQParams | None]


def parse_compute(graph: Node) -> Function | None:
    """Check the text of `compute:` as a forward that finds its constants by name; None where there is no such text.

    Raises SpecError with every mistake at its place: what `module:` may not say either, and names that are not used.
    """
    compute = graph.get("compute") if isinstance(graph, Fields) else None
    if not isinstance(graph, Fields) or not isinstance(compute, Scalar) or not isinstance(compute.value, str):
        return None
    names = {role: [key.text for key, _ in _entries(graph.get(role))] for role in ("inputs", "constants")}
    layers = LayerNames(FrozenMap(dict.fromkeys(names["constants"], LayerNames())))
    function = parse_forward(_as_forward(compute, names["inputs"], names["constants"]), layers)
    used = {
        node.id for node in ast.walk(function.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    unused = [key for role in names for key, _ in _entries(graph.get(role)) if key.text not in used]
    if unused:
        raise SpecError([mistake_at(key, f"{key.text!r} is used nowhere in `compute`: remove it") for key in unused])
    return function


def _entries(node: Node | None) -> tuple[tuple[Scalar, Node], ...]:
    return node.entries if isinstance(node, Fields) else ()


def _as_forward(compute: Scalar, inputs: list[str], constants: list[str]) -> Scalar:
    """The text as the body of a method, each piece of it still known to stand where it was written."""
    head = f"def forward({', '.join(['self', *inputs])}):\n"
    if constants:
        head += f"    {', '.join(constants)} = {', '.join(f'self.{name}' for name in constants)}\n"
    lead = Piece(head + ("    return " if _is_expression(compute.text) else "    "), compute.start, True)
    body = (replace(piece, text=piece.text.replace("\n", "\n    ")) for piece in compute.pieces)
    pieces = (lead, *body)
    return replace(compute, value="".join(piece.text for piece in pieces), pieces=pieces)


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return not re.search(r"^\s*return\b|\n\s*\S", text)  # said of what is no Python either
    return True


def desugar(graph: GraphSpec, function: Function, written: Fields) -> Desugared:
    """Return the module, inputs and parameters of a graph whose compute is `function`.

    Raises SpecError, placed in `written`, for a bias whose scale follows from nothing, and for another number of
    results than of outputs.
    """
    known = {name: tensor.qparams for name, tensor in (*graph.inputs.items(), *graph.constants.items())}
    qparams: dict[str, TensorQParams | None] = {name: params for name, params in known.items() if params is not None}
    mistakes: list[Mistake] = []
    for name, tensor in graph.constants.items():
        if tensor.dtype is Dtype.INT32 and name not in qparams:
            qparams[name] = params = _bias_params(name, function, known)
            if params is None or len(params.scale) not in (1, *tensor.shape[:1]):
                mistakes.append(mistake_at(_place(written, "constants", name), _NO_BIAS.format(name)))
    returned = _returned(function)
    if returned not in (None, len(graph.output)):
        message = f"expected {returned} outputs, as `compute` returns, found {len(graph.output)}"
        mistakes.append(mistake_at(_place(written, "output"), message))
    if mistakes:
        raise SpecError(mistakes)
    for number, result in enumerate(graph.output):
        qparams[f"output_{number}"] = None if result is None else result.qparams
    return Desugared(
        Composite(FrozenMap({name: _parameter(tensor) for name, tensor in graph.constants.items()}), function),
        FrozenMap({name: _input(tensor) for name, tensor in graph.inputs.items()}),
        FrozenMap({name: Draw.model_construct(**tensor.drawn) for name, tensor in graph.constants.items()}),
        FrozenMap(qparams),
    )


_NO_BIAS = (
    "the scale of bias {!r} is that of its operator's input times that of its weight, which are expected to be an "
    "input and a constant before it, with as many channels: write its `scale`"
)


def _place(written: Fields, *path: str) -> Node:
    node: Node = written
    for name in path:
        assert isinstance(node, Fields)
        node = node.get(name) or node
    return node


def _parameter(tensor: GraphTensor) -> ModuleSource:
    text = f"nn.Parameter(torch.zeros({list(tensor.shape)}))"
    tree = check_expression(text)
    assert isinstance(tree, ast.Expression)
    return Leaf(Expression(text, tree))


def _input(tensor: GraphTensor) -> TensorSpec:
    return TensorSpec.model_construct(shape=tensor.shape, dtype=tensor.dtype, **tensor.drawn)


def _bias_params(name: str, function: Function, known: Mapping[str, TensorQParams | None]) -> TensorQParams | None:
    """The product of the parameters of the two tensors before the bias, None where these are not known."""
    for first, second in _before(name, function):
        x, weight = known.get(first), known.get(second)
        if x is None or weight is None or x.axis is not None:
            continue
        scale = tuple(x.scale[0] * each for each in weight.scale)
        return TensorQParams(Dtype.INT32, scale, (0,) * len(scale), None if weight.axis is None else 0)
    return None


def _before(name: str, function: Function) -> Iterator[tuple[str, str]]:
    """The names of the first two arguments of each call that takes the name."""
    for node in ast.walk(function.tree):
        if isinstance(node, ast.Call):
            named = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [value.id if isinstance(value, ast.Name) else "" for value in named]
            if name in texts[2:]:
                yield texts[0], texts[1]


def _returned(function: Function) -> int | None:
    """How many results the text returns, None where it doesn't say."""
    returns = [node.value for node in ast.walk(function.tree) if isinstance(node, ast.Return)]
    values: list[Any] = [value for value in returns if isinstance(value, ast.Tuple | ast.List)]
    return len(values[-1].elts) if values else None
