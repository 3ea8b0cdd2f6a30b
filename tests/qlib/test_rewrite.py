"""Finding operators in a graph, and the graph that all passes work on."""

from __future__ import annotations

import operator

import pytest
import torch
from graphs import Draft, aten
from torch import fx, nn

from qlib.graph import add_buffer, attribute, copy_of, drop_unused_state, finish, nodes_in, op_name
from qlib.ops import When
from qlib.rewrite import Match, find


def found(head: fx.Node) -> str:
    match = find(head, lambda match: match.op.when is When.STATIC)
    return "" if match is None else match.op.short_name


def test_the_longest_chain_that_fits_is_found() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    relu = draft.relu(layer)
    draft.done(relu)
    match = find(layer, lambda match: match.op.when is When.STATIC)
    assert match is not None
    assert match.op.short_name == "linear_relu"
    assert (match.head, match.tail, match.nodes) == (layer, relu, (layer, relu))
    assert match.operands == (layer.args[0],)


def test_a_shorter_row_is_found_where_the_longer_one_is_declined() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    draft.done(draft.relu(layer))
    match = find(layer, lambda match: len(match.op.chain) == 1)
    assert match is not None
    assert match.nodes == (layer,)
    assert find(layer, lambda match: False) is None


def test_a_value_used_twice_ends_a_chain() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    relu = draft.relu(layer)
    draft.done(relu, layer)
    assert found(layer) == "linear"
    assert found(relu) == "relu"


def test_a_value_that_is_a_later_argument_ends_a_chain() -> None:
    draft = Draft()
    x = draft.input(2, 3)
    both = draft.call(aten.add.Tensor, draft.relu(x), x)
    pair = draft.call(aten.adaptive_max_pool1d.default, draft.call(aten.unsqueeze.default, both, 0), [2])
    second = draft.call(operator.getitem, pair, 1)
    draft.done(second)
    assert found(pair) == ""
    assert found(second) == "getitem"


def test_the_first_item_of_a_pair_continues_a_chain() -> None:
    draft = Draft()
    pair = draft.call(aten.adaptive_max_pool1d.default, draft.input(1, 2, 3), [2])
    first = draft.call(operator.getitem, pair, 0)
    draft.done(first)
    match = find(pair, lambda match: True)
    assert match is not None
    assert match.nodes == (pair, first)


def test_the_row_depends_on_the_kinds_of_arguments() -> None:
    draft = Draft()
    x, y = draft.input(2, 3), draft.input(2, 3)
    tensors = draft.call(aten.add.Tensor, x, y)
    number = draft.call(aten.add.Scalar, tensors, 2.0)
    draft.done(number)
    assert found(tensors) == "add"
    assert found(number) == "add_scalar"


def test_keyword_arguments_are_refused_unless_the_row_heeds_them() -> None:
    draft = Draft()
    x = draft.input(2, 3)
    scaled = draft.call(aten.add.Tensor, x, x, kwargs={"alpha": 2})
    gelu = draft.call(aten.gelu.default, scaled, kwargs={"approximate": "tanh"})
    draft.done(gelu)
    assert found(scaled) == ""
    assert found(gelu) == "gelu"


def test_a_computed_weight_is_no_parameter() -> None:
    draft = Draft()
    x, w = draft.input(2, 3), draft.input(4, 3)
    computed = draft.call(aten.linear.default, x, w)
    bias = draft.call(aten.linear.default, computed, draft.draw("w", 5, 4), draft.call(aten.sum.default, x))
    draft.done(bias)
    assert found(computed) == ""
    assert found(bias) == ""


@pytest.mark.parametrize(("value", "name"), [(0, "constant_pad_nd"), (0.0, "constant_pad_nd"), (1.0, "")])
def test_an_argument_that_must_be_zero(value: float, name: str) -> None:
    draft = Draft()
    pad = draft.call(aten.constant_pad_nd.default, draft.input(2, 3), [1, 1], value)
    draft.done(pad)
    assert found(pad) == name


def test_a_list_of_tensors_is_an_operand_of_several() -> None:
    draft = Draft()
    x, y = draft.input(2, 3), draft.input(2, 3)
    cat = draft.call(aten.cat.default, [x, y, x], 1)
    draft.done(cat)
    match = find(cat, lambda match: True)
    assert match is not None
    assert match.operands == (x, y, x)


def test_names_of_operators() -> None:
    draft = Draft()
    x = draft.input(2, 4)
    pieces = draft.call(aten.split.Tensor, x, 2, 1)
    item = draft.call(operator.getitem, pieces, 0)
    total = draft.call(operator.add, item, 1)
    draft.done(total)
    assert [op_name(n) for n in (x, pieces, item, total)] == ["", "aten::split", "getitem", ""]


def test_nodes_within_arguments() -> None:
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    assert list(nodes_in([a, (1, b), {"key": [a]}, None])) == [a, b, a]


def test_buffers_get_the_next_free_name_and_the_modules_above_it() -> None:
    root = nn.Module()
    one, two = torch.zeros(1), torch.ones(2)
    assert add_buffer(root, "body.fc.weight", one) == "body.fc.weight"
    assert add_buffer(root, "body.fc.weight", two) == "body.fc.weight_1"
    assert add_buffer(root, "weight", two) == "weight"
    assert attribute(root, "body.fc.weight") is one
    assert attribute(root, "body.fc.weight_1") is two
    with pytest.raises(TypeError, match=r"expected a tensor at 'body.fc', found Module"):
        attribute(root, "body.fc")


def test_a_copy_has_the_same_names_and_its_changes_stay_its_own() -> None:
    draft = Draft()
    draft.done(x := draft.linear(draft.input(2, 3), 4), draft.relu(x))
    model = draft_model(draft)
    before = [(n.name, dict(n.meta)) for n in model.graph.nodes]
    twin = copy_of(model)
    assert [(n.name, n.meta) for n in twin.graph.nodes] == before
    layer = next(n for n in twin.graph.nodes if op_name(n) == "aten::linear")
    layer.meta["module_path"] = "changed"
    layer.replace_all_uses_with(layer.args[0])
    twin.graph.eliminate_dead_code()
    drop_unused_state(twin)
    assert not list(twin.parameters()) + list(twin.buffers())
    assert [(n.name, n.meta) for n in model.graph.nodes] == before
    assert sorted(dict(model.named_buffers())) == ["fc.bias", "fc.weight"]


def draft_model(draft: Draft) -> fx.GraphModule:
    return fx.GraphModule(draft.root, draft.graph)


def test_writes_to_buffers_are_not_dead_code() -> None:
    draft = Draft()
    state = draft.constant("state", torch.zeros(2, 3))
    total = draft.call(aten.add.Tensor, state, draft.input(2, 3))
    draft.call(aten.copy_.default, state, total)
    model = draft.done(total)
    finish(model)
    model(torch.ones(2, 3))
    assert attribute(model, "state").tolist() == [[1.0] * 3] * 2


def test_state_that_is_still_used_is_kept() -> None:
    root = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    graph = fx.Graph()
    graph.output((graph.get_attr("a.weight"), graph.get_attr("ab.bias")))
    model = fx.GraphModule(root, graph)
    model.add_submodule("b", nn.Linear(2, 2))
    drop_unused_state(model)
    assert sorted(dict(model.named_parameters())) == ["a.weight", "ab.bias"]


def test_operands_of_a_match_are_read_from_its_head() -> None:
    draft = Draft()
    x, y = draft.input(2, 3), draft.input(2, 3)
    both = draft.call(aten.mul.Tensor, x, y)
    draft.done(draft.relu(both))
    match = find(both, lambda match: True)
    assert isinstance(match, Match)
    assert match.op.short_name == "mul_relu"
    assert match.operands == (x, y)


def test_a_bag_of_the_overload_without_a_padding_index_is_found() -> None:
    draft = Draft()
    indices, offsets = (
        draft.constant("indices", torch.tensor([1, 0, 2])),
        draft.constant("offsets", torch.tensor([0, 2])),
    )
    bag = draft.call(aten.embedding_bag.default, draft.draw("table.weight", 3, 4), indices, offsets)
    draft.done(draft.call(operator.getitem, bag, 0))
    match = find(bag, lambda match: True)
    assert match is not None and match.op.kernel == "embedding_bag"
