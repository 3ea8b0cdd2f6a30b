"""Pooling, padding and movement on integers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Draft, aten, forms, names
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors
from torch import Tensor, fx

from qlib.executed import executed_ops
from qlib.kernels import Implementation, implementation

ops = torch.ops.qlib
BOTH = list(Implementation)
TYPES = [torch.uint8, torch.int8, torch.int16]


@st.composite
def integers(draw: st.DrawFn, dim: int) -> Tensor:
    dtype = draw(st.sampled_from(TYPES))
    info, random = torch.iinfo(dtype), torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    spatial = draw(st.lists(st.integers(5, 8), min_size=dim, max_size=dim))
    return torch.randint(info.min, info.max + 1, (draw(st.integers(1, 2)), 3, *spatial), generator=random).to(dtype)


@st.composite
def windows(draw: st.DrawFn, dim: int) -> tuple[list[int], list[int], list[int]]:
    kernel, stride = (draw(st.lists(st.integers(1, 3), min_size=dim, max_size=dim)) for _ in range(2))
    return kernel, draw(st.sampled_from([stride, []])), [draw(st.integers(0, k // 2)) for k in kernel]


def pool(name: str, *args: Any) -> Tensor:
    result = getattr(aten, name).default(*args)
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dim", [1, 2, 3])
@given(data=st.data())
def test_maximum_of_windows(name: str, dim: int, data: st.DataObject) -> None:
    x = data.draw(integers(dim))
    kernel, stride, padding = data.draw(windows(dim))
    rest = (kernel, stride, padding, [data.draw(st.integers(1, 2))] * dim, data.draw(st.booleans()))
    with implementation(name):
        found = getattr(ops, f"max_pool{dim}d")(x, *rest)
    assert found.dtype is x.dtype
    assert torch.equal(found.double(), pool(f"max_pool{dim}d", x.double(), *rest))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_window_that_lies_in_the_padding_alone_gives_the_least_integer(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[[7]]], dtype=dtype)
    with implementation(name):
        assert ops.max_pool1d(x, [2], [1], [1], [2], False).item() == torch.iinfo(dtype).min


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dim", [1, 2, 3])
@given(data=st.data())
def test_mean_of_windows(name: str, dim: int, data: st.DataObject) -> None:
    x = data.draw(integers(dim))
    kernel, stride, padding = data.draw(windows(dim))
    divisor = (data.draw(st.sampled_from([None, 5])),) if dim > 1 else ()
    rest = (kernel, stride, padding, data.draw(st.booleans()), data.draw(st.booleans()), *divisor)
    check_mean(name, f"avg_pool{dim}d", x, rest, data.draw(zero_points(x.dtype)))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dim", [1, 2, 3])
@given(data=st.data())
def test_pooling_by_output_size(name: str, dim: int, data: st.DataObject) -> None:
    x = data.draw(integers(dim))
    size = data.draw(st.lists(st.integers(1, 5), min_size=dim, max_size=dim))
    with implementation(name):
        largest = getattr(ops, f"adaptive_max_pool{dim}d")(x, size)
    assert torch.equal(largest.double(), pool(f"adaptive_max_pool{dim}d", x.double(), size))
    check_mean(name, f"adaptive_avg_pool{dim}d", x, (size,), data.draw(zero_points(x.dtype)))


def zero_points(dtype: torch.dtype) -> st.SearchStrategy[int]:
    info = torch.iinfo(dtype)
    return st.integers(info.min, info.max)


def check_mean(name: str, op: str, x: Tensor, rest: tuple[Any, ...], zero_point: int) -> None:
    info = torch.iinfo(x.dtype)
    target = Target(1.0, zero_point, info.min, info.max, x.dtype)
    with implementation(name):
        found = getattr(ops, op)(x, zero_point, info.min, info.max, *rest)
    shifted = x.double() - zero_point
    assert errors(found, pool(op, shifted, *rest), pool(op, shifted.abs(), *rest), target) == 0


@pytest.mark.parametrize("name", BOTH)
def test_padding_of_a_mean_is_a_real_zero(name: str) -> None:
    x = torch.full((1, 1, 2), 110, dtype=torch.uint8)
    with implementation(name):
        counted = ops.avg_pool1d(x, 100, 0, 255, [2], [2], [1], False, True)
        left_out = ops.avg_pool1d(x, 100, 0, 255, [2], [2], [1], False, False)
    assert counted.flatten().tolist() == [105, 105]
    assert left_out.flatten().tolist() == [110, 110]


@pytest.mark.parametrize("name", BOTH)
def test_a_mean_stays_within_a_narrow_range(name: str) -> None:
    x = torch.tensor([[[0, 0, 127, 127]]], dtype=torch.uint8)
    with implementation(name):
        assert ops.avg_pool1d(x, 0, 10, 100, [2]).flatten().tolist() == [10, 100]


MOVES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "reshape": (aten.reshape.default, ([2, 12],)),
    "flatten": (aten.flatten.using_ints, (1,)),
    "unflatten": (aten.unflatten.int, (2, [2, 2])),
    "permute": (aten.permute.default, ([2, 0, 1],)),
    "transpose": (aten.transpose.int, (0, 2)),
    "squeeze": (aten.squeeze.dim, (0,)),
    "unsqueeze": (aten.unsqueeze.default, (1,)),
    "slice": (aten.slice.Tensor, (1, 1, 3)),
    "select": (aten.select.int, (1, 2)),
    "repeat": (aten.repeat.default, ([2, 1, 1, 2],)),
    "expand": (aten.expand.default, ([5, 2, 3, 4],)),
    "pixel_shuffle": (aten.pixel_shuffle.default, (1,)),
    "pixel_unshuffle": (aten.pixel_unshuffle.default, (1,)),
    "channel_shuffle": (aten.channel_shuffle.default, (3,)),
    "roll": (aten.roll.default, ([1, 2], [0, -1])),
    "flip": (aten.flip.default, ([0, 2],)),
    "rot90": (aten.rot90.default, (1, [0, 2])),
    "tile": (aten.tile.default, ([2, 1],)),
    "repeat_interleave": (aten.repeat_interleave.self_int, (2, 1)),
    "amax": (aten.amax.default, ([0, 2], True)),
    "amin": (aten.amin.default, ([], False)),
    "constant_pad_nd": (aten.constant_pad_nd.default, ([1, 2],)),
}


@pytest.mark.parametrize("preset", ["default", "int8", "int16"])
@pytest.mark.parametrize("name", sorted(MOVES))
def test_data_is_moved_as_integers(name: str, preset: str) -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3, 6), 4)
    target, args = MOVES[name]
    moved = draft.call(target, layer, *args)
    model = draft.done(moved)
    found = forms(model, preset)
    assert names(found.final) == ["quantize_per_tensor", "linear", name, "dequantize_per_tensor"]
    assert executed_ops(found.final)[f"quantized::{name}"] == 1
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


LISTS: dict[str, tuple[Any, Any]] = {
    "chunk": (aten.chunk.default, 2),
    "split": (aten.split.Tensor, 3),
    "split_with_sizes": (aten.split_with_sizes.default, [1, 3]),
    "tensor_split": (aten.tensor_split.indices, [1]),
}


@pytest.mark.parametrize("name", sorted(LISTS))
def test_pieces_are_taken_from_integers(name: str) -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    target, size = LISTS[name]
    pieces = draft.call(target, layer, size, 1)
    items = [draft.call(operator.getitem, pieces, i) for i in (1, 0)]
    found = forms(draft.done(*items))
    wanted = ["quantize_per_tensor", "linear", name, "dequantize_per_tensor", "dequantize_per_tensor"]
    assert names(found.final) == wanted
    for a, b in zip(found.final(*found.inputs), found.debug(*found.inputs), strict=True):
        assert torch.equal(a, b)


PICKS: dict[str, tuple[Any, Callable[[fx.Node], tuple[Any, ...]]]] = {
    "index": (aten.index.Tensor, lambda index: ([None, index],)),
    "index_select": (aten.index_select.default, lambda index: (1, index)),
    "gather": (aten.gather.default, lambda index: (1, index)),
}


@pytest.mark.parametrize("name", sorted(PICKS))
def test_indices_are_left_as_they_are(name: str) -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 6), 4)
    index = torch.tensor([3, 0, 3])
    target, args = PICKS[name]
    where = draft.constant("index", index.expand(2, 3).clone() if name == "gather" else index)
    found = forms(draft.done(draft.call(target, layer, *args(where))))
    assert names(found.final) == ["quantize_per_tensor", "linear", name, "dequantize_per_tensor"]
    assert executed_ops(found.final)[f"quantized::{name}"] == 1
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))


def test_all_indices_along_a_dimension() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 6), 4)
    pieces = draft.call(aten.unbind.int, layer, 0)
    found = forms(draft.done(*[draft.call(operator.getitem, pieces, i) for i in (1, 0)]))
    assert names(found.final) == ["quantize_per_tensor", "linear", "unbind", *["dequantize_per_tensor"] * 2]


ORDERED: dict[str, tuple[Any, ...]] = {"sort": (1, True), "topk": (2, 1, False)}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("op", sorted(ORDERED))
@pytest.mark.parametrize("dtype", TYPES)
def test_values_in_order(name: str, op: str, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    x = torch.randint(info.min, info.max + 1, (3, 5, 2), generator=torch.Generator().manual_seed(2)).to(dtype)
    with implementation(name):
        found = getattr(ops, op)(x, *ORDERED[op])
    assert found.dtype is dtype
    assert torch.equal(found.long(), getattr(torch, op)(x.long(), *ORDERED[op])[0])


def test_an_order_whose_indices_are_used_stays_in_float() -> None:
    draft = Draft()
    pair = draft.call(aten.sort.default, draft.linear(draft.input(2, 6), 4), 1)
    found = forms(draft.done(*[draft.call(operator.getitem, pair, i) for i in (0, 1)]))
    assert names(found.final) == ["quantize_per_tensor", "linear", "dequantize_per_tensor", "sort"]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dtype", TYPES)
@given(size=st.lists(st.integers(1, 40), min_size=2, max_size=2))
def test_nearest_elements(name: str, dtype: torch.dtype, size: list[int]) -> None:
    info = torch.iinfo(dtype)
    x = torch.randint(info.min, info.max + 1, (2, 3, 5, 7), generator=torch.Generator().manual_seed(2)).to(dtype)
    with implementation(name):
        found = ops.upsample_nearest2d(x, size, None)
    assert torch.equal(found.float(), torch.nn.functional.interpolate(x.float(), size))


def test_padding_with_anything_but_zero_stays_in_float() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    padded = draft.call(aten.constant_pad_nd.default, layer, [1, 1], 0.5)
    found = forms(draft.done(padded))
    assert names(found.final) == ["quantize_per_tensor", "linear", "dequantize_per_tensor", "constant_pad_nd"]
    assert torch.equal(found.final(*found.inputs), found.debug(*found.inputs))
