"""Parameters that are given for single tensors."""

from __future__ import annotations

import pytest
import torch
from graphs import Draft, aten
from torch import fx

from qlib import convert, executed_ops, lower, prepare
from qlib.errors import QConfigError
from qlib.given import names_of
from qlib.qparams import QSpec


def fixed(dtype: str, scale: float | tuple[float, ...], zero_point: int | tuple[int, ...] = 0, axis=None) -> QSpec:
    return QSpec(dtype, observer="fixed", scale=scale, zero_point=zero_point, axis=axis)


def layer() -> fx.GraphModule:
    """An input, its weights and one operator."""
    draft = Draft()
    x, weight, bias = draft.input(2, 3), draft.draw("weight", 4, 3), draft.draw("bias", 4)
    return draft.done(draft.call(aten.linear.default, x, weight, bias))


def two(operator=aten.add.Tensor, relu: bool = False) -> fx.GraphModule:
    draft = Draft()
    y = draft.call(operator, draft.input(2, 3), draft.input(2, 3))
    return draft.done(draft.relu(y) if relu else y)


def test_tensors_are_called_as_the_graph_calls_them() -> None:
    assert [name for name, _ in names_of(layer().graph)] == ["x0", "weight", "bias", "output_0"]


def test_given_parameters_are_used_exactly() -> None:
    scales, points = (0.1, 0.25, 3.0, 1e-3), (0, 7, 128, 255)
    given = {
        "x0": fixed("int8", 0.3, -5),
        "weight": fixed("uint8", scales, points, axis=0),
        "output_0": fixed("uint8", 0.7, 9),
    }
    debug = convert(prepare(layer(), given=given))
    final = lower(debug)
    assert executed_ops(final)["quantized::linear"] == 1
    (kernel,) = [node for node in final.graph.nodes if node.target is torch.ops.qlib.linear.default]
    x, x_scale, x_point, _, w_scale, w_point, bias, *result = kernel.args
    assert x.args[1:] == (pytest.approx(0.3), -5, -128, 127, torch.int8)
    assert (x_scale, x_point) == (float(torch.tensor(0.3)), -5)
    assert torch.equal(getattr(final, w_scale.target), torch.tensor(scales))
    assert getattr(final, w_point.target).tolist() == list(points)
    assert getattr(final, bias.target).dtype == torch.int32
    assert result == [float(torch.tensor(0.7)), 9, 0, 255, torch.uint8]
    inputs = torch.randn(2, 3)
    assert torch.equal(debug(inputs), final(inputs))


def test_inputs_with_parameters_start_a_quantized_region() -> None:
    """By itself a sum is quantized only where its operands are already."""
    assert "quantized::add" not in executed_ops(lower(convert(prepare(two()))))
    given = {"x0": fixed("uint8", 0.5), "x1": fixed("int8", 0.25), "output_0": fixed("uint8", 1.0, 3)}
    assert executed_ops(lower(convert(prepare(two(), given=given))))["quantized::add"] == 1


def test_what_shares_parameters_has_the_given_ones() -> None:
    draft = Draft()
    x = draft.input(2, 3, 4)
    model = draft.done(draft.call(aten.transpose.int, draft.call(aten.flip.default, x, [1]), 1, 2))
    final = lower(convert(prepare(model, given={"x0": fixed("int8", 0.3, -5)})))
    assert executed_ops(final)["quantized::flip"] == executed_ops(final)["quantized::transpose"] == 1
    with pytest.raises(QConfigError, match=r"'x0' and 'output_0' share their parameters.*scale 0\.3.*scale 0\.4"):
        prepare(model, given={"x0": fixed("int8", 0.3, -5), "output_0": fixed("int8", 0.4, -5)})


def test_a_result_may_stay_in_float() -> None:
    given = {"x0": fixed("uint8", 0.5), "weight": fixed("int8", 0.25), "output_0": None}
    debug = convert(prepare(layer(), given=given))
    assert executed_ops(lower(debug)) == executed_ops(debug)
    x = torch.tensor([[0.5, 1.0, 1.5], [0.0, 0.5, 127.5]])
    weight = torch.fake_quantize_per_tensor_affine(layer().weight, 0.25, 0, -128, 127)
    step = 0.5 * 0.25
    bias = (layer().bias / step).round() * step
    assert torch.equal(debug(x), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"y": fixed("uint8", 0.5)}, r"'y', which the graph does not have; expected one of x0, weight, bias, output_0"),
        ({"x0": QSpec("uint8")}, "expected a scale for 'x0', found the observer 'min_max'"),
        ({"x0": fixed("uint8", (0.5, 0.5), axis=0)}, "expected one scale for 'x0', found one per channel"),
        ({"weight": fixed("int8", (0.5,) * 3, axis=1)}, r"one per channel along axis 0, for 'weight'.*along axis 1"),
        ({"weight": None}, "'weight', the weight of quantized::linear, found a float"),
    ],
)
def test_what_can_not_be_kept_to_is_said(given: dict[str, QSpec | None], said: str) -> None:
    with pytest.raises(QConfigError, match=said):
        prepare(layer(), given=given)


def test_a_result_of_a_float_operator_can_not_be_given() -> None:
    draft = Draft()
    model = draft.done(draft.call(aten.atan.default, draft.input(2, 3)))
    with pytest.raises(
        QConfigError, match=r"'output_0' is to be uint8 with scale 1\.0.*but aten::atan.*stays in float"
    ):
        prepare(model, given={"x0": fixed("uint8", 0.5), "output_0": fixed("uint8", 1.0)})
    with pytest.raises(QConfigError, match=r"aten::add.*its inputs are not quantized"):
        prepare(two(), given={"x0": fixed("uint8", 0.5), "output_0": fixed("uint8", 1.0)})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scale": (0.5, 0.25)}, "several scales need the axis"),
        ({"scale": (0.5, -1.0), "axis": 0}, "positive finite"),
        ({"scale": (0.5, 0.25), "zero_point": (1,), "axis": 0}, "expected 2 zero points"),
        ({"scale": (0.5, 0.25), "zero_point": (1, 256), "axis": 0}, "256 lies outside"),
    ],
)
def test_wrong_scales_for_channels(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QSpec(observer="fixed", **fields)
