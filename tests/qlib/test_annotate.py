"""What is quantized, and how: one decision for each tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import Draft, aten
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from qlib.graph import Model
from qlib.passes.annotate import Annotation, annotate, fixed_spec
from qlib.qconfig import PRESETS, QConfig, QConfigMapping, as_mapping, at_run_time, transform
from qlib.qparams import DType, QSpec

UINT8, INT8 = QSpec(), QSpec(DType.INT8)
DEFAULT = as_mapping("default")
DYNAMIC = transform(DEFAULT, at_run_time)


def operators(found: Annotation) -> list[str]:
    return [match.op.short_name for match in found.matches]


def decisions(found: Annotation) -> set[tuple[Any, ...]]:
    """Everything that was decided, by names and without the order of the nodes."""
    return {
        (p.value.name, p.spec, None if p.users is None else frozenset(u.name for u in p.users), str(p.group))
        for p in found.placements
    }


def specs(found: Annotation) -> dict[str, list[QSpec]]:
    result: dict[str, list[QSpec]] = {}
    for p in found.placements:
        result.setdefault(p.value.name, []).append(p.spec)
    return result


def groups(found: Annotation) -> set[frozenset[str]]:
    by_leader: dict[fx.Node, set[str]] = {}
    for p in found.placements:
        if p.group is not None:
            by_leader.setdefault(p.group, set()).add(p.value.name)
    return {frozenset(g) for g in by_leader.values() if len(g) > 1}


def test_a_layer_quantizes_its_input_and_its_result() -> None:
    draft = Draft()
    x = draft.input(2, 3)
    layer = draft.linear(x, 4)
    found = annotate(draft.done(layer), DEFAULT)
    assert operators(found) == ["linear"]
    assert decisions(found) == {(x.name, UINT8, frozenset({layer.name}), "None"), (layer.name, UINT8, None, layer.name)}


def test_a_chain_is_one_operator_with_one_result() -> None:
    draft = Draft()
    x = draft.input(2, 3)
    relu = draft.relu(draft.linear(x, 4))
    found = annotate(draft.done(relu), DEFAULT)
    assert operators(found) == ["linear_relu"]
    assert set(specs(found)) == {x.name, relu.name}


def test_a_relu_with_its_own_none_is_left_in_float() -> None:
    draft = Draft()
    x = draft.input(2, 3)
    layer = draft.linear(x, 4)
    after = draft.linear(draft.relu(layer, "act"), 4, "fc2")
    found = annotate(draft.done(after), replace(DEFAULT, modules={"act": None}))
    assert operators(found) == ["linear", "linear"]
    # The relu's result is a float tensor again, which the second layer has quantized for itself.
    assert specs(found) == {n: [UINT8] for n in (x.name, layer.name, "relu_default", after.name)}


def test_a_module_with_none_is_left_in_float() -> None:
    draft = Draft()
    first = draft.linear(draft.input(2, 3), 4, "one")
    second = draft.linear(first, 4, "two")
    found = annotate(draft.done(second), replace(DEFAULT, modules={"two": None}))
    assert [m.head for m in found.matches] == [first]
    assert second.name not in specs(found)


def test_without_a_rule_nothing_is_quantized() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    assert annotate(draft.done(layer), QConfigMapping()) == Annotation(refused={layer: "its QConfig is None"})


def test_shared_operators_are_one_group_led_by_the_producer() -> None:
    draft = Draft()
    layer = draft.conv(draft.input(1, 3, 8, 8), 4)
    pooled = draft.call(aten.max_pool2d.default, layer, [2, 2])
    mean = draft.call(aten.avg_pool2d.default, pooled, [2, 2])
    flat = draft.call(aten.flatten.using_ints, mean, 1)
    found = annotate(draft.done(flat), DEFAULT)
    assert groups(found) == {frozenset({layer.name, pooled.name, mean.name, flat.name})}
    first = next(p for p in found.placements if p.group is layer)
    assert first.value is layer


def test_pieces_of_a_tensor_share_its_parameters() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    pieces = draft.call(aten.chunk.default, layer, 2, 1)
    a, b = (draft.call(operator.getitem, pieces, i) for i in (0, 1))
    found = annotate(draft.done(a, b), DEFAULT)
    assert groups(found) == {frozenset({layer.name, a.name, b.name})}
    assert pieces.name not in specs(found)


def test_fixed_results_have_the_parameters_of_their_interval() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    sigmoid = draft.call(aten.sigmoid.default, layer)
    tanh = draft.call(aten.tanh.default, sigmoid)
    found = specs(annotate(draft.done(tanh), DEFAULT))
    assert [(s.scale, s.zero_point) for s in found[sigmoid.name]] == [(1 / 256, 0)]
    assert [(s.scale, s.zero_point) for s in found[tanh.name]] == [(2 / 256, 128)]


@pytest.mark.parametrize(
    ("like", "interval", "scale", "zero_point"),
    [
        (QSpec(DType.INT8), (0.0, 1.0), 1 / 256, -128),
        (QSpec(DType.INT8), (-1.0, 1.0), 2 / 256, 0),
        (QSpec(qmax=127), (0.0, 1.0), 1 / 128, 0),
        (QSpec(qmax=127), (-1.0, 1.0), 2 / 128, 64),
        (QSpec(DType.INT16), (-1.0, 1.0), 2 / 65536, 0),
    ],
)
def test_fixed_parameters(like: QSpec, interval: tuple[float, float], scale: float, zero_point: int) -> None:
    spec = fixed_spec(like, interval)
    assert (spec.scale, spec.zero_point, spec.range, spec.dtype) == (scale, zero_point, like.range, like.dtype)


def test_arithmetic_is_quantized_only_where_all_its_inputs_are() -> None:
    draft = Draft()
    x, y = draft.input(2, 4), draft.input(2, 4)
    one, two = draft.linear(x, 4, "one"), draft.linear(y, 4, "two")
    both = draft.call(aten.add.Tensor, one, two)
    half = draft.call(aten.add.Tensor, both, x)
    after = draft.call(aten.mul.Tensor, half, half)
    found = annotate(draft.done(after), DEFAULT)
    assert [m.head for m in found.matches] == [one, two, both]
    assert half.name not in specs(found)


CUMSUM = (aten.cumsum.default, (1,))
FOLLOWERS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.relu.default, ()),
    (aten.sigmoid.default, ()),
    (aten.add.Scalar, (1.0,)),
    (aten.flatten.using_ints, ()),
    (aten.hardtanh.default, ()),
]


@pytest.mark.parametrize(("target", "args"), FOLLOWERS)
def test_nothing_starts_a_region_but_a_layer(target: Any, args: tuple[Any, ...]) -> None:
    draft = Draft()
    first = draft.call(target, draft.input(2, 4), *args)
    assert annotate(draft.done(first), DEFAULT).placements == ()


@pytest.mark.parametrize(("target", "args"), FOLLOWERS)
def test_a_float_operator_ends_a_region(target: Any, args: tuple[Any, ...]) -> None:
    draft = Draft()
    x = draft.input(2, 4)
    layer = draft.linear(x, 4)
    soft = draft.call(CUMSUM[0], layer, *CUMSUM[1])
    found = annotate(draft.done(draft.call(target, soft, *args)), DEFAULT)
    assert set(specs(found)) == {x.name, layer.name}


@pytest.mark.parametrize("name", ["hardswish", "silu", "gelu", "elu", "leaky_relu"])
def test_observed_operators_start_a_region(name: str) -> None:
    draft = Draft()
    x = draft.input(2, 4)
    curve = draft.call(getattr(aten, name).default, x)
    found = annotate(draft.done(curve), DEFAULT)
    assert set(specs(found)) == {x.name, curve.name}


def test_a_consumer_that_needs_other_integers_gets_its_own() -> None:
    draft = Draft()
    x = draft.input(2, 4)
    one = draft.linear(x, 4, "one")
    two, three = draft.linear(one, 4, "two"), draft.linear(one, 4, "three")
    mapping = replace(DEFAULT, modules={"two": PRESETS["int8"]})
    found = decisions(annotate(draft.done(two, three), mapping))
    assert (one.name, UINT8, None, one.name) in found
    assert (one.name, INT8, frozenset({two.name}), "None") in found
    assert not any(value == one.name and users == frozenset({three.name}) for value, _, users, _ in found)


def test_a_float_input_is_quantized_once_for_each_description() -> None:
    draft = Draft()
    x = draft.input(2, 4)
    layers = [draft.linear(x, 4, path) for path in ("a", "b", "c")]
    found = annotate(draft.done(*layers), replace(DEFAULT, modules={"c": PRESETS["int8"]}))
    wanted = {(p.spec, p.users) for p in found.placements if p.value is x}
    assert wanted == {(UINT8, tuple(layers[:2])), (INT8, (layers[2],))}


def test_dynamic_layers_quantize_their_input_only() -> None:
    draft = Draft()
    x = draft.input(2, 4)
    one = draft.relu(draft.linear(x, 4, "one"))
    two = draft.linear(one, 4, "two")
    found = annotate(draft.done(two), DYNAMIC)
    assert operators(found) == ["linear_relu_dynamic", "linear_dynamic"]
    assert specs(found) == {n: [replace(UINT8, observer="runtime")] for n in (x.name, one.name)}


def test_a_dynamic_layer_in_a_static_model_quantizes_again() -> None:
    draft = Draft()
    one = draft.linear(draft.input(2, 4), 4, "one")
    two = draft.linear(one, 4, "two")
    mapping = replace(DEFAULT, modules={"two": at_run_time(PRESETS["default"])})
    found = annotate(draft.done(two), mapping)
    assert operators(found) == ["linear", "linear_dynamic"]
    assert specs(found)[one.name] == [UINT8, replace(UINT8, observer="runtime")]


GROUPED = QSpec(DType.INT8, symmetric=True, group_size=2)


@pytest.mark.parametrize("qconfig", [QConfig(None, None), QConfig(UINT8, None), QConfig(UINT8, GROUPED)])
def test_a_layer_without_a_fitting_weight_description_is_left_in_float(qconfig: QConfig) -> None:
    draft = Draft()
    model = draft.done(draft.linear(draft.input(2, 4), 4))
    assert annotate(model, QConfigMapping(qconfig)).matches == ()


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("weight_only_int8", "linear_weight_only"),
        ("weight_only_int4", "linear_weight_only"),
        ("fp16", "linear_dynamic_fp16"),
        ("per_token", "linear_per_token_dynamic"),
    ],
)
def test_the_qconfig_chooses_the_row(preset: str, name: str) -> None:
    draft = Draft()
    x = draft.input(2, 4)
    found = annotate(draft.done(draft.linear(x, 4)), as_mapping(preset))
    assert operators(found) == [name]
    spec = PRESETS[preset].activation
    assert specs(found) == ({} if spec is None else {x.name: [spec]})


def test_integer_data_is_not_quantized() -> None:
    draft = Draft()
    doubled = draft.call(aten.mul.Tensor, draft.input(2, 4, dtype=torch.int64), draft.input(2, 4, dtype=torch.int64))
    assert annotate(draft.done(doubled), DEFAULT).placements == ()


def test_a_normalisation_by_the_batch_is_not_a_table() -> None:
    draft = Draft()
    norm = draft.batch_norm(draft.input(4, 3, 5), training=True)
    assert annotate(draft.done(norm), DEFAULT).matches == ()


def test_rules_that_matched_nothing_are_listed() -> None:
    draft = Draft()
    model = draft.done(draft.linear(draft.input(2, 4), 4, "fc"))
    mapping = QConfigMapping(None, {"fc": PRESETS["default"], "cf": None}, {"nn.Conv2d": None})
    assert annotate(model, mapping).unused_rules == ("modules: cf", "types: nn.Conv2d")


def diamond() -> Model:
    """Two branches with a pool each, a residual, pieces, a fixed function, and a float island."""
    draft = Draft()
    x = draft.input(1, 4, 8, 8)
    left = draft.relu(draft.conv(x, 4, "left"))
    right = draft.call(aten.max_pool2d.default, draft.conv(x, 4, "right"), [3, 3], [1, 1], [1, 1])
    total = draft.relu(draft.call(aten.add.Tensor, left, right), "act2")
    gate = draft.call(aten.mul.Tensor, draft.call(aten.sigmoid.default, right), left)
    joined = draft.call(aten.cat.default, [total, gate, x], 1)
    pieces = draft.call(aten.chunk.default, total, 2, 1)
    piece = draft.call(operator.getitem, pieces, 1)
    last = draft.conv(draft.call(aten.silu.default, joined), 2, "last")
    return draft.done(last, piece, draft.conv(gate, 2, "other"))


def reordered(model: fx.GraphModule, choose: Callable[[list[fx.Node]], fx.Node]) -> Model:
    """The same graph, its nodes in another order that respects the flow of values."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    left = [n for n in model.graph.nodes if n.op != "output"]
    while left:
        node = choose([n for n in left if all(i in copies for i in n.all_input_nodes)])
        left.remove(node)
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = dict(node.meta)
    graph.output(fx.node.map_arg(model.graph.output_node().args[0], copies.__getitem__))
    return Model(model, graph)


@given(st.data())
def test_decisions_do_not_depend_on_the_order_of_nodes(data: st.DataObject) -> None:
    mapping = replace(DEFAULT, modules={"other": PRESETS["int8"]})
    model = diamond()
    other = reordered(model, lambda ready: data.draw(st.sampled_from(ready)))
    found, expected = annotate(other, mapping), annotate(model, mapping)
    names = {n.name: original.name for n, original in zip_by_inputs(other, model)}
    assert {renamed(d, names) for d in decisions(found)} == decisions(expected)
    assert sorted(operators(found)) == sorted(operators(expected))


def zip_by_inputs(other: fx.GraphModule, model: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Nodes that compute the same, paired from the outputs up."""
    pairs: dict[fx.Node, fx.Node] = {}
    stack = [(other.graph.output_node(), model.graph.output_node())]
    while stack:
        a, b = stack.pop()
        if a not in pairs:
            pairs[a] = b
            stack += zip(a.all_input_nodes, b.all_input_nodes, strict=True)
    return list(pairs.items())


def renamed(decision: tuple[Any, ...], names: dict[str, str]) -> tuple[Any, ...]:
    value, spec, users, group = decision
    kept = None if users is None else frozenset(names[u] for u in users)
    return (names[value], spec, kept, names.get(group, group))
