"""Every pass on small graphs with branches and loops that the data decides."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from graphs import Block, Draft, Forms, aten
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from qlib.errors import CalibrationError
from qlib.executed import executed_ops, sequence
from qlib.graph import Model, attribute, copy_of
from qlib.interpret import run
from qlib.observers import Follower
from qlib.oracle import replay
from qlib.passes.annotate import annotate
from qlib.passes.convert import convert
from qlib.passes.lower import lower
from qlib.passes.prepare import prepare
from qlib.passes.reference import reference
from qlib.printed import graph_text
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time
from qlib.regions import all_models, inner_model, region_in, regions_in

DEFAULT = QConfigMapping(PRESETS["default"])
SIGNS = torch.tensor([[1.0], [-1.0]])


def positive(draft: Draft, x: fx.Node) -> fx.Node:
    """Whether the first element is positive: float whatever is quantized, since selections of one aren't."""
    return draft.call(aten.gt.Scalar, draft.call(aten.sum.default, x), 0)


def layer(path: str, relu: bool = False) -> Block:
    def block(inner: Draft, x: fx.Node, *rest: fx.Node) -> Sequence[fx.Node]:
        y = inner.linear(x, x.meta["shape"][-1], path)
        return [inner.relu(y) if relu else y]

    return block


def same(inner: Draft, x: fx.Node, *rest: fx.Node) -> Sequence[fx.Node]:
    return [x]


def doubled(inner: Draft, x: fx.Node, *rest: fx.Node) -> Sequence[fx.Node]:
    return [inner.call(aten.tanh.default, inner.call(aten.exp.default, x))]


def branching(*blocks: Block, first: bool = True) -> Model:
    """A layer, a branch on the sum of the input, and a layer."""
    draft = Draft()
    x = draft.input(2, 4)
    predicate = positive(draft, x)
    value = draft.linear(x, 4, "before") if first else x
    (y,) = draft.cond(predicate, [value], *blocks)
    return draft.done(draft.linear(y, 3, "after"))


def looping(body: Block) -> Model:
    """A layer, three rounds of a body, and a layer."""
    draft = Draft()
    x = draft.linear(draft.input(2, 4), 4, "before")
    count = draft.call(aten.full.default, [], 0, kwargs={"dtype": torch.int64})

    def going(inner: Draft, n: fx.Node, y: fx.Node) -> Sequence[fx.Node]:
        return [inner.call(aten.lt.Scalar, n, 3)]

    def round_(inner: Draft, n: fx.Node, y: fx.Node) -> Sequence[fx.Node]:
        return [inner.call(aten.add.Tensor, n, 1), *body(inner, y)]

    _, y = draft.loop(going, round_, [count, x])
    return draft.done(draft.linear(y, 3, "after"))


def both_ways(model: fx.GraphModule) -> Forms:
    """All forms, calibrated with data for both branches."""
    prepared = prepare(model, "default")
    random = torch.Generator().manual_seed(0)
    batches = [torch.rand(2, 4, generator=random) * sign for sign in (1, -1) for _ in range(4)]
    with torch.no_grad():
        for batch in batches:
            run(prepared, [batch])
    debug = convert(prepared)
    return Forms(prepared, debug, lower(debug), tuple(batches))


def quantized(model: fx.GraphModule, name: str) -> list[str]:
    """The operators of the named graph within a model."""
    return list(sequence(inner_model(model, next(n for n in model.graph.nodes if n.target == name))))


def assert_forms_agree(found: Forms) -> None:
    spelled = reference(found.debug)
    for x in found.inputs:
        final = found.final(x)
        torch.testing.assert_close(found.debug(x), final, rtol=0, atol=0)
        torch.testing.assert_close(spelled(x), final, rtol=0, atol=0)
        torch.testing.assert_close(run(found.final, [x]), final, rtol=0, atol=0)
        for form in (found.debug, found.final):
            for step in replay(found.debug, form, [x]).steps:
                assert step.real.shape == step.given.shape


def crossing_types(model: fx.GraphModule) -> list[torch.dtype]:
    """The types of what goes into the first region of a model and comes out of it."""
    region = next(regions_in(model))
    entries = [region.entries(n)[0].meta["dtype"] for n in range(len(region.operands))]
    return entries + [node.meta["dtype"] for n in region.results for node in region.taken(n)]


# ----------------------------------------------------------------------------------------------------------- annotation


def test_branches_that_agree_are_one_group_with_what_follows() -> None:
    model = branching(layer("a"), layer("b", relu=True))
    found = annotate(model, DEFAULT)
    region = next(regions_in(model))
    groups = {placement.value: placement.group for placement in found.placements}
    (result,) = region.taken(0)
    assert len({groups[node] for node in (*region.yielded(0), result)}) == 1
    operand = region.operands[0]
    assert len({groups[node] for node in (operand, *region.entries(0))}) == 1
    assert groups[operand] != groups[result]


def test_branches_that_disagree_give_their_value_in_float() -> None:
    found = both_ways(branching(layer("a"), doubled))
    region = next(regions_in(found.final))
    assert crossing_types(found.final) == [torch.uint8, torch.float32]
    assert "quantized::dequantize_per_tensor" in quantized(found.final, str(region.references[0].target))
    assert_forms_agree(found)


def test_a_branch_that_gives_its_operand_shares_its_parameters() -> None:
    found = both_ways(branching(layer("a"), same))
    region = next(regions_in(found.debug))
    assert crossing_types(found.final) == [torch.uint8, torch.uint8]
    into = region.operands[0].args[1:3]
    out = next(iter(region.taken(0)[0].users)).args[1:3]
    assert into == out
    assert_forms_agree(found)


def test_a_float_value_that_both_branches_need_is_quantized_once_before_them() -> None:
    model = branching(layer("a"), layer("b"), first=False)
    found = both_ways(model)
    assert crossing_types(found.final) == [torch.uint8, torch.uint8]
    assert executed_ops(found.final)["quantized::quantize_per_tensor"] == 1
    assert_forms_agree(found)


def test_a_float_value_that_one_branch_needs_is_quantized_there() -> None:
    found = both_ways(branching(layer("a"), doubled, first=False))
    region = next(regions_in(found.final))
    assert "quantized::quantize_per_tensor" in quantized(found.final, str(region.references[0].target))
    assert crossing_types(found.final) == [torch.float32, torch.float32]
    assert_forms_agree(found)


def test_a_carried_value_is_one_group_where_each_round_gives_what_it_gets() -> None:
    found = both_ways(looping(layer("a")))
    assert crossing_types(found.final) == [torch.int64, torch.uint8, torch.uint8]
    assert_forms_agree(found)


def test_a_carried_value_that_a_round_gives_in_float_is_float() -> None:
    found = both_ways(looping(doubled))
    assert crossing_types(found.final) == [torch.int64, torch.float32, torch.float32]
    assert_forms_agree(found)


def test_a_layout_operator_in_a_branch_keeps_the_parameters_of_its_operand() -> None:
    def turned(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
        return [inner.call(aten.reshape.default, inner.call(aten.reshape.default, x, [8]), [2, 4])]

    found = both_ways(branching(turned, same))
    assert executed_ops(found.final)["quantized::reshape"] == 2
    assert crossing_types(found.final) == [torch.uint8, torch.uint8]
    assert_forms_agree(found)


def nested(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
    deeper = inner.call(aten.gt.Scalar, inner.call(aten.amax.default, x, [0, 1]), 0.3)
    return inner.cond(deeper, [x], layer("deep"), layer("deeper"))


def test_branches_within_branches_cross_as_integers_too() -> None:
    found = both_ways(branching(nested, layer("b")))
    assert {node.meta["dtype"] for part in all_models(found.final) for region in regions_in(part)
            for node in region.operands} == {torch.uint8}  # fmt: skip
    assert_forms_agree(found)


def test_a_branch_within_a_loop() -> None:
    found = both_ways(looping(nested))
    assert crossing_types(found.final) == [torch.int64, torch.uint8, torch.uint8]
    assert_forms_agree(found)


def test_ranges_at_run_time_are_chosen_where_they_are_used() -> None:
    model = branching(layer("a"), layer("b"))
    prepared = prepare(model, QConfigMapping(at_run_time(PRESETS["default"])))
    debug = convert(prepared)
    final = lower(debug)
    assert executed_ops(final)["quantized::linear_dynamic"] == 4
    for x in (torch.rand(2, 4), -torch.rand(2, 4)):
        torch.testing.assert_close(debug(x), final(x))


def test_what_no_qconfig_asks_for_stays_in_float() -> None:
    found = both_ways(branching(layer("a"), layer("b")))
    plain = prepare(branching(layer("a"), layer("b")), None)
    assert not any(name.startswith("quantized") for name in sequence(lower(convert(plain))))
    assert any(name.startswith("quantized") for name in sequence(found.final))


# ------------------------------------------------------------------------------------------------------------ observers


def observers(model: fx.GraphModule) -> list[object]:
    return [m.leader if isinstance(m, Follower) else m for m in model.modules() if type(m).__name__.endswith("er")]


WAYS: dict[str, Callable[[fx.GraphModule], fx.GraphModule]] = {
    "copy": copy_of,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("make", [lambda: branching(layer("a"), layer("b")), lambda: looping(layer("a"))])
def test_a_copy_keeps_one_observer_for_each_group(way: str, make: Callable[[], Model]) -> None:
    prepared = prepare(make(), "default")
    again = WAYS[way](prepared)
    assert len({id(o) for o in observers(again)}) == len({id(o) for o in observers(prepared)})
    if way != "copy":
        assert not {id(o) for o in observers(again)} & {id(o) for o in observers(prepared)}
    for x in (torch.rand(2, 4), -torch.rand(2, 4)):
        run(prepared, [x])
        if way != "copy":
            run(again, [x])
    for x in (torch.rand(2, 4), -torch.rand(2, 4)):
        torch.testing.assert_close(lower(convert(again))(x), lower(convert(prepared))(x), rtol=0, atol=0)


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("form", ["debug", "final"])
def test_a_form_survives(way: str, form: str) -> None:
    found = both_ways(branching(nested, layer("b", relu=True)))
    model: fx.GraphModule = getattr(found, form)
    again = WAYS[way](model)
    assert sequence(again) == sequence(model)
    assert graph_text(again) == graph_text(model)
    for x in found.inputs:
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_what_a_group_yields_is_seen_from_both_branches() -> None:
    prepared = prepare(branching(layer("a"), layer("b")), "default")
    run(prepared, [torch.rand(2, 4)])
    region = next(regions_in(prepared))
    shared = [
        inner_model(prepared, reference).get_submodule(str(node.target))
        for reference, node in zip(region.references, region.yielded(0), strict=True)
    ]
    assert shared[0] is shared[1]
    assert shared[0].calls == 1
    run(prepared, [-torch.rand(2, 4)])
    assert shared[0].calls == 2


def test_a_branch_that_calibration_never_reached_is_named() -> None:
    def two_layers(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
        return [inner.linear(inner.linear(x, 4, "b1"), 4, "b2")]

    prepared = prepare(branching(layer("a"), two_layers), "default")
    run(prepared, [torch.rand(2, 4)])
    with pytest.raises(
        CalibrationError, match=r"in the branch .* condition at model.py:3 fails .* data that gets there"
    ):
        convert(prepared)


# --------------------------------------------------------------------------------------------------------------- others


def test_batch_norms_fold_in_each_branch() -> None:
    def normed(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
        return [inner.batch_norm(inner.linear(x, 4, "a"), "bn")]

    model = branching(normed, layer("b"))
    found = both_ways(model)
    assert "aten::batch_norm" in sequence(model)
    assert "aten::batch_norm" not in sequence(found.prepared)
    assert_forms_agree(found)


def test_each_graph_holds_the_same_weight() -> None:
    model = branching(layer("a"), layer("b"))
    copied = copy_of(model)
    for part, other in zip(all_models(model), all_models(copied), strict=True):
        for node in part.graph.find_nodes(op="get_attr"):
            if region_in(part, next(iter(node.users))) is None:
                assert attribute(part, str(node.target)) is attribute(other, str(node.target))


def test_a_pass_leaves_the_graphs_of_its_input_alone() -> None:
    model = branching(layer("a"), layer("b"))
    before = graph_text(model)
    prepared = prepare(model, "default")
    for x in (torch.rand(2, 4), -torch.rand(2, 4)):
        run(prepared, [x])
    middle = graph_text(prepared)
    debug = convert(prepared)
    end = graph_text(debug)
    lower(debug)
    reference(debug)
    assert (graph_text(model), graph_text(prepared), graph_text(debug)) == (before, middle, end)


def test_operators_of_both_branches_are_counted_once() -> None:
    found = both_ways(branching(layer("a"), layer("b", relu=True)))
    assert sequence(found.final)[-5:] == (
        "quantized::linear",
        "quantized::linear",
        "quantized::linear_relu",
        "quantized::linear",
        "quantized::dequantize_per_tensor",
    )
    assert executed_ops(both_ways(looping(layer("a"))).final)["quantized::linear"] == 3


def test_the_steps_of_the_branch_that_was_taken_are_explained() -> None:
    found = both_ways(branching(layer("a"), layer("b")))
    holds, fails = (str(node.target) for node in next(regions_in(found.debug)).references)
    for x, name in ((found.inputs[0], holds), (found.inputs[-1], fails)):
        inside = [step for step in replay(found.debug, found.final, [x]).steps if "/" in step.name]
        assert [step.name.split("/")[1] for step in inside] == [name]
    rounds = [
        s.name for s in replay(*[both_ways(looping(layer("a"))).debug] * 2, [found.inputs[0]]).steps if "/" in s.name
    ]
    assert [name.split("/")[1] for name in rounds] == ["0", "1", "2"]


def test_a_model_can_be_called_with_gradients() -> None:
    model = branching(layer("a"), layer("b"))
    x = torch.rand(2, 4, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None


BLOCKS = {"layer": layer("a"), "relu": layer("b", relu=True), "same": same, "float": doubled, "nested": nested}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from(sorted(BLOCKS))] * 2, st.booleans()), min_size=1, max_size=3),
    st.integers(0, 1000),
)
def test_forms_of_random_branches_agree(steps: list[tuple[str, str, bool]], seed: int) -> None:
    draft = Draft(random=torch.Generator().manual_seed(seed))
    x = draft.input(2, 4)
    value = draft.linear(x, 4, "before")
    for holds, fails, on_input in steps:
        predicate = positive(draft, x if on_input else value)
        (value,) = draft.cond(predicate, [value], BLOCKS[holds], BLOCKS[fails])
    try:
        found = both_ways(draft.done(value))
    except CalibrationError as error:
        assert "the branch" in str(error)
        return
    assert_forms_agree(found)
