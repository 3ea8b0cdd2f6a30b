"""What passes do with a graph: copy it, add calls to it, remove what nothing uses."""

from __future__ import annotations

import pytest
import torch
from graphs import Draft, aten, example
from torch import fx, nn

from qlib.graph import Model, add_buffer, call, copy_of, drop_unused_nodes, drop_unused_state, finish
from qlib.observers import MinMaxObserver
from qlib.qparams import QSpec
from qlib.saved import rows_of


def layers() -> fx.GraphModule:
    """A linear layer below a holder, a relu, and a second linear layer."""
    draft = Draft()
    return draft.done(draft.linear(draft.relu(draft.linear(draft.input(4, 6), 5, "body.fc")), 3, "head"))


def state(model: nn.Module) -> list[str]:
    return sorted(name for name, _ in (*model.named_parameters(), *model.named_buffers()))


def test_a_copy_has_the_nodes_of_its_source() -> None:
    source = layers()
    source.meta["modules"] = {"": "Net"}
    copy = copy_of(source)
    copy.graph.lint()
    assert rows_of(copy.graph) == rows_of(source.graph)
    assert copy.meta == source.meta and copy.meta is not source.meta
    inputs = example(source)
    assert torch.equal(copy(*inputs), source(*inputs))


def test_a_copy_shares_tensors_and_observers_and_nothing_that_a_pass_changes() -> None:
    source = layers()
    observer = MinMaxObserver(QSpec())
    source.add_module("observer_0", observer)
    output = source.graph.output_node()
    with source.graph.inserting_before(output):
        output.update_arg(0, source.graph.call_module("observer_0", output.args))
    before, held = rows_of(source.graph), state(source)
    copy = copy_of(source)
    assert copy.get_submodule("observer_0") is observer
    assert copy.get_submodule("body.fc").weight is source.get_submodule("body.fc").weight
    for node in list(copy.graph.nodes):
        node.meta["operator"] = "changed"
    add_buffer(copy, "body.fc.weight_int8", torch.zeros(1))
    copy.graph.erase_node(copy.graph.output_node())
    drop_unused_nodes(copy.graph)
    drop_unused_state(copy)
    assert rows_of(source.graph) == before
    assert state(source) == held


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_is_in_the_mode_of_its_source(training: bool) -> None:
    assert copy_of(layers().train(training)).training is training


def test_a_copy_leaves_behind_what_its_graph_does_not_use() -> None:
    source = layers()
    add_buffer(source, "body.fc.unused", torch.zeros(1))
    add_buffer(source, "unused.deep.tensor", torch.zeros(1))
    assert state(copy_of(source)) == ["body.fc.bias", "body.fc.weight", "head.bias", "head.weight"]
    assert "unused" not in dict(copy_of(source).named_children())


def test_a_call_is_the_node_that_fx_would_make() -> None:
    graphs = fx.Graph(), fx.Graph()
    entries = [graph.placeholder("x") for graph in graphs]
    graphs[0].output(graphs[0].call_function(aten.cat.default, ([entries[0], entries[0]], 1)))
    graphs[1].output(call(graphs[1], aten.cat.default, [entries[1], entries[1]], 1))
    assert rows_of(graphs[0]) == rows_of(graphs[1])
    assert [list(entry.users) for entry in entries] == [[node.next] for node in entries]
    assert call(graphs[1], aten.relu.default, entries[1], name="named").name == "named"


def test_finishing_removes_chains_of_unused_nodes_and_their_state() -> None:
    model = layers()
    relu = next(node for node in model.graph.nodes if node.target is aten.relu.default)
    model.graph.output_node().update_arg(0, relu)
    finish(model)
    assert [node.op for node in model.graph.nodes] == [
        "placeholder",
        *["get_attr"] * 2,
        *["call_function"] * 2,
        "output",
    ]
    assert state(model) == ["body.fc.bias", "body.fc.weight"]


def test_finishing_keeps_inputs_and_effects() -> None:
    graph = fx.Graph()
    x, _ = graph.placeholder("x"), graph.placeholder("unused")
    graph.call_function(aten.copy_.default, (x, x))
    graph.output(x)
    drop_unused_nodes(graph)
    assert [node.name for node in graph.nodes] == ["x", "unused", "copy__default", "output"]


def test_a_path_that_the_graph_uses_keeps_all_below_it() -> None:
    root = nn.Module()
    root.fc = nn.Linear(2, 2)
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.create_node("get_attr", "fc.weight")
    graph.output((graph.call_module("fc", (x,)), weight))
    model = Model(root, graph)
    drop_unused_state(model)
    assert state(model) == ["fc.bias", "fc.weight"]
