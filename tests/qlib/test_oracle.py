"""The oracle: every integer of an honest form is explained, and one that was changed is found."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Draft, Forms, aten, example, forms
from hypothesis import given
from hypothesis import strategies as st
from ties import Target, errors, exact
from torch import Tensor, fx

from qlib.graph import attribute
from qlib.kernels import Implementation, implementation
from qlib.oracle import Replay, Step, replay
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time

DYNAMIC = QConfigMapping(at_run_time(PRESETS["default"]))


def wrong(step: Step) -> int:
    """How many elements of a step the definition does not explain."""
    if step.zero_point is None:
        bound = 8 * 2.0**-24 * step.magnitude + 1e-38
        return int(((step.given.double() - step.real).abs() > bound).sum())
    target = Target(1.0, step.zero_point, step.qmin, step.qmax, step.given.dtype)
    return errors(step.given, step.real, step.magnitude, target)


def wrong_steps(found: Replay) -> dict[str, int]:
    return {step.operator: n for step in found.steps if (n := wrong(step))}


def assert_explained(found: Forms, seed: int = 0) -> None:
    inputs = example(found.debug, seed) if seed else found.inputs
    for form in (found.debug, found.final):
        explained = replay(found.debug, form, inputs)
        assert wrong_steps(explained) == {}
        outputs = form(*inputs)
        for given_, real in zip(outputs if isinstance(outputs, tuple) else (outputs,), explained.outputs, strict=True):
            assert torch.allclose(given_.double(), real, rtol=1e-6, atol=1e-7)


def network() -> fx.GraphModule:
    draft = Draft()
    first = draft.relu(draft.conv(draft.input(2, 3, 6, 6), 4))
    pooled = draft.call(aten.avg_pool2d.default, first, [2, 2])
    return draft.done(draft.linear(draft.call(aten.flatten.using_ints, pooled, 1), 5))


def test_the_steps_of_a_small_network() -> None:
    found = forms(network())
    steps = replay(found.debug, found.final, found.inputs).steps
    layers = ["aten::relu", "aten::avg_pool2d", "aten::flatten", "aten::linear"]
    named = [step.operator.replace(".using_ints", "").replace("aten.", "aten::") for step in steps]
    assert named[1:] == layers
    assert_explained(found)


@pytest.mark.parametrize("name", list(Implementation))
def test_both_implementations_are_explained(name: str) -> None:
    with implementation(name):
        assert_explained(forms(network()), seed=3)


def test_the_reference_is_explained_without_ties() -> None:
    found = forms(network())
    with implementation("reference"):
        for step in replay(found.debug, found.final, found.inputs).steps:
            assert step.zero_point is not None
            target = Target(1.0, step.zero_point, step.qmin, step.qmax, step.given.dtype)
            assert int((exact(step.real, target) != step.given).sum()) <= step.given.numel() // 100


@pytest.mark.parametrize(
    ("buffer", "operator_name"),
    [("fc.weight_int8", "aten.linear"), ("fc.bias_int32", "aten.linear"), ("conv.weight_int8", "aten.relu")],
)
def test_a_changed_constant_is_found_at_its_operator(buffer: str, operator_name: str) -> None:
    draft = Draft()
    first = draft.relu(draft.conv(draft.input(2, 3, 6), 4))
    found = forms(draft.done(draft.linear(draft.call(aten.flatten.using_ints, first, 1), 5)))
    # Each form has its own state, so that only the final one is changed.
    tampered = copy.deepcopy(found.final)
    constant = attribute(tampered, buffer)
    constant.flatten()[0] += 30 if constant.dtype is torch.int8 else 100_000
    assert wrong_steps(replay(found.debug, found.final, found.inputs)) == {}
    assert set(wrong_steps(replay(found.debug, tampered, found.inputs))) == {operator_name}


@pytest.mark.parametrize(("position", "change"), [(-5, 1.01), (-4, 1), (1, 1.01), (2, 1)])
def test_a_changed_argument_is_found(position: int, change: float) -> None:
    draft = Draft()
    found = forms(draft.done(draft.linear(draft.input(16, 8), 8)))
    tampered = copy.deepcopy(found.final)
    node = next(n for n in tampered.graph.nodes if "replaces" in n.meta)
    args = list(node.args)
    args[position] = args[position] * change if isinstance(args[position], float) else args[position] + change
    node.args = tuple(args)
    assert list(wrong_steps(replay(found.debug, tampered, found.inputs))) == ["aten.linear"]


def test_an_error_is_not_carried_on_to_the_next_operator() -> None:
    draft = Draft()
    one = draft.linear(draft.input(4, 6), 6, "one")
    found = forms(draft.done(draft.linear(draft.call(aten.sigmoid.default, one), 3, "two")))
    tampered = copy.deepcopy(found.final)
    attribute(tampered, "one.bias_int32").add_(100_000)
    steps = [step for step in replay(found.debug, tampered, found.inputs).steps if wrong(step)]
    assert [step.operator for step in steps] == ["aten.linear"]


def test_a_dynamic_layer_is_judged_in_real_numbers() -> None:
    draft = Draft()
    found = forms(draft.done(draft.relu(draft.linear(draft.input(6, 8), 5))), DYNAMIC)
    (step,) = replay(found.debug, found.final, found.inputs).steps
    assert step.zero_point is None
    assert wrong(step) == 0
    tampered = copy.deepcopy(found.final)
    attribute(tampered, "fc.bias").add_(0.01)
    assert wrong_steps(replay(found.debug, tampered, found.inputs)) != {}


def test_inputs_are_not_changed() -> None:
    found = forms(network())
    before = found.inputs[0].clone()
    replay(found.debug, found.final, found.inputs)
    assert torch.equal(found.inputs[0], before)


Grow = Callable[[Draft, fx.Node, int], fx.Node]


def residual(draft: Draft, x: fx.Node, n: int) -> fx.Node:
    inner = draft.conv(x, x.meta["shape"][1], f"inner{n}")
    return draft.call(aten.add.Tensor, inner, draft.conv(x, x.meta["shape"][1], f"side{n}"))


def gate(draft: Draft, x: fx.Node, n: int) -> fx.Node:
    return draft.call(aten.mul.Tensor, x, draft.call(aten.sigmoid.default, x))


def joined(draft: Draft, x: fx.Node, n: int) -> fx.Node:
    return draft.call(aten.cat.default, [draft.relu(x), x, draft.call(aten.tanh.default, x)], 1)


def halves(draft: Draft, x: fx.Node, n: int) -> fx.Node:
    pieces = draft.call(aten.chunk.default, x, 2, 1)
    a, b = (draft.call(operator.getitem, pieces, i) for i in (0, 1))
    return draft.call(aten.stack.default, [a, b], 1) if a.meta["shape"] != b.meta["shape"] else stacked(draft, a, b)


def stacked(draft: Draft, a: fx.Node, b: fx.Node) -> fx.Node:
    both = draft.call(aten.stack.default, [a, b], 1)
    return draft.call(aten.flatten.using_ints, both, 1, 2)


def single(target: Any, *args: Any) -> Grow:
    return lambda draft, x, n: draft.call(target, x, *args)


GROW: dict[str, Grow] = {
    "conv": lambda draft, x, n: draft.conv(x, 4, f"conv{n}"),
    "conv_relu": lambda draft, x, n: draft.relu(draft.conv(x, 6, f"conv{n}", bias=None)),
    "conv_norm": lambda draft, x, n: draft.batch_norm(draft.conv(x, 4, f"conv{n}"), f"bn{n}"),
    "norm": lambda draft, x, n: draft.batch_norm(x, f"bn{n}"),
    "residual": residual,
    "gate": gate,
    "joined": joined,
    "halves": halves,
    "max_pool": single(aten.max_pool2d.default, [3, 3], [1, 1], [1, 1]),
    "avg_pool": single(aten.avg_pool2d.default, [3, 3], [1, 1], [1, 1]),
    "adaptive": single(aten.adaptive_avg_pool2d.default, [3, 3]),
    "pad": single(aten.constant_pad_nd.default, [0, 1, 1, 0]),
    "scaled": single(aten.mul.Scalar, -0.7),
    "shifted": single(aten.add.Scalar, 0.9),
    "turned": single(aten.transpose.int, 2, 3),
    "softmax": single(aten.softmax.int, 1),
    "group_norm": single(aten.group_norm.default, 1),
    "difference": lambda draft, x, n: draft.call(aten.sub.Tensor, x, draft.call(aten.flip.default, x, [1])),
    "hardswish": single(aten.hardswish.default),
    "gelu": single(aten.gelu.default),
    "leaky_relu": single(aten.leaky_relu.default),
    "hardtanh": single(aten.hardtanh.default),
}


@given(
    st.lists(st.sampled_from(sorted(GROW)), min_size=1, max_size=6),
    st.sampled_from(sorted(PRESETS)),
    st.integers(1, 1000),
)
def test_any_small_graph_is_explained(steps: list[str], preset: str, seed: int) -> None:
    draft = Draft()
    value = draft.conv(draft.input(2, 3, 5, 4), 4, "stem")
    for n, step in enumerate(steps):
        value = GROW[step](draft, value, n)
    assert_explained(forms(draft.done(value), preset), seed)


@given(st.lists(st.sampled_from(["linear", "relu", "tanh"]), min_size=1, max_size=5), st.integers(1, 1000))
def test_any_small_dynamic_graph_is_explained(steps: list[str], seed: int) -> None:
    draft = Draft()
    value = draft.linear(draft.input(3, 6), 5, "stem")
    for n, step in enumerate(steps):
        value = draft.linear(value, 4, f"fc{n}") if step == "linear" else draft.call(getattr(aten, step).default, value)
    assert_explained(forms(draft.done(value), DYNAMIC), seed)


def test_nested_values_are_explained() -> None:
    draft = Draft()
    layer = draft.linear(draft.input(2, 3), 4)
    found = forms(draft.done(draft.relu(layer), layer))
    outputs: tuple[Tensor, ...] = replay(found.debug, found.final, found.inputs).outputs
    for mine, theirs in zip(outputs, found.final(*found.inputs), strict=True):
        assert torch.allclose(mine, theirs.double())
