"""Where operators of a debug graph meet integers: what stands behind their operands, how their result is quantized.

The forms that compute in integers differ in what they write at a place; the places are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from qlib.kernels import Runtime, Site, Source
from qlib.kernels.kernel import Result
from qlib.ops import Family, When
from qlib.rewrite import Match, find

_OPS = torch.ops.qlib
_AT_RUN_TIME = (_OPS.dequantize_per_tensor.tensor, _OPS.dequantize_per_token.default)


Write = Callable[[Site], fx.Node | tuple[fx.Node, ...]]


def replace_sites(model: fx.GraphModule, write: Write) -> None:
    """Replace each operator of a debug graph whose operands and result are quantized by the node that `write` gives.

    `write` adds its nodes at the insertion point; the one that it returns holds the operator's result: integers, or
    floats where the operator's results stay in float. Of several results it may return a node for each. The node
    carries the name of the debug node that it takes the place of in ``meta["replaces"]``. The graph is changed in
    place; nodes that lose their users stay in it.
    """
    lists: dict[fx.Node, Source] = {}
    for node in list(model.graph.nodes):
        match = find(node, lambda match: match.op.name == match.head.meta.get("operator"))
        if match is not None and (site := _site(model, match, lists)) is not None:
            _replace(site, write, lists)


def _site(model: fx.GraphModule, match: Match, lists: Mapping[fx.Node, Source]) -> Site | None:
    """The place where `match` can be replaced, None where its operands or its result are not quantized as it needs."""
    if match.op.when is When.WEIGHT_ONLY:
        return Site(model, match)
    if match.op.when is not When.STATIC:
        runtime = _runtime(match.operands[0])
        return None if runtime is None else Site(model, match, runtime=runtime)
    found = [_source(node, lists) for node in match.operands]
    sources = tuple(source for source in found if source is not None)
    if not sources or len(sources) < len(found):
        return None
    if "dtype" not in match.tail.meta:  # a list of tensors: each item is quantized where it is taken out
        return Site(model, match, sources)
    result = _result(match.tail)
    if result is None or (match.op.family is Family.SHARED and not _same(sources[0], result)):
        return None
    return Site(model, match, sources, result)


def _source(node: fx.Node, lists: Mapping[fx.Node, Source]) -> Source | None:
    """The integers that `node` dequantizes, or those of a list of tensors that was replaced already."""
    if node.target is _OPS.dequantize_per_tensor.default:
        integers, scale, zero_point = node.args[:3]
        assert isinstance(integers, fx.Node)
        return Source(integers, float(scale), int(zero_point), integers.meta["dtype"])  # type: ignore[arg-type]
    return lists.get(node)


def _runtime(node: fx.Node) -> Runtime | None:
    if node.target not in _AT_RUN_TIME:
        return None
    integers, scale, zero_point = node.args[:3]
    assert isinstance(integers, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    choice = scale.args[0]
    assert isinstance(choice, fx.Node)
    value = choice.args[0]
    assert isinstance(value, fx.Node)
    return Runtime(value, tuple(choice.args[1:]), integers, scale, zero_point)


def _result(tail: fx.Node) -> Result | None:
    """How the result is quantized, None unless a quantize is all that uses it."""
    users = list(tail.users)
    if len(users) != 1 or users[0].target is not _OPS.quantize_per_tensor.default:
        return None
    arguments: tuple[Any, ...] = users[0].args[1:]
    return Result(*arguments)


def _same(source: Source, result: Result) -> bool:
    return (source.scale, source.zero_point, source.dtype) == (result.scale, result.zero_point, result.dtype)


def _replace(site: Site, write: Write, lists: dict[fx.Node, Source]) -> None:
    tail, graph = site.match.tail, site.model.graph
    place = next(iter(tail.users)) if site.result is not None else tail
    with graph.inserting_before(place):
        node = write(site)
    if isinstance(node, tuple):
        _replace_items(tail, node)
        return
    node.meta.update(place.meta, replaces=place.name)
    if site.sources and site.result is None:
        lists[tail] = Source(node, site.sources[0].scale, site.sources[0].zero_point, site.sources[0].dtype)
        return
    place.replace_all_uses_with(node)
    graph.erase_node(place)
    if "dtype" not in node.meta:  # several results, each of which takes the place of its own
        for item in node.users:
            item.meta["replaces"] = item.name


def _replace_items(tail: fx.Node, results: tuple[fx.Node, ...]) -> None:
    """Put each result in the place of the nodes that take it out of the list."""
    for item in list(tail.users):
        result = results[item.args[1]]  # type: ignore[index]
        result.meta = {**item.meta, "replaces": item.name}
        item.replace_all_uses_with(result)
        item.graph.erase_node(item)
