"""What quantizers write: how it is read, where observers come to stand, and what contradicts itself."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from graphs import Draft, aten
from hypothesis import given
from hypothesis import strategies as st
from quantizers import (
    AT_RUN_TIME,
    INT8,
    UINT8,
    WEIGHT,
    ByOperator,
    Nodes,
    Note,
    chain,
    fork,
    layer,
    operators,
    prepared,
)
from torch import fx, nn

from qlib.errors import QConfigError
from qlib.passes.convert import convert
from qlib.pt2e import prepare_pt2e
from qlib.qparams import DType, QSpec
from qlib.quantizer import (
    Derived,
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    Shared,
    SharedQuantizationSpec,
    read_annotation,
    read_spec,
)

# --------------------------------------------------------------------------------------------------------------- reading


class MinMaxObserver(nn.Module):
    """Stands for the class of that name of any library."""


class FusedMovingAvgObsFakeQuantize(nn.Module):
    """Stands for a fake-quantize class."""


class Strange(nn.Module):
    """An observer that has no counterpart."""


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (QuantizationSpec(torch.uint8), QSpec()),
        (QuantizationSpec(torch.int8, MinMaxObserver, -8, 7), QSpec(DType.INT8, -8, 7)),
        (QuantizationSpec(torch.int8, qscheme=torch.per_tensor_symmetric), QSpec(DType.INT8, symmetric=True)),
        (WEIGHT, QSpec(DType.INT8, -127, 127, True, 0)),
        (QuantizationSpec(torch.int8, ch_axis=1), QSpec(DType.INT8)),
        (QuantizationSpec(torch.int8, qscheme=torch.per_channel_affine, ch_axis=1), QSpec(DType.INT8, axis=1)),
        (AT_RUN_TIME, QSpec(observer="runtime")),
        (
            QuantizationSpec(torch.int8, functools.partial(FusedMovingAvgObsFakeQuantize, observer=MinMaxObserver)),
            QSpec(DType.INT8),
        ),
        (QuantizationSpec(torch.float16), QSpec(DType.FLOAT16, observer="fixed", scale=1.0)),
        (QuantizationSpec(torch.float32, Strange), None),
        (None, None),
        (
            FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255),
            QSpec(DType.UINT8, 0, 255, observer="fixed", scale=1 / 256, zero_point=0),
        ),
    ],
)
def test_specs_as_they_are_read(written: Any, read: QSpec | None) -> None:
    assert read_spec(written) == read


def test_specs_that_refer_to_others() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    assert read_spec(SharedQuantizationSpec(x)) == Shared(x)
    assert read_spec(SharedQuantizationSpec((x, y))) == Shared((x, y))
    derived = read_spec(DerivedQuantizationSpec([(x, y), y], max, torch.int32))
    assert derived == Derived(((x, y), y), DType.INT32, max)


def test_a_class_of_another_library_is_known_by_its_names() -> None:
    @dataclass
    class QuantizationSpec:
        dtype: torch.dtype = torch.int8
        observer_or_fake_quant_ctr: type = MinMaxObserver
        quant_min: int = 0
        quant_max: int = 100
        qscheme: torch.qscheme = torch.per_tensor_affine
        ch_axis: int = 0
        is_dynamic: bool = False

    class Narrower(QuantizationSpec):
        pass

    assert read_spec(Narrower()) == QSpec(DType.INT8, 0, 100)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("int8", "found str"),
        (QuantizationSpec(torch.int8, quant_min=-200, quant_max=7), r"does not fit int8"),
        (QuantizationSpec(torch.int64), "found torch.int64"),
        (QuantizationSpec(torch.int8, Strange), "counterpart of 'Strange'"),
    ],
)
def test_what_can_not_be_read(written: Any, said: str) -> None:
    with pytest.raises(QConfigError, match=said):
        read_spec(written)


def test_an_annotation_that_asks_for_nothing_is_none() -> None:
    node = fx.Graph().placeholder("x")
    assert read_annotation(node) is None
    for note in (Note(_annotated=True), Note({node: None}), Note({node: QuantizationSpec(torch.float32)})):
        node.meta["quantization_annotation"] = note
        assert read_annotation(node) is None


# ------------------------------------------------------------------------------------------------------------- placement


def observed(model: fx.GraphModule) -> list[tuple[str, int, tuple[str, ...]]]:
    """Each observer in order: what it stands at, a number for the observer itself, and who takes its result."""
    numbers: dict[int, int] = {}
    found = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            observer = model.get_submodule(str(node.target))
            users = tuple("*" if user.op == "call_module" else user.name for user in node.users)
            found.append((node.args[0].name, numbers.setdefault(id(observer), len(numbers)), users))
    return found


def test_an_output_is_observed_for_all_its_users() -> None:
    model = prepared(fork(), lambda n: {"relu_default": Note(output_qspec=INT8)})
    assert observed(model) == [("relu_default", 0, ("neg_default", "abs_default"))]


def test_an_edge_is_observed_for_its_user_alone() -> None:
    model = prepared(fork(), lambda n: {"neg_default": Note({n["relu_default"]: INT8})})
    assert observed(model) == [("relu_default", 0, ("neg_default",))]


def test_edges_with_equal_specs_are_one() -> None:
    model = prepared(
        fork(), lambda n: {name: Note({n["relu_default"]: INT8}) for name in ("neg_default", "abs_default")}
    )
    assert observed(model) == [("relu_default", 0, ("neg_default", "abs_default"))]


def test_edges_with_other_specs_are_not() -> None:
    model = prepared(
        fork(),
        lambda n: {"neg_default": Note({n["relu_default"]: INT8}), "abs_default": Note({n["relu_default"]: UINT8})},
    )
    assert sorted(observed(model)) == [("relu_default", 0, ("abs_default",)), ("relu_default", 1, ("neg_default",))]


def test_an_edge_shares_with_the_value_that_it_carries() -> None:
    model = prepared(
        chain(), lambda n: {"relu_default": Note(output_qspec=INT8), "neg_default": Note({n["relu_default"]: INT8})}
    )
    assert observed(model) == [("relu_default", 0, ("neg_default",))]


def test_an_edge_with_another_spec_comes_after_the_value_s_own() -> None:
    model = prepared(
        chain(), lambda n: {"relu_default": Note(output_qspec=INT8), "neg_default": Note({n["relu_default"]: UINT8})}
    )
    assert observed(model) == [("relu_default", 0, ("*",)), ("observer_0", 1, ("neg_default",))]


def test_an_edge_may_decline_to_share() -> None:
    note = functools.partial(Note, allow_implicit_sharing=False)
    model = prepared(
        chain(), lambda n: {"relu_default": Note(output_qspec=INT8), "neg_default": note({n["relu_default"]: INT8})}
    )
    assert observed(model) == [("relu_default", 0, ("*",)), ("observer_0", 1, ("neg_default",))]


def test_what_is_shared_is_watched_everywhere() -> None:
    draft = Draft()
    x, y = draft.input(2, 3), draft.input(2, 3)
    model = prepared(
        draft.done(draft.call(aten.cat.default, [x, y], 1)),
        lambda n: {"cat_default": Note({n["x0"]: INT8, n["x1"]: SharedQuantizationSpec((n["x0"], n["cat_default"]))})},
    )
    assert [(at, number) for at, number, _ in observed(model)] == [("x0", 0), ("x1", 0)]
    model(torch.full((2, 3), 1.0), torch.full((2, 3), -3.0))
    debug = convert(model)
    (scale,) = {node.args[1] for node in debug.graph.nodes if "dequantize" in str(node.target)}
    assert scale == pytest.approx(4 / 255)


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_sharing_is_transitive_in_any_order(reference: list[int], order: list[int]) -> None:
    """Each of five edges refers to another one along a chain; nodes and edges are written down in any order."""
    draft = Draft()
    inputs = [draft.input(2) for _ in range(5)]
    model = draft.done(draft.call(aten.cat.default, [inputs[i] for i in order], 0))

    def notes(n: Nodes) -> dict[str, Note]:
        cat = n["cat_default"]
        x = [n[f"x{i}"] for i in range(5)]
        specs: dict[fx.Node, Any] = {x[reference[0]]: INT8}
        for before, after in itertools.pairwise(reference):
            specs[x[after]] = SharedQuantizationSpec((x[before], cat))
        return {"cat_default": Note({x[i]: specs[x[i]] for i in order}, SharedQuantizationSpec((x[order[0]], cat)))}

    assert {number for _, number, _ in observed(prepared(model, notes))} == {0}
    assert len(observed(prepared(model, notes))) == 6


def test_groups_that_meet_in_a_value_are_one() -> None:
    """(x, add) and its value share; (value, neg) and neg's value share; the value and the edge share unasked."""
    model = prepared(
        chain(),
        lambda n: {
            "relu_default": Note({n["x0"]: INT8}, SharedQuantizationSpec((n["x0"], n["relu_default"]))),
            "neg_default": Note(
                {n["relu_default"]: INT8}, SharedQuantizationSpec((n["relu_default"], n["neg_default"]))
            ),
        },
    )
    assert [(at, number) for at, number, _ in observed(model)] == [("x0", 0), ("relu_default", 0), ("neg_default", 0)]


# ------------------------------------------------------------------------------------------------------------- operators


def fused(n: Nodes) -> dict[str, Note]:
    linear = n["linear_default"]
    x, weight = linear.args[:2]
    return {
        "linear_default": Note({x: INT8, weight: WEIGHT}),  # type: ignore[dict-item]
        "relu_default": Note(output_qspec=INT8),
    }


def test_a_chain_with_nothing_inside_is_one_operator() -> None:
    assert operators(prepared(layer(), fused)) == {"quantized::linear_relu"}


def test_a_chain_that_is_quantized_inside_is_two() -> None:
    def notes(n: Nodes) -> dict[str, Note]:
        found = fused(n)
        found["linear_default"].output_qspec = INT8
        return found

    assert operators(prepared(layer(), notes)) == {"quantized::linear", "quantized::relu"}


@pytest.mark.parametrize("lacking", ["input", "weight", "result"])
def test_an_operator_that_lacks_a_spec_stays_in_float(lacking: str) -> None:
    def notes(n: Nodes) -> dict[str, Note]:
        found = fused(n)
        x, weight = n["linear_default"].args[:2]
        if lacking == "result":
            found["relu_default"].output_qspec = None
        else:
            found["linear_default"].input_qspec_map[x if lacking == "input" else weight] = None  # type: ignore[index]
        return found

    wanted = {"quantized::linear_relu_weight_only"} if lacking == "input" else set()
    assert operators(prepared(layer(), notes)) - {"quantized::relu"} == wanted


def test_a_result_may_be_quantized_on_its_only_edge() -> None:
    def notes(n: Nodes) -> dict[str, Note]:
        return {**fused(n), "relu_default": Note(), "neg_default": Note({n["relu_default"]: INT8})}

    draft = Draft()
    model = draft.done(draft.call(aten.neg.default, draft.relu(draft.linear(draft.input(2, 3), 4))))
    assert operators(prepared(model, notes)) == {"quantized::linear_relu"}


def test_run_time_ranges_find_the_dynamic_operator() -> None:
    model = prepare_pt2e(layer(relu=False), ByOperator(activation=AT_RUN_TIME, result=None))
    assert operators(model) == {"quantized::linear_dynamic"}


def test_a_weight_along_another_axis_fits_no_kernel() -> None:
    weight = QuantizationSpec(torch.int8, qscheme=torch.per_channel_symmetric, ch_axis=1)
    assert operators(prepare_pt2e(layer(), ByOperator(weight=weight))) == set()
