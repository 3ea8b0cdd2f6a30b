"""Biases and contradictions in what a quantizer asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Draft, aten, example
from quantizers import AT_RUN_TIME, INT8, WEIGHT, ByOperator, Nodes, Note, chain, layer, operators, prepared
from torch import fx

from qlib.errors import QConfigError, QuantizerError
from qlib.passes.convert import convert
from qlib.passes.lower import lower
from qlib.pt2e import prepare_pt2e
from qlib.quantizer import (
    DerivedQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)


def product(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    (x, _), (w, _) = (observer.calculate_qparams() for observer in observers)
    return x * w, torch.zeros_like(x, dtype=torch.int32)


def from_both(node: fx.Node) -> DerivedQuantizationSpec:
    x, weight = node.args[:2]
    return DerivedQuantizationSpec([(x, node), (weight, node)], product, torch.int32)  # type: ignore[list-item]


def bias_of(model: fx.GraphModule) -> fx.Node:
    (linear,) = model.graph.find_nodes(op="call_function", target=aten.linear.default)
    bias = linear.args[2]
    assert isinstance(bias, fx.Node)
    return bias


def converted(model: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
    ready = prepare_pt2e(model, quantizer)
    ready(*example(model))
    return convert(ready)


def test_a_bias_without_a_spec_is_a_float_in_whole_steps() -> None:
    debug = converted(layer(relu=False), ByOperator())
    bias = bias_of(debug)
    assert bias.op == "get_attr"
    (linear,) = debug.graph.find_nodes(op="call_function", target=aten.linear.default)
    x, weight = linear.args[:2]
    steps = x.args[1] * debug.get_buffer(str(weight.args[1].target)).double()  # type: ignore[union-attr, operator]
    values = debug.get_buffer(str(bias.target)).double() / steps
    assert (values - values.round()).abs().max() < 1e-3
    assert values.abs().max() > 100
    final = lower(debug)
    (integers,) = (value for name, value in final.named_buffers() if name.endswith("bias_int32"))
    assert torch.equal(integers, values.round().to(torch.int32))


def test_a_derived_bias_is_integers_and_a_dequantize() -> None:
    debug = converted(layer(relu=False), ByOperator(bias=from_both))
    assert bias_of(debug).target is torch.ops.qlib.dequantize_per_channel.default
    plain = converted(layer(relu=False), ByOperator())
    x = example(debug)
    assert torch.equal(lower(debug)(*x), lower(plain)(*x))


def test_a_bias_that_no_kernel_takes_is_left_as_it_is() -> None:
    model = layer(relu=False)
    assert str(bias_of(converted(model, ByOperator(result=None))).target) == "fc.bias"


def test_a_bias_with_a_range_of_its_own_leaves_the_layer_in_float() -> None:
    ready = prepare_pt2e(layer(relu=False), ByOperator(bias=lambda node: QuantizationSpec(torch.int32)))
    assert operators(ready) == set()
    ready(*example(ready))
    assert bias_of(convert(ready)).target is torch.ops.qlib.dequantize_per_tensor.default


# -------------------------------------------------------------------------------------------------------- contradictions


def refused(model: fx.GraphModule, notes: Any, said: str) -> None:
    with pytest.raises(QuantizerError, match=said):
        prepared(model, notes)


def test_sharing_with_what_has_no_spec() -> None:
    refused(
        chain(),
        lambda n: {"neg_default": Note({n["relu_default"]: SharedQuantizationSpec(n["relu_default"])})},
        "the edge relu_default → neg_default shares with the value of relu_default, which has no spec",
    )


@pytest.mark.parametrize("length", [1, 2])
def test_sharing_in_a_circle(length: int) -> None:
    def notes(n: Nodes) -> dict[str, Note]:
        names = ["relu_default", "neg_default"][:length]
        return {a: Note(output_qspec=SharedQuantizationSpec(n[b])) for a, b in zip(names, names[::-1], strict=True)}

    refused(chain(), notes, "in a circle")


def test_an_input_that_the_node_does_not_take() -> None:
    refused(chain(), lambda n: {"neg_default": Note({n["x0"]: INT8})}, "neg_default is annotated with an input x0")


def test_derived_from_what_is_not_quantized() -> None:
    with pytest.raises(QuantizerError, match=r"derived from the edge x0 → linear_default, which is not quantized"):
        prepare_pt2e(layer(), ByOperator(activation=None, bias=from_both))


def test_derived_by_another_rule() -> None:
    def rule(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        x, w = product(observers)
        return 2 * x, w

    def spec(node: fx.Node) -> DerivedQuantizationSpec:
        x, weight = node.args[:2]
        return DerivedQuantizationSpec([(x, node), (weight, node)], rule, torch.int32)  # type: ignore[list-item]

    with pytest.raises(QuantizerError, match=r"expected the product of the scales"):
        prepare_pt2e(layer(), ByOperator(bias=spec))


def test_derived_but_no_bias() -> None:
    refused(
        chain(),
        lambda n: {
            "relu_default": Note(output_qspec=INT8),
            "neg_default": Note(
                {n["relu_default"]: INT8}, DerivedQuantizationSpec([n["relu_default"]], product, torch.int32)
            ),
        },
        "expected derived parameters for a bias only",
    )


def test_sharing_with_what_is_derived() -> None:
    def notes(n: Nodes) -> dict[str, Note]:
        linear = n["linear_default"]
        x, weight, bias = linear.args[:3]
        edges: dict[Any, Any] = {x: INT8, weight: WEIGHT, bias: from_both(linear)}
        return {
            "linear_default": Note(edges),
            "relu_default": Note(output_qspec=SharedQuantizationSpec((bias, linear))),  # type: ignore[arg-type]
        }

    refused(layer(), notes, "whose parameters are derived")


def test_a_weight_that_shares_with_data() -> None:
    def notes(n: Nodes) -> dict[str, Note]:
        linear = n["linear_default"]
        x, weight = linear.args[:2]
        edges: dict[Any, Any] = {x: INT8, weight: SharedQuantizationSpec((x, linear))}  # type: ignore[arg-type]
        return {"linear_default": Note(edges, INT8)}

    refused(layer(), notes, "is a weight and shares with other tensors")


def test_a_weight_at_run_time() -> None:
    with pytest.raises(QuantizerError, match="is a weight: expected an observer that sees it"):
        prepare_pt2e(layer(), ByOperator(weight=AT_RUN_TIME))


@pytest.mark.parametrize(
    ("spec", "said"),
    [(WEIGHT, "found one per channel"), (QuantizationSpec(torch.float16), "float16, which is for weights")],
)
def test_what_is_for_weights_only(spec: QuantizationSpec, said: str) -> None:
    refused(chain(), lambda n: {"relu_default": Note(output_qspec=spec)}, said)


def test_a_tensor_that_is_not_float() -> None:
    draft = Draft()
    model = draft.done(draft.call(aten.abs.default, draft.input(2, dtype=torch.int64)))
    with pytest.raises(QConfigError, match=r"found torch.int64 at abs_default"):
        prepared(model, lambda n: {"abs_default": Note(output_qspec=INT8)})
