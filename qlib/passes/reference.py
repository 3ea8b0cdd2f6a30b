"""From the debug to the reference form: the same integers as the final form, spelled out in ATen operators alone.

What a kernel does is written here a second time, in operators that every consumer of ATen graphs knows:

    sums, products, look-ups     int64, by matmul, mul and index
    requantize                   acc.to(float64) * multiplier -> round -> + zero_point -> clamp -> to(dtype)
    quantize, dequantize         float32, where the graph meets floats; NaN is stored as the least integer

Two kinds of operators hold integers in float64, because ATen has no kernels for integers: selections by order other
than `max_pool2d` and `max_pool3d`, which compute nothing, and means, whose sums of integers are exact and whose
division is the scale of their requantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qlib.arith import MIN_SCALE
from qlib.graph import copy_of, finish, op_name
from qlib.kernels import KERNELS, Runtime, Site, Source
from qlib.kernels.kernel import Result
from qlib.ops import Family, When
from qlib.regions import all_models
from qlib.rewrite import Match, find

_OPS = torch.ops.qlib
_ATEN = torch.ops.aten
_AT_RUN_TIME = (_OPS.dequantize_per_tensor.tensor, _OPS.dequantize_per_token.default)


def reference(debug: fx.GraphModule) -> fx.GraphModule:
    """Return the reference form of a converted graph: integers as in the final form, in ATen operators only.

    It equals the final form but for ties, and `qlib.implementation("reference")` exactly. Operators whose kernel has no
    entry in `REWRITES` stay in float between a dequantize and a quantize. Inputs of any batch size are taken where the
    debug form takes them. A range that is chosen at run time is not checked for infinity and NaN. As in the final form,
    ``meta["replaces"]`` names the debug node that a node takes the place of.
    """
    model = copy_of(debug)
    for part in all_models(model):
        _rewrite(part)
    finish(model)
    model.real_recompile()
    return model


def _rewrite(model: fx.GraphModule) -> None:
    held: dict[fx.Node, Source] = {}
    for node in list(model.graph.nodes):
        if node.target is _OPS.dequantize_per_tensor.default:
            held[node] = _source(node)
        match = find(node, lambda match: match.op.name == match.head.meta.get("operator"))
        if match is not None and match.op.kernel in REWRITES and (site := _site(model, match, held)) is not None:
            _replace(site, held)
    model.graph.eliminate_dead_code()
    for node in list(model.graph.nodes):
        if node.target in BORDERS:
            _spell(model.graph, node)


def _source(dequantize: fx.Node) -> Source:
    node, scale, zero_point = dequantize.args[:3]
    assert isinstance(node, fx.Node)
    return Source(node, float(scale), int(zero_point), node.meta["dtype"])  # type: ignore[arg-type]


def _site(model: fx.GraphModule, match: Match, held: Mapping[fx.Node, Source]) -> Site | None:
    """The place of an operator whose operands and result are quantized as its kernel needs, else None."""
    if match.op.when is not When.STATIC:
        quantized = match.operands[0]
        return Site(model, match, runtime=Runtime(quantized, ())) if quantized.target in _AT_RUN_TIME else None
    sources = tuple(held[node] for node in match.operands if node in held)
    if not sources or len(sources) < len(match.operands):
        return None
    if "dtype" not in match.tail.meta:  # a list of tensors: each item is quantized where it is taken out
        return Site(model, match, sources)
    users = list(match.tail.users)
    if len(users) != 1 or users[0].target is not _OPS.quantize_per_tensor.default:
        return None
    arguments: tuple[Any, ...] = users[0].args[1:]
    result = Result(*arguments)
    before, after = sources[0], (result.scale, result.zero_point, result.dtype)
    if match.op.family is Family.SHARED and (before.scale, before.zero_point, before.dtype) != after:
        return None
    return Site(model, match, sources, result)


def _replace(site: Site, held: dict[fx.Node, Source]) -> None:
    tail = site.match.tail
    place = tail if site.result is None else next(iter(tail.users))
    with site.model.graph.inserting_before(place):
        node = REWRITES[site.match.op.kernel](site)
    node.meta = {**place.meta, "replaces": place.name}
    if site.result is None and site.runtime is None:
        held[tail] = Source(node, site.sources[0].scale, site.sources[0].zero_point, site.sources[0].dtype)
        return
    place.replace_all_uses_with(node)
    site.model.graph.erase_node(place)


def _spell(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_before(node):
        new = BORDERS[node.target](graph, node)
    if isinstance(new, fx.Node):
        new.meta = {**node.meta, "replaces": node.name}
        node.replace_all_uses_with(new)
    else:
        for item in list(node.users):
            item.replace_all_uses_with(new[item.args[1]])  # type: ignore[index]
            graph.erase_node(item)
    graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    return graph.call_function(target, args)


def _with(graph: fx.Graph, packet: Any, x: fx.Node, other: fx.Node | float) -> fx.Node:
    """An operator of a tensor and a tensor or number, by the overload for it."""
    return _call(graph, packet.Tensor if isinstance(other, fx.Node) else packet.Scalar, x, other)


def _shifted(graph: fx.Graph, x: fx.Node, zero_point: fx.Node | int) -> fx.Node:
    """``x - zero_point`` in int64."""
    return _with(graph, _ATEN.sub, _call(graph, _ATEN.to.dtype, x, torch.int64), zero_point)


def _times(graph: fx.Graph, integers: fx.Node, multiplier: fx.Node | float) -> fx.Node:
    """Integers times a float64 multiplier, in float64."""
    return _with(graph, _ATEN.mul, _call(graph, _ATEN.to.dtype, integers, torch.float64), multiplier)


def _requantized(graph: fx.Graph, real: fx.Node, result: Result) -> fx.Node:
    """``clamp(round_half_even(real) + zero_point)`` for `real` in steps of the result."""
    rounded = _call(graph, _ATEN.round.default, real)
    moved = _call(graph, _ATEN.add.Scalar, rounded, result.zero_point)
    clamped = _call(graph, _ATEN.clamp.default, moved, result.qmin, result.qmax)
    return _call(graph, _ATEN.to.dtype, clamped, result.dtype)


def _weight(site: Site) -> fx.Node:
    """``w - w_zero_point`` in int64."""
    graph, (w, _, zero_point) = site.model.graph, site.weight
    if site.tensor(zero_point).dim():
        shape = [-1, *[1] * (site.tensor(w).dim() - 1)]
        zero_point = _call(graph, _ATEN.reshape.default, zero_point, shape)
    return _shifted(graph, w, zero_point)


def _linear_sums(site: Site, x: fx.Node) -> fx.Node:
    """``x W^T`` for shifted integers `x`."""
    graph = site.model.graph
    return _call(graph, _ATEN.matmul.default, x, _call(graph, _ATEN.transpose.int, _weight(site), 0, 1))


def _linear(site: Site) -> fx.Node:
    source = site.sources[0]
    return _scaled(site, _linear_sums(site, _shifted(site.model.graph, source.node, source.zero_point)), [-1])


def _linear_dynamic(site: Site) -> fx.Node:
    """``acc * (x_scale * w_scale) + bias`` in float64, rounded to float32."""
    assert site.runtime is not None
    graph, (integers, scale, zero_point) = site.model.graph, site.runtime.node.args
    assert isinstance(integers, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    acc = _linear_sums(site, _shifted(graph, integers, zero_point))
    weight_scale = site.constant("weight_scale_float64", site.tensor(site.weight[1]).double())
    step = _call(graph, _ATEN.mul.Tensor, _call(graph, _ATEN.to.dtype, scale, torch.float64), weight_scale)
    y = _times(graph, acc, step)
    if site.bias is not None:
        y = _call(graph, _ATEN.add.Tensor, y, _call(graph, _ATEN.to.dtype, site.bias, torch.float64))
    y = _call(graph, _ATEN.to.dtype, y, torch.float32)
    relu = site.match.op.chain[-1] == "aten::relu"
    return _call(graph, _ATEN.relu.default, y) if relu else y


def _scaled(site: Site, acc: fx.Node, shape: list[int]) -> fx.Node:
    """The sums with their bias, requantized; `shape` lays one value per channel along the channels."""
    graph, result = site.model.graph, site.bounded_result
    if site.bias is not None:
        bias = _call(graph, _ATEN.reshape.default, site.bias, shape)
        acc = _call(graph, _ATEN.add.Tensor, acc, bias)
    multiplier = site.sources[0].scale * site.tensor(site.weight[1]).double() / result.scale
    factor = site.constant("multiplier", multiplier.reshape(shape)) if multiplier.dim() else float(multiplier)
    return _requantized(graph, _times(graph, acc, factor), result)


def _conv(site: Site) -> fx.Node:
    """The windows laid out as rows by index, times the weights as columns: one matrix product per group."""
    graph, source, head = site.model.graph, site.sources[0], site.match.head
    stride, groups = head.args[3], int(head.args[6])  # type: ignore[arg-type]
    assert isinstance(stride, list | tuple)
    shape = [int(size) for size in site.match.operands[0].meta["shape"]]
    batched = len(shape) == len(stride) + 2
    x = _shifted(graph, source.node, source.zero_point)
    x = x if batched else _call(graph, _ATEN.unsqueeze.default, x, 0)
    rows, positions = _windows(site, x, shape[-len(stride) :])
    w = site.tensor(site.weight[0])
    columns = _call(graph, _ATEN.reshape.default, _weight(site), [groups, w.shape[0] // groups, w[0].numel()])
    acc = _call(graph, _ATEN.matmul.default, rows, _call(graph, _ATEN.transpose.int, columns, 1, 2))
    acc = _call(graph, _ATEN.transpose.int, acc, 2, 3)
    acc = _call(graph, _ATEN.reshape.default, acc, [-1, w.shape[0], *positions])
    y = _scaled(site, acc, [-1, *[1] * len(stride)])
    return y if batched else _call(graph, _ATEN.squeeze.dim, y, 0)


def _windows(site: Site, x: fx.Node, sizes: list[int]) -> tuple[fx.Node, list[int]]:
    """The windows of `x` (N, C, *spatial) as (N, groups, windows, C / groups * kernel), and their number per axis."""
    graph, head = site.model.graph, site.match.head
    stride, padding, dilation, groups = head.args[3:7]
    channels, *kernel = site.tensor(site.weight[0]).shape[1:]
    if any(padding):  # type: ignore[arg-type]
        x = _call(graph, _ATEN.constant_pad_nd.default, x, [side for p in reversed(padding) for side in (p, p)], 0)  # type: ignore[arg-type]
    positions = []
    for axis, (size, s, p, d, k) in enumerate(zip(sizes, stride, padding, dilation, kernel, strict=True)):  # type: ignore[arg-type]
        positions.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
        taken = torch.arange(positions[-1]).unsqueeze(1) * s + torch.arange(k) * d
        x = _call(graph, _ATEN.index_select.default, x, 2 + axis, site.constant("windows", taken.flatten()))
    pairs = [size for pair in zip(positions, kernel, strict=True) for size in pair]
    x = _call(graph, _ATEN.reshape.default, x, [-1, groups, channels, *pairs])
    outer, inner = range(3, 3 + len(pairs), 2), range(4, 4 + len(pairs), 2)
    x = _call(graph, _ATEN.permute.default, x, [0, 1, *outer, 2, *inner])
    count = torch.Size(positions).numel()
    return _call(graph, _ATEN.reshape.default, x, [-1, groups, count, channels * torch.Size(kernel).numel()]), positions


def _table(site: Site) -> fx.Node:
    """The kernel's table, or its tables for each channel, at the index of each stored integer."""
    graph = site.model.graph
    x, table = KERNELS[site.match.op.kernel].arguments(site)
    index = [_shifted(graph, x, torch.iinfo(site.sources[0].dtype).min)]
    if site.tensor(table).dim() == 2:
        _, channels, *rest = site.match.operands[0].meta["shape"]
        index.insert(0, site.constant("channels", torch.arange(channels).reshape(-1, *[1] * len(rest))))
    return _call(graph, _ATEN.index.Tensor, table, index)


def _rescaled(site: Site, source: Source) -> fx.Node:
    """An operand in steps of the result, in float64."""
    graph = site.model.graph
    integers = _shifted(graph, source.node, source.zero_point)
    return _times(graph, integers, source.scale / site.bounded_result.scale)


def _combine(site: Site) -> fx.Node:
    """A sum, difference or extremum, in steps of the result."""
    a, b = (_rescaled(site, source) for source in site.sources)
    graph = site.model.graph
    return _requantized(graph, _call(graph, site.match.head.target, a, b), site.bounded_result)


def _product(site: Site) -> fx.Node:
    """A product of two tensors, element by element or of matrices."""
    graph, (a, b), result = site.model.graph, site.sources, site.bounded_result
    pair = [_shifted(graph, source.node, source.zero_point) for source in (a, b)]
    product = _call(graph, site.match.head.target, *pair)
    return _requantized(graph, _times(graph, product, a.scale * b.scale / result.scale), result)


def _join(site: Site) -> fx.Node:
    graph, head = site.model.graph, site.match.head
    pieces = [_requantized(graph, _rescaled(site, source), site.bounded_result) for source in site.sources]
    return _call(graph, head.target, pieces, *head.args[1:])


_ON_INTEGERS = frozenset({"aten::max_pool2d", "aten::max_pool3d"})


def _chain(site: Site, x: fx.Node) -> fx.Node:
    """The float operators of the chain, on `x` instead."""
    for node in site.match.nodes:
        x = site.model.graph.call_function(node.target, (x, *node.args[1:]), node.kwargs)  # type: ignore[arg-type]
    return x


def _monotone(site: Site) -> fx.Node:
    graph, source = site.model.graph, site.sources[0]
    if op_name(site.match.head) in _ON_INTEGERS:
        return _chain(site, source.node)
    selected = _chain(site, _call(graph, _ATEN.to.dtype, source.node, torch.float64))
    return _call(graph, _ATEN.to.dtype, selected, source.dtype)


def _averaging(site: Site) -> fx.Node:
    assert site.result is not None
    graph, source = site.model.graph, site.sources[0]
    integers = _shifted(graph, source.node, source.zero_point)
    mean = _chain(site, _call(graph, _ATEN.to.dtype, integers, torch.float64))
    return _requantized(graph, mean, site.result)


def _as_it_is(site: Site) -> fx.Node:
    """The float operator on the stored integers, with the arguments that its kernel has."""
    return _call(site.model.graph, site.match.head.target, *KERNELS[site.match.op.kernel].arguments(site))


def _laid(graph: fx.Graph, node: fx.Node) -> tuple[Any, Any]:
    """Scale and zero point of a quantize or dequantize, laid beside the elements that they belong to."""
    scale, zero_point = node.args[1:3]
    if "per_group" in op_name(node):
        length = node.meta["shape"][-1]
        wide = [_call(graph, _ATEN.repeat_interleave.self_int, v, node.args[3], -1) for v in (scale, zero_point)]
        return tuple(_call(graph, _ATEN.slice.Tensor, v, -1, 0, length) for v in wide)  # type: ignore[return-value]
    if "per_channel" not in op_name(node):
        return scale, zero_point
    shape = [1] * len(node.meta["shape"])
    shape[int(node.args[3])] = -1  # type: ignore[arg-type]
    return _call(graph, _ATEN.reshape.default, scale, shape), _call(graph, _ATEN.reshape.default, zero_point, shape)


def _quantize(graph: fx.Graph, node: fx.Node) -> fx.Node:
    scale, zero_point = _laid(graph, node)
    qmin, qmax, dtype = node.args[-3:]
    steps = _with(graph, _ATEN.div, node.args[0], scale)  # type: ignore[arg-type]
    if dtype is not torch.float16:  # where the conversion rounds
        steps = _call(graph, _ATEN.round.default, steps)
    moved = _with(graph, _ATEN.add, steps, zero_point)
    if dtype is torch.int32:  # whose bounds are no float32 numbers
        moved = _call(graph, _ATEN.to.dtype, moved, torch.float64)
    clamped = _call(graph, _ATEN.clamp.default, moved, qmin, qmax)
    numbers = _call(graph, _ATEN.nan_to_num.default, clamped, float(qmin))  # type: ignore[arg-type]
    return _call(graph, _ATEN.to.dtype, numbers, dtype)


def _dequantize(graph: fx.Graph, node: fx.Node) -> fx.Node:
    scale, zero_point = _laid(graph, node)
    moved = _with(graph, _ATEN.sub, _call(graph, _ATEN.to.dtype, node.args[0], torch.float32), zero_point)
    return _with(graph, _ATEN.mul, moved, scale)


def _choose(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The scales and zero points of ranges at run time, as `qlib.arith.qparams_from_range` has them."""
    x, qmin, qmax, symmetric, _ = node.args
    assert isinstance(qmin, int) and isinstance(qmax, int)
    by_row = node.target is _OPS.choose_qparams_per_token.default
    x = x if by_row else _call(graph, _ATEN.flatten.using_ints, x)
    # Zero always belongs to the range; appended to the data it makes a range of empty data too.
    values = _call(graph, _ATEN.to.dtype, _call(graph, _ATEN.constant_pad_nd.default, x, [0, 1], 0), torch.float64)
    low, high = (_call(graph, extremum.default, values, [-1], by_row) for extremum in (_ATEN.amin, _ATEN.amax))
    middle = (qmin + qmax + 1) // 2
    if symmetric:
        size = _call(graph, _ATEN.maximum.default, _call(graph, _ATEN.neg.default, low), high)
        scale = _call(graph, _ATEN.div.Scalar, size, min(qmax - middle, middle - qmin))
    else:
        scale = _call(graph, _ATEN.div.Scalar, _call(graph, _ATEN.sub.Tensor, high, low), qmax - qmin)
    empty = _call(graph, _ATEN.eq.Scalar, scale, 0.0)
    scale = _call(graph, _ATEN.clamp.default, scale, MIN_SCALE)
    scale = _call(graph, _ATEN.to.dtype, _call(graph, _ATEN.masked_fill.Scalar, scale, empty, 1.0), torch.float32)
    if symmetric:
        point = _call(graph, _ATEN.add.Scalar, _call(graph, _ATEN.zeros_like.default, scale), middle)
    else:
        below = _call(graph, _ATEN.div.Tensor, low, _call(graph, _ATEN.to.dtype, scale, torch.float64))
        point = _call(graph, _ATEN.rsub.Scalar, _call(graph, _ATEN.round.default, below), qmin)
        point = _call(graph, _ATEN.clamp.default, point, qmin, qmax)
    return scale, _call(graph, _ATEN.to.dtype, point, torch.int32)


# How each kernel of the operator table is spelled out; an operator with another kernel stays in float.
REWRITES: Mapping[str, Callable[[Site], fx.Node]] = MappingProxyType(
    {
        "linear": _linear,
        "linear_dynamic": _linear_dynamic,
        "linear_per_token": _linear_dynamic,
        "conv": _conv,
        "table": _table,
        "channel_table": _table,
        "parametric_table": _table,
        "combine": _combine,
        "mul": _product,
        "matmul": _product,
        "join": _join,
        "monotone": _monotone,
        "averaging": _averaging,
        "move": _as_it_is,
        "pad": _as_it_is,
    }
)

# How the operators that every flow places by itself are spelled out; a choice of parameters gives two nodes.
BORDERS: Mapping[Any, Callable[[fx.Graph, fx.Node], fx.Node | tuple[fx.Node, fx.Node]]] = MappingProxyType(
    {
        _OPS.quantize_per_tensor.default: _quantize,
        _OPS.quantize_per_tensor.tensor: _quantize,
        _OPS.quantize_per_channel.default: _quantize,
        _OPS.dequantize_per_tensor.default: _dequantize,
        _OPS.dequantize_per_tensor.tensor: _dequantize,
        _OPS.dequantize_per_channel.default: _dequantize,
        _OPS.quantize_per_token.default: _quantize,
        _OPS.dequantize_per_token.default: _dequantize,
        _OPS.dequantize_per_group.default: _dequantize,
        _OPS.choose_qparams.default: _choose,
        _OPS.choose_qparams_per_token.default: _choose,
    }
)
