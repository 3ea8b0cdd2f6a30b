"""Tables of integers that are looked up by row; only the rows that are asked for become floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.kernels.weight_only import STORED, Stored, stored_weight
from qlib.ops import Op

BAG = "Tensor indices, Tensor offsets, Tensor? factors, int mode, bool include_last_offset"


def _plain_embedding(op: Op) -> Implementation:
    def embedding(w, scale, zero_point, group_size, indices):  # type: ignore[no-untyped-def]
        return Stored(w, scale, zero_point, group_size).real(torch.float64)[indices].to(torch.float32)

    return embedding


def _quick_embedding(op: Op) -> Implementation:
    def embedding(w, scale, zero_point, group_size, indices):  # type: ignore[no-untyped-def]
        rows = Stored(w, scale, zero_point, group_size).rows(indices.flatten()).real(torch.float32)
        return rows.reshape(*indices.shape, w.shape[1])

    return embedding


def _gathered(rows: Tensor, indices: Tensor, offsets: Tensor, factors: Tensor | None, *how: Any) -> Tensor:
    mode, include_last = how
    factors = None if factors is None else factors.to(rows.dtype)
    bags = torch.ops.aten.embedding_bag.default
    y: Tensor = bags(rows, indices, offsets, False, mode, False, factors, include_last)[0]
    return y


def _plain_bag(op: Op) -> Implementation:
    def embedding_bag(w, scale, zero_point, group_size, *bags):  # type: ignore[no-untyped-def]
        return _gathered(Stored(w, scale, zero_point, group_size).real(torch.float64), *bags).to(torch.float32)

    return embedding_bag


def _quick_bag(op: Op) -> Implementation:
    def embedding_bag(w, scale, zero_point, group_size, indices, *bags):  # type: ignore[no-untyped-def]
        rows = Stored(w, scale, zero_point, group_size).rows(indices.flatten()).real(torch.float32)
        return _gathered(rows, torch.arange(rows.shape[0], dtype=indices.dtype), *bags)

    return embedding_bag


def _embedding_arguments(site: Site) -> tuple[object, ...]:
    return (*stored_weight(site), site.match.head.args[1])


def _bag_arguments(site: Site) -> tuple[object, ...]:
    indices, offsets, _, mode, _, factors, include_last = site.match.head.args[1:8]
    return (*stored_weight(site), indices, offsets, factors, mode, include_last)


def _embedding_fake(op: Op) -> Implementation:
    return lambda w, scale, zero_point, group_size, indices: scale.new_empty((*indices.shape, w.shape[1]))


def _bag_fake(op: Op) -> Implementation:
    def fake(w, scale, *rest):  # type: ignore[no-untyped-def]
        offsets, include_last = rest[3], rest[-1]
        return scale.new_empty((offsets.shape[0] - int(include_last), w.shape[1]))

    return fake


def _kernel(
    doc: str,
    arguments: Callable[[Site], tuple[object, ...]],
    schema: str,
    builders: tuple[Callable[[Op], Implementation], ...],
) -> Kernel:
    plain, quick, fake = builders
    return Kernel(doc, arguments, lambda op: f"({STORED}, {schema}) -> Tensor", plain, quick, fake)


EMBEDDING = _kernel(
    "rows of a table of integers, as floats",
    _embedding_arguments,
    "Tensor indices",
    (_plain_embedding, _quick_embedding, _embedding_fake),
)
EMBEDDING_BAG = _kernel(
    "sums, means or maxima of rows of a table of integers, as floats",
    _bag_arguments,
    BAG,
    (_plain_bag, _quick_bag, _bag_fake),
)
