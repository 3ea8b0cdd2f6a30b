"""One way of writing poolings: with their stride, and maxima without the indices that nobody uses."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import fx
from torch._ops import OpOverload

from qlib.frontends.reductions import Rewrite
from qlib.graph import become

_aten = torch.ops.aten


def _pool_stride(node: fx.Node) -> None:
    """A pooling without a stride steps by its kernel."""
    x, kernel, stride, *rest = node.args
    node.args = (x, kernel, stride or kernel, *rest)


_PLAIN_POOLS = MappingProxyType(
    {
        _aten.max_pool1d_with_indices.default: _aten.max_pool1d.default,
        _aten.max_pool2d_with_indices.default: _aten.max_pool2d.default,
        _aten.max_pool3d_with_indices.default: _aten.max_pool3d.default,
    }
)


def _pool_with_indices(node: fx.Node) -> None:
    """A maximum whose indices nobody uses."""
    _pool_stride(node)
    if all(user.args[1] == 0 for user in node.users):
        for user in list(node.users):
            node.meta.update(shape=user.meta["shape"], dtype=user.meta["dtype"])
            user.replace_all_uses_with(node)
            node.graph.erase_node(user)
        become(node, _PLAIN_POOLS[node.target], *node.args)  # type: ignore[index]


POOLS: tuple[tuple[Rewrite, tuple[OpOverload, ...]], ...] = (
    (_pool_stride, (_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default)),
    (_pool_stride, (_aten.avg_pool1d.default, _aten.avg_pool2d.default, _aten.avg_pool3d.default)),
    (_pool_with_indices, tuple(_PLAIN_POOLS)),
)
