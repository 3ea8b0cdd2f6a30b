from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from qlib.errors import CaptureError
from qlib.frontends.functionalize import Program, functionalize
from qlib.frontends.views import INVERSES, permutation

aten = torch.ops.aten
Build = Callable[[fx.Graph, fx.Node], Any]


def converted(build: Build, x: Tensor, state: dict[str, Tensor] | None = None) -> fx.Graph:
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return functionalize(Program(graph, state or {}, frozenset()), (x,))


def targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def test_an_in_place_operator_becomes_its_out_of_place_form() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        graph.call_function(aten.relu_.default, (y,))
        return y

    assert targets(converted(build, torch.ones(2))) == ["aten.mul.Tensor", "aten.relu.default"]


def test_a_changed_input_is_written_back_at_the_end() -> None:
    graph = converted(lambda graph, x: graph.call_function(aten.add_.Tensor, (x, 1)), torch.ones(2))
    assert targets(graph) == ["aten.add.Tensor", "aten.copy_.default"]
    x = torch.zeros(2)
    assert torch.equal(fx.GraphModule({}, graph)(x), torch.ones(2))
    assert torch.equal(x, torch.ones(2))


def test_the_example_is_not_changed() -> None:
    x = torch.zeros(2)
    converted(lambda graph, x: graph.call_function(aten.add_.Tensor, (x, 1)), x)
    assert torch.equal(x, torch.zeros(2))


def test_views_are_taken_anew_after_a_change() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        row = graph.call_function(aten.select.int, (y, 0, 1))
        graph.call_function(aten.add_.Tensor, (y, 1))
        return row

    graph = converted(build, torch.ones(2, 2))
    assert targets(graph) == ["aten.mul.Tensor", "aten.select.int", "aten.add.Tensor", "aten.select.int"]
    assert torch.equal(fx.GraphModule({}, graph)(torch.ones(2, 2)), torch.full((2,), 3.0))


VIEWS = [
    (aten.view.default, ([6],)),
    (aten.flatten.using_ints, (0, -1)),
    (aten.unsqueeze.default, (0,)),
    (aten.permute.default, ([1, 0],)),
    (aten.t.default, ()),
    (aten.transpose.int, (0, 1)),
    (aten.movedim.int, (0, 1)),
    (aten.select.int, (0, -1)),
    (aten.slice.Tensor, (1, 0, 3, 2)),
    (aten.narrow.default, (1, -2, 2)),
    (aten.diagonal.default, (1, 0, 1)),
    (aten.detach.default, ()),
    (aten.expand.default, ([1, 2, 3],)),
]
LISTS = [
    (aten.chunk.default, (2, 1), 1),
    (aten.split.Tensor, (2, 1), 1),
    (aten.split_with_sizes.default, ([1, 2], 1), 1),
    (aten.unbind.int, (1,), 2),
    (aten.tensor_split.sections, (2, 0), 0),
]


@pytest.mark.parametrize(("target", "args"), VIEWS, ids=str)
def test_a_change_through_a_view_reaches_the_tensor(target: Any, args: tuple[Any, ...]) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        graph.call_function(aten.add_.Tensor, (graph.call_function(target, (y, *args)), 1))
        return y

    x = torch.arange(6.0).reshape(2, 3)
    expected = x * 2
    target(expected, *args).add_(1)
    graph = converted(build, x)
    assert torch.equal(fx.GraphModule({}, graph)(x), expected)
    assert not any(name.removesuffix(".Tensor").endswith("_") for name in targets(graph))


@pytest.mark.parametrize(("target", "args", "index"), LISTS, ids=str)
def test_a_change_to_a_piece_reaches_the_tensor(target: Any, args: tuple[Any, ...], index: int) -> None:
    import operator

    def build(graph: fx.Graph, x: fx.Node) -> tuple[fx.Node, fx.Node]:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        pieces = graph.call_function(target, (y, *args))
        one, other = (graph.call_function(operator.getitem, (pieces, i)) for i in (index, 1 - min(index, 1)))
        graph.call_function(aten.add_.Tensor, (one, 1))
        return y, other

    x = torch.arange(6.0).reshape(2, 3)
    y = x * 2
    pieces = target(y, *args)
    pieces[index].add_(1)
    found = fx.GraphModule({}, converted(build, x))(x)
    assert torch.equal(found[0], y)
    assert torch.equal(found[1], pieces[1 - min(index, 1)])


def test_the_result_keeps_the_type_of_the_changed_tensor() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.mul.Tensor, (x, 2))
        return graph.call_function(aten.gt_.Scalar, (y, 1))

    graph = converted(build, torch.ones(2))
    assert targets(graph) == ["aten.mul.Tensor", "aten.gt.Scalar", "aten.to.dtype"]
    assert next(iter(reversed(graph.nodes))).args[0].meta["dtype"] == torch.float32


def test_buffers_are_written_back() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_function(aten.add_.Tensor, (graph.create_node("get_attr", "n"), x))

    state = {"n": torch.zeros(2)}
    graph = converted(build, torch.ones(2), state)
    assert targets(graph) == ["aten.add.Tensor", "aten.copy_.default"]
    assert torch.equal(state["n"], torch.zeros(2))


def refused(build: Build, state: dict[str, Tensor] | None = None) -> str:
    with pytest.raises(CaptureError) as caught:
        converted(build, torch.ones(4), state)
    return str(caught.value)


def test_what_is_refused() -> None:
    def unfolded(graph: fx.Graph, x: fx.Node) -> fx.Node:
        view = graph.call_function(aten.unfold.default, (x, 0, 2, 2))
        change = graph.call_function(aten.add_.Tensor, (view, 1))
        change.meta["source"] = "model.py:7"
        return x

    message = refused(unfolded)
    assert "aten.unfold.default" in message
    assert "model.py:7" in message
    assert "aten.unsqueeze_.default" in refused(lambda g, x: g.call_function(aten.unsqueeze_.default, (x, 0)))
    assert "a number" in refused(lambda g, x: g.call_function(aten.numel.default, (x,)))
    assert "ATen" in refused(lambda g, x: g.call_function(abs, (x,)))
    parameter = {"w": torch.nn.Parameter(torch.ones(4))}
    message = refused(lambda g, x: g.call_function(aten.add_.Tensor, (g.create_node("get_attr", "w"), x)), parameter)
    assert "the parameter w" in message
    assert torch.equal(parameter["w"], torch.ones(4))
    assert "out" in refused(lambda g, x: g.call_function(aten.add.out, (x, x), {"out": x}))


def test_permutation() -> None:
    assert permutation(aten.movedim.int, 3, (0, 2)) == [1, 2, 0]
    assert permutation(aten.t.default, 1, ()) == [0]


def test_inverses_name_operators() -> None:
    assert all(hasattr(aten, name) for name in INVERSES)
