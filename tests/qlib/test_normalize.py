from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from qlib.frontends.normalize import REWRITES, fill_arguments, normalize, remove_dead_code

aten = torch.ops.aten


def one(target: Any, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> tuple[fx.Graph, fx.Node]:
    """A graph of one operator on one input, with the shapes that it has."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta = {"shape": shape, "dtype": torch.float32}
    node = graph.call_function(target, (x, *args), kwargs)
    result = target(torch.zeros(shape), *args, **kwargs)
    if isinstance(result, Tensor):
        node.meta = {"shape": tuple(result.shape), "dtype": result.dtype}
    graph.output(node)
    return graph, node


def call(graph: fx.Graph) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    nodes = graph.find_nodes(op="placeholder") and [node for node in graph.nodes if node.op == "call_function"]
    if not nodes:
        return None
    (node,) = nodes
    return str(node.target), node.args[1:], dict(node.kwargs)


def test_arguments_are_filled_in_the_order_of_the_schema() -> None:
    graph, node = one(aten.softmax.int, (2, 3), dim=1)
    fill_arguments(graph)
    assert node.args[1:] == (1, None)
    assert not node.kwargs


def test_keywords_only_stand_where_they_differ() -> None:
    graph, _ = one(aten.add.Tensor, (2, 3), 1, alpha=1)
    fill_arguments(graph)
    assert call(graph) == ("aten.add.Tensor", (1,), {})
    graph, _ = one(aten.add.Tensor, (2, 3), 1, alpha=2)
    fill_arguments(graph)
    assert call(graph) == ("aten.add.Tensor", (1,), {"alpha": 2})


def test_lists_have_their_full_length() -> None:
    graph, _ = one(aten.avg_pool2d.default, (1, 1, 4, 4), [2])
    normalize(graph)
    assert call(graph) == ("aten.avg_pool2d.default", ([2, 2], [2, 2], [0, 0], False, True, None), {})


ROWS = [
    (aten.view.default, (2, 3), ([6],), "aten.reshape.default", ([6],)),
    (aten.t.default, (2, 3), (), "aten.transpose.int", (0, 1)),
    (aten.mT.default, (4, 2, 3), (), "aten.transpose.int", (1, 2)),
    (aten.numpy_T.default, (4, 2, 3), (), "aten.permute.default", ([2, 1, 0],)),
    (aten.movedim.int, (4, 2, 3), (0, -1), "aten.permute.default", ([1, 2, 0],)),
    (aten.narrow.default, (4, 2), (0, -2, 1), "aten.slice.Tensor", (0, 2, 3, 1)),
    (aten.slice.Tensor, (4, 2), (0, -3, 2**63 - 1), "aten.slice.Tensor", (0, 1, 4, 1)),
    (aten.hardtanh.default, (2,), (0.0, 6.0), "aten.relu6.default", ()),
    (aten.hardtanh.default, (2,), (0.0, 5.0), "aten.hardtanh.default", (0.0, 5.0)),
    (aten.pad.default, (1, 2, 3), ([1, 1],), "aten.constant_pad_nd.default", ([1, 1], 0)),
    (aten.pad.default, (1, 2, 3), ([1, 1], "reflect"), "aten.reflection_pad1d.default", ([1, 1],)),
    (aten.pad.default, (1, 2, 3), ([1, 1], "circular"), "aten.pad.default", ([1, 1], "circular", None)),
    (aten.multiply.Tensor, (2,), (3,), "aten.mul.Tensor", (3,)),
    (aten.to.dtype, (2,), (torch.float64,), "aten.to.dtype", (torch.float64, False, False, None)),
    (aten.dropout.default, (2,), (0.5, True), "aten.dropout.default", (0.5, True)),
    (aten.mean.default, (2, 3), (), "aten.mean.dim", (None, False)),
    (aten.sum.default, (2, 3), (), "aten.sum.dim_IntList", (None, False)),
    (aten.max.default, (2, 3), (), "aten.amax.default", ([], False)),
    (aten.min.default, (2, 3), (), "aten.amin.default", ([], False)),
    (aten.upsample_nearest1d.default, (1, 2, 3), ([5],), "aten.upsample_nearest1d.vec", ([5], None)),
    (aten.upsample_linear1d.default, (1, 2, 3), ([5], True), "aten.upsample_linear1d.vec", ([5], True, None)),
    (aten.upsample_nearest1d.default, (1, 2, 3), ([5], 2.0), "aten.upsample_nearest1d.default", ([5], 2.0)),
    (aten.clamp_min.default, (2,), (0,), "aten.clamp_min.default", (0,)),
]


@pytest.mark.parametrize(("target", "shape", "args", "name", "expected"), ROWS, ids=lambda value: str(value)[:30])
def test_rewrites(target: Any, shape: tuple[int, ...], args: tuple[Any, ...], name: str, expected: Any) -> None:
    graph, _ = one(target, shape, *args)
    value = torch.randn(shape)
    before = fx.GraphModule({}, graph)(value) if "dropout" not in name else None
    normalize(graph)
    assert call(graph) == (name, expected, {})
    if before is not None:
        assert torch.equal(fx.GraphModule({}, graph)(value), before)


def test_a_reduction_keeps_the_type_that_it_is_asked_for() -> None:
    graph, _ = one(aten.sum.default, (2, 3), dtype=torch.float64)
    normalize(graph)
    assert call(graph) == ("aten.sum.dim_IntList", (None, False), {"dtype": torch.float64})


@pytest.mark.parametrize("used", [[0], [1], [0, 1]])
@pytest.mark.parametrize("name", ["max", "min"])
def test_an_extremum_without_its_indices(name: str, used: list[int]) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta = {"shape": (2, 3), "dtype": torch.float32}
    pair = graph.call_function(getattr(aten, name).dim, (x, 1, True))
    items = [graph.call_function(operator.getitem, (pair, i)) for i in (0, 1)]
    for item, dtype in zip(items, (torch.float32, torch.int64), strict=True):
        item.meta = {"shape": (2, 1), "dtype": dtype}
    graph.output(tuple(items[i] for i in used))
    value = torch.randn(2, 3)
    before = fx.GraphModule({}, graph)(value)
    normalize(graph)
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert (targets == [f"aten.a{name}.default"]) == (used == [0])
    assert all(torch.equal(*both) for both in zip(fx.GraphModule({}, graph)(value), before, strict=True))


def test_extrema_of_two_tensors_have_names_of_their_own() -> None:
    graph, _ = one(aten.max.other, (2,), torch.ones(2))
    normalize(graph)
    assert [str(n.target) for n in graph.nodes if n.op == "call_function"] == ["aten.maximum.default"]


IDENTITIES = [
    (aten.detach.default, ()),
    (aten.alias.default, ()),
    (aten.clone.default, ()),
    (aten.contiguous.default, ()),
    (aten.lift_fresh_copy.default, ()),
    (aten.to.dtype, (torch.float32,)),
    (aten.dropout.default, (0.5, False)),
    (aten.feature_dropout.default, (0.5, False)),
    (aten.alpha_dropout.default, (0.5, False)),
    (aten.slice.Tensor, (0, 0, 9)),
]


@pytest.mark.parametrize(("target", "args"), IDENTITIES, ids=str)
def test_operators_without_effect_vanish(target: Any, args: tuple[Any, ...]) -> None:
    graph, _ = one(target, (2, 3), *args)
    normalize(graph)
    assert call(graph) is None
    assert graph.output_node().args[0] in graph.find_nodes(op="placeholder")


def test_a_copy_into_another_memory_format_stays() -> None:
    graph, _ = one(aten.contiguous.default, (1, 2, 3, 3), memory_format=torch.channels_last)
    normalize(graph)
    assert call(graph) == ("aten.contiguous.default", (), {"memory_format": torch.channels_last})


def test_a_negative_and_a_number_are_a_difference() -> None:
    for target, keywords, expected in (
        (aten.add.Tensor, {}, "aten.rsub.Scalar"),
        (aten.add.Scalar, {}, "aten.rsub.Scalar"),
        (aten.sub.Scalar, {}, "aten.sub.Tensor"),
        (aten.add.Tensor, {"alpha": 2}, "aten.add.Tensor"),
    ):
        graph = fx.Graph()
        x = graph.placeholder("x")
        graph.output(graph.call_function(target, (graph.call_function(aten.neg.default, (x,)), 3), keywords))
        before = fx.GraphModule({}, copy.deepcopy(graph))(torch.arange(-4.0, 5))
        normalize(graph)
        last = graph.output_node().args[0]
        assert isinstance(last, fx.Node) and str(last.target) == expected
        assert torch.equal(fx.GraphModule({}, graph)(torch.arange(-4.0, 5)), before)


def test_dead_code_goes_and_changes_stay() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(aten.relu.default, (x,))
    graph.call_function(aten.copy_.default, (x, x, False))
    graph.output(x)
    remove_dead_code(graph)
    assert [str(node.target) for node in graph.nodes] == ["x", "aten.copy_.default", "output"]


def test_normal_form_is_stable() -> None:
    """What a rewrite makes is either no operator with a row, or comes out of that row as it went in."""
    for target, shape, args, _, _ in ROWS:
        graph, _ = one(target, shape, *args)
        normalize(graph)
        first = call(graph)
        normalize(graph)
        assert call(graph) == first
    assert all(isinstance(target, torch._ops.OpOverload) for target in REWRITES)
