"""From the debug to the final form: each operator between a dequantize and a quantize becomes an integer kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qlib.graph import copy_of, finish
from qlib.kernels import Runtime, Site, Source, call_at
from qlib.kernels.kernel import Result
from qlib.ops import Family, When
from qlib.rewrite import Match, find

_OPS = torch.ops.qlib
_AT_RUN_TIME = (_OPS.dequantize_per_tensor.tensor, _OPS.dequantize_per_token.default)


def lower(debug: fx.GraphModule) -> fx.GraphModule:
    """Return the final form of a converted graph: integer kernels, integer weights, and float where no kernel fits.

    A node that takes over from a quantize of the debug form carries that node's name in ``meta["replaces"]``.
    """
    model = copy_of(debug)
    integers = _Integers()
    for node in list(model.graph.nodes):
        match = find(node, lambda match: match.op.name == match.head.meta.get("operator"))
        if match is not None and (site := _site(model, match, integers)) is not None:
            _replace(site, integers)
    finish(model)
    model.real_recompile()  # the form that is handed out looks like any module, before its first call too
    return model


class _Integers:
    """Where the integers behind a float node of the debug form are to be had."""

    def __init__(self) -> None:
        self._lists: dict[fx.Node, Source] = {}

    def behind(self, node: fx.Node) -> Source | None:
        """The integers that `node` dequantizes, or those of a list of tensors that was lowered already."""
        if node.target is _OPS.dequantize_per_tensor.default:
            source, scale, zero_point = node.args[:3]
            assert isinstance(source, fx.Node)
            return Source(source, float(scale), int(zero_point), source.meta["dtype"])  # type: ignore[arg-type]
        return self._lists.get(node)

    def add(self, node: fx.Node, source: Source) -> None:
        """Remember that the float list `node` is held as integers by ``source.node``."""
        self._lists[node] = source


def _site(model: fx.GraphModule, match: Match, integers: _Integers) -> Site | None:
    """The place where `match` can be replaced, None where its operands or its result are not quantized as it needs."""
    if match.op.when is When.WEIGHT_ONLY:
        return Site(model, match)
    if match.op.when is not When.STATIC:
        runtime = _runtime(match.operands[0])
        return None if runtime is None else Site(model, match, runtime=runtime)
    sources = [integers.behind(node) for node in match.operands]
    if not sources or None in sources:
        return None
    found = tuple(source for source in sources if source is not None)
    if "dtype" not in match.tail.meta:
        return Site(model, match, found)
    result = _result(match.tail)
    if result is None or (match.op.family is Family.SHARED and not _same(found[0], result)):
        return None
    return Site(model, match, found, result)


def _runtime(node: fx.Node) -> Runtime | None:
    if node.target not in _AT_RUN_TIME:
        return None
    quantized, scale = node.args[:2]
    assert isinstance(quantized, fx.Node) and isinstance(scale, fx.Node)
    choice = scale.args[0]
    assert isinstance(choice, fx.Node)
    value = choice.args[0]
    assert isinstance(value, fx.Node)
    return Runtime(value, tuple(choice.args[1:]))


def _result(tail: fx.Node) -> Result | None:
    """How the result is quantized, None unless a quantize is all that uses it."""
    users = list(tail.users)
    if len(users) != 1 or users[0].target is not _OPS.quantize_per_tensor.default:
        return None
    arguments: tuple[Any, ...] = users[0].args[1:]
    return Result(*arguments)


def _same(source: Source, result: Result) -> bool:
    return (source.scale, source.zero_point, source.dtype) == (result.scale, result.zero_point, result.dtype)


def _replace(site: Site, integers: _Integers) -> None:
    tail, graph = site.match.tail, site.model.graph
    place = next(iter(tail.users)) if site.result is not None else tail
    with graph.inserting_before(place):
        call = call_at(site)
        node = graph.call_function(call.target, call.arguments)
    node.meta = {**place.meta, "replaces": place.name}
    if site.sources and site.result is None:
        integers.add(tail, Source(node, site.sources[0].scale, site.sources[0].zero_point, site.sources[0].dtype))
        return
    place.replace_all_uses_with(node)
    graph.erase_node(place)
    if "dtype" not in node.meta:  # several results, each of which takes the place of its own
        for item in node.users:
            item.meta["replaces"] = item.name
