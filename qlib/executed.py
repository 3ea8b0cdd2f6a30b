"""What a graph executes, by exact canonical names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx
from torch.utils import _pytree as pytree

from qlib.graph import attribute, op_name
from qlib.kernels import KERNELS
from qlib.ops import BY_HEAD, OPS, Op, When
from qlib.regions import Region, all_models, inner_model, region_in
from qlib.rewrite import DEQUANTIZE

# Library operators whose results are real numbers, or parameters.
_TO_FLOAT = frozenset(
    {*DEQUANTIZE, "qlib::choose_qparams", "qlib::choose_qparams_per_token"}
    | {f"qlib::{op.short_name}" for op in OPS.values() if op.when is not When.STATIC}
)


def sequence(model: fx.GraphModule) -> tuple[str, ...]:
    """The operators of a graph in order, by canonical name: `quantized::X` on integers, `aten::X` in float.

    Fetching an item of a list is not named. The operators of branches and loops that the data decides are listed
    where the region stands, once for each of its graphs, however often they run.
    """
    return tuple(name for node, name in named(model) if op_name(node) != "getitem")


def named(model: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Each node that calls an operator, those of branches and loops included, with its canonical name."""
    return _named(model, set())


def _named(model: fx.GraphModule, integers: set[fx.Node]) -> Iterator[tuple[fx.Node, str]]:
    for node in model.graph.nodes:
        region = region_in(model, node)
        if region is not None:
            yield from _named_in(model, region, integers)
            continue
        name = _canonical(node, integers)
        if name.startswith("quantized::") and op_name(node) not in _TO_FLOAT:
            integers.add(node)
        if name:
            yield node, name


def _named_in(model: fx.GraphModule, region: Region, integers: set[fx.Node]) -> Iterator[tuple[fx.Node, str]]:
    for position, operand in enumerate(region.operands):
        if operand in integers:
            integers.update(region.entries(position))
    for reference in region.references:
        yield from _named(inner_model(model, reference), integers)
    for position in region.results:
        if integers.issuperset(region.yielded(position)):
            integers.update(region.taken(position))


def executed_ops(model: fx.GraphModule) -> dict[str, int]:
    """Count the operators of a graph by canonical name, as `sequence` lists them."""
    return dict(sorted(Counter(sequence(model)).items()))


def native_ops(model: fx.GraphModule) -> dict[str, int]:
    """Count the operators of a graph by the names that torch knows them by."""
    named = (op_name(node) for part in all_models(model) for node in part.graph.nodes)
    return dict(sorted(Counter(name for name in named if "::" in name).items()))


def _canonical(node: fx.Node, integers: set[fx.Node]) -> str:
    name = op_name(node)
    if name.startswith("qlib::"):
        return f"quantized::{name.removeprefix('qlib::')}"
    if any(source in integers for source in node.all_input_nodes):
        row = next((op for op in BY_HEAD.get(name, ()) if _runs_as_it_is(op)), None)
        return row.name if row is not None else name
    return name


def _runs_as_it_is(op: Op) -> bool:
    return KERNELS[op.kernel].schema is None


def output_scales(model: fx.GraphModule) -> tuple[float | None, ...]:
    """The step of each output tensor, nested outputs flattened in order; None for one that is no dequantized tensor."""
    output = next(node for node in model.graph.nodes if node.op == "output")
    return tuple(
        float(node.args[1]) if node.target is torch.ops.qlib.dequantize_per_tensor.default else None  # type: ignore[arg-type]
        for node in pytree.tree_leaves(output.args[0])
        if isinstance(node, fx.Node)
    )


def scales(model: fx.GraphModule) -> tuple[float, ...]:
    """Every scale that a converted graph quantizes or dequantizes by and that is known before it runs."""
    found: list[float] = []
    for part in all_models(model):
        for node in part.graph.nodes:
            if op_name(node).startswith(("qlib::quantize_per_", "qlib::dequantize_per_")):
                found += _stored_scales(part, node.args[1])
    return tuple(found)


def _stored_scales(model: fx.GraphModule, scale: object) -> list[float]:
    if isinstance(scale, float):
        return [scale]
    if isinstance(scale, fx.Node) and scale.op == "get_attr":
        return list(attribute(model, str(scale.target)).flatten().tolist())
    return []
