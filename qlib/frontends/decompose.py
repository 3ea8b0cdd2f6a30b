"""Operators that are written as several others: attention, gates, recurrent cells, and matrix products with a sum."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import map_arg

from qlib.graph import become

_aten = torch.ops.aten
Rewrite = Callable[[fx.Node], None]


def _put(place: fx.Node, target: OpOverload, *args: Any, **keywords: Any) -> fx.Node:
    """A call before `place`, as if it came from the same line, with the shape and type of its result."""
    positional = [a for a in target._schema.arguments if not a.kwarg_only]
    args = (*args, *(a.default_value for a in positional[len(args) :]))
    with place.graph.inserting_before(place):
        node = place.graph.call_function(target, args, keywords)
    result = target(*map_arg(args, _like), **keywords, **({"device": "meta"} if keywords else {}))
    node.meta = {**place.meta, "shape": tuple(result.shape), "dtype": result.dtype}
    return node


def _like(node: fx.Node) -> torch.Tensor:
    return torch.empty(node.meta["shape"], dtype=node.meta["dtype"], device="meta")


def _stand_for(node: fx.Node, result: fx.Node) -> None:
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _transposed_weight(node: Any) -> fx.Node | None:
    """The parameter of which `node` is the transpose, None where it is none."""
    if not isinstance(node, fx.Node) or node.target is not _aten.transpose.int or len(node.meta["shape"]) != 2:
        return None
    weight = node.args[0]
    turned = {node.args[1], node.args[2]} in ({0, 1}, {0, -1}, {1, -2}, {-1, -2})
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" and turned else None


def _product(node: fx.Node) -> None:
    """A product with the transpose of a parameter is a linear layer."""
    weight = _transposed_weight(node.args[1])
    if weight is not None:
        become(node, _aten.linear.default, node.args[0], weight, None)
    elif node.target is _aten.mm.default:
        become(node, _aten.matmul.default, *node.args)


def _times(node: fx.Node, x: fx.Node, factor: Any) -> fx.Node:
    return x if factor == 1 else _put(node, _aten.mul.Tensor, x, factor)


def _product_and_sum(product: OpOverload) -> Rewrite:
    """``beta * c + alpha * a @ b``: a linear layer where `b` and `c` are its parameters, else a product and a sum."""

    def rewrite(node: fx.Node) -> None:
        c, a, b = node.args
        alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
        weight = _transposed_weight(b)
        bias = isinstance(c, fx.Node) and c.op == "get_attr" and len(c.meta["shape"]) == 1
        assert isinstance(c, fx.Node)
        if weight is not None and bias and alpha == beta == 1 and c.meta["shape"][0] == node.meta["shape"][1]:
            become(node, _aten.linear.default, a, weight, c)
            return
        scaled = _times(node, _put(node, product, a, b), alpha)
        _stand_for(node, scaled if beta == 0 else _put(node, _aten.add.Tensor, scaled, _times(node, c, beta)))

    return rewrite


def _gated(node: fx.Node) -> None:
    """``glu(x) = a * sigmoid(b)``, a and b the halves of x."""
    x, dim = node.args
    assert isinstance(x, fx.Node)
    size = x.meta["shape"][dim]
    a, b = (_put(node, _aten.slice.Tensor, x, dim, start, start + size // 2, 1) for start in (0, size // 2))
    become(node, _aten.mul.Tensor, a, _put(node, _aten.sigmoid.default, b))


def _attention(node: fx.Node) -> None:
    """``softmax(q k^T * scale + mask) v``; with dropout, or with masked heads in groups, it is left as it is."""
    query, key, value, mask, dropout, causal = node.args
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
    if dropout or node.kwargs.get("enable_gqa", False):
        return
    scale = node.kwargs.get("scale") or 1 / math.sqrt(query.meta["shape"][-1])
    turned = _put(node, _aten.transpose.int, key, -2, -1)
    scores = _times(node, _put(node, _aten.matmul.default, query, turned), scale)
    if causal:
        everywhere = _put(node, _aten.ones.default, list(scores.meta["shape"][-2:]), dtype=torch.bool)
        hidden = _put(node, _aten.triu.default, everywhere, 1)
        scores = _put(node, _aten.masked_fill.Scalar, scores, hidden, -math.inf)
    if isinstance(mask, fx.Node) and mask.meta["dtype"] is torch.bool:
        hidden = _put(node, _aten.logical_not.default, mask)
        scores = _put(node, _aten.masked_fill.Scalar, scores, hidden, -math.inf)
    elif mask is not None:
        scores = _put(node, _aten.add.Tensor, scores, mask)
    # A row that is masked everywhere gives zeros, by the definition of the whole operator.
    softmax = _aten.softmax.int if mask is None else _aten._safe_softmax.default
    become(node, _aten.matmul.default, _put(node, softmax, scores, -1), value)


def _chunks(node: fx.Node, gates: fx.Node, count: int) -> list[fx.Node]:
    """The gates of a cell, one node each."""
    with node.graph.inserting_before(node):
        pieces = node.graph.call_function(_aten.chunk.default, (gates, count, 1))
        items = [node.graph.call_function(operator.getitem, (pieces, index)) for index in range(count)]
    batch, size = gates.meta["shape"]
    pieces.meta = {key: value for key, value in node.meta.items() if key not in ("shape", "dtype")}
    for item in items:
        item.meta = {**pieces.meta, "shape": (batch, size // count), "dtype": gates.meta["dtype"]}
    return items


def _linear(node: fx.Node, *args: Any) -> fx.Node:
    return _put(node, _aten.linear.default, *args)


def _lstm_cell(node: fx.Node) -> None:
    """As `torch.nn.LSTMCell` defines it; the same operators, in the same order, as torch's own decomposition."""
    x, state, w_ih, w_hh, b_ih, b_hh = node.args
    assert isinstance(state, list | tuple)
    h, c = state
    gates = _put(node, _aten.add.Tensor, _linear(node, h, w_hh, b_hh), _linear(node, x, w_ih, b_ih))
    i, f, g, o = _chunks(node, gates, 4)
    i, f = (_put(node, _aten.sigmoid.default, gate) for gate in (i, f))
    g, o = _put(node, _aten.tanh.default, g), _put(node, _aten.sigmoid.default, o)
    kept, new = _put(node, _aten.mul.Tensor, f, c), _put(node, _aten.mul.Tensor, i, g)
    last = _put(node, _aten.add.Tensor, kept, new)
    hidden = _put(node, _aten.mul.Tensor, o, _put(node, _aten.tanh.default, last))
    for item in list(node.users):
        _stand_for(item, (hidden, last)[item.args[1]])  # type: ignore[index]
    node.graph.erase_node(node)


def _gru_cell(node: fx.Node) -> None:
    """As `torch.nn.GRUCell` defines it; the same operators, in the same order, as torch's own decomposition."""
    x, h, w_ih, w_hh, b_ih, b_hh = node.args
    x_gates = _chunks(node, _linear(node, x, w_ih, b_ih), 3)
    h_gates = _chunks(node, _linear(node, h, w_hh, b_hh), 3)
    r, z = (
        _put(node, _aten.sigmoid.default, _put(node, _aten.add.Tensor, *pair))
        for pair in zip(h_gates[:2], x_gates[:2], strict=True)
    )
    inner = _put(node, _aten.add.Tensor, x_gates[2], _put(node, _aten.mul.Tensor, h_gates[2], r))
    n = _put(node, _aten.tanh.default, inner)
    moved = _put(node, _aten.mul.Tensor, _put(node, _aten.sub.Tensor, h, n), z)
    become(node, _aten.add.Tensor, moved, n)


def _plain_cell(curve: OpOverload) -> Rewrite:
    """As `torch.nn.RNNCell` defines it."""

    def rewrite(node: fx.Node) -> None:
        x, h, w_ih, w_hh, b_ih, b_hh = node.args
        become(node, curve, _put(node, _aten.add.Tensor, _linear(node, h, w_hh, b_hh), _linear(node, x, w_ih, b_ih)))

    return rewrite


def _chosen(node: fx.Node) -> None:
    """A choice between a tensor and a number fills the tensor with the number."""
    condition, a, b = node.args
    if isinstance(a, fx.Node):
        condition = _put(node, _aten.logical_not.default, condition)
    tensor, number = (a, b) if isinstance(a, fx.Node) else (b, a)
    assert isinstance(tensor, fx.Node)
    if tensor.meta["dtype"] == node.meta["dtype"]:
        become(node, _aten.masked_fill.Scalar, tensor, condition, number)


# Rewrites, each with the operators that it is for.
DECOMPOSED: tuple[tuple[Rewrite, tuple[OpOverload, ...]], ...] = (
    (_product, (_aten.mm.default, _aten.matmul.default)),
    (_product_and_sum(_aten.matmul.default), (_aten.addmm.default,)),
    (_product_and_sum(_aten.bmm.default), (_aten.baddbmm.default,)),
    (_gated, (_aten.glu.default,)),
    (_attention, (_aten.scaled_dot_product_attention.default,)),
    (_lstm_cell, (_aten.lstm_cell.default,)),
    (_gru_cell, (_aten.gru_cell.default,)),
    (_plain_cell(_aten.tanh.default), (_aten.rnn_tanh_cell.default,)),
    (_plain_cell(_aten.relu.default), (_aten.rnn_relu_cell.default,)),
    (_chosen, (_aten.where.ScalarOther, _aten.where.ScalarSelf)),
)
