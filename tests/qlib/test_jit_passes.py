from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from graphs import Draft
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import qlib
from qlib import CalibrationError, CaptureError, ConversionError, QConfigError, QConfigMapping, QuantType
from qlib.arith import dequantize as by_params
from qlib.graph import Model
from qlib.jit_passes import insert_observers, is_weight, register_prepacked_params
from qlib.qconfig import PRESETS
from qlib.qparams import DType


def three_nodes() -> Model:
    draft = Draft()
    return draft.done(draft.relu(draft.linear(draft.input(2, 3), 4)))


def observers(model: nn.Module) -> list[str]:
    return [type(child).__name__ for child in model.children() if hasattr(child, "spec")]


DEFAULT = {"": PRESETS["default"]}


@pytest.mark.parametrize(
    ("quant_type", "placed"),
    [
        (QuantType.STATIC, ["MinMaxObserver"] * 3),
        (QuantType.DYNAMIC, ["RuntimeObserver", "MinMaxObserver"]),
        (QuantType.WEIGHT_ONLY, ["MinMaxObserver"]),
    ],
)
def test_observers_by_kind_of_quantization(quant_type: QuantType, placed: list[str]) -> None:
    model = three_nodes()
    observed = insert_observers(model, "forward", DEFAULT, False, quant_type)
    assert sorted(observers(observed)) == sorted(placed)
    assert not observers(model)
    assert insert_observers(model, "forward", DEFAULT, True, quant_type) is model
    assert sorted(observers(model)) == sorted(placed)


def test_observers_placed_in_place_see_data() -> None:
    model = insert_observers(three_nodes(), "forward", DEFAULT, inplace=True)
    qlib.calibrate(model, [(torch.randn(2, 3),)])
    assert qlib.executed_ops(qlib.lower(qlib.convert(model)))["quantized::linear_relu"] == 1


def test_what_insert_observers_refuses() -> None:
    with pytest.raises(ConversionError, match=r"'forward'.*found 'other'"):
        insert_observers(three_nodes(), "other", DEFAULT)
    with pytest.raises(QConfigError, match="found never"):
        insert_observers(three_nodes(), "forward", DEFAULT, quant_type="never")  # type: ignore[arg-type]


@pytest.mark.parametrize("inplace", [False, True])
def test_training_after_insert_observers(inplace: bool) -> None:
    given = three_nodes()
    weight = given.get_buffer("fc.weight").clone() if "fc.weight" in dict(given.named_buffers()) else None
    model = insert_observers(given, "forward", DEFAULT, inplace, QuantType.QAT)
    assert (model is given) is inplace and model.training
    kinds = [type(part).__name__ for part in model.modules() if hasattr(part, "spec")]
    assert {*kinds} == {"FakeQuantize", "MinMaxObserver"} and kinds.count("FakeQuantize") == 3
    assert inplace or not observers(given)
    x = torch.randn(2, 3)
    model(x)
    model.eval()
    debug = qlib.convert(model)
    assert torch.equal(model(x), debug(x))
    assert qlib.executed_ops(qlib.lower(debug))["quantized::linear_relu"] == 1
    assert weight is None or inplace or torch.equal(given.get_buffer("fc.weight"), weight)


def final() -> Model:
    draft = Draft()
    model = draft.done(draft.linear(draft.relu(draft.linear(draft.input(2, 3), 4, "one")), 3, "two"))
    prepared = qlib.prepare(model)
    qlib.calibrate(prepared, [(torch.randn(2, 3),)])
    return qlib.lower(qlib.convert(prepared))


def test_weights_get_names_of_their_own() -> None:
    model, x = final(), torch.randn(2, 3)
    before, state = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    assert register_prepacked_params(model, "forward", is_weight, "_packed") == {"_packed_0", "_packed_1"}
    assert torch.equal(model(x), before)
    assert torch.equal(model._packed_0, state["one.weight_int8"])
    assert torch.equal(model._packed_1, state["two.weight_int8"])
    assert "one.weight_int8" not in model.state_dict()
    with pytest.raises(ConversionError, match="'_packed_0'"):
        register_prepacked_params(model, "forward", is_weight, "_packed")


def test_only_what_the_predicate_names_is_registered() -> None:
    model = final()
    before = set(model.state_dict())
    assert register_prepacked_params(model, "forward", lambda node: False, "p") == set()
    assert set(model.state_dict()) == before


# ---- bad input of the library's own flow


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(3, 4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.body(x))


def test_rules_for_modules() -> None:
    captured = qlib.capture(TwoLayers().eval(), (torch.randn(2, 3),))
    with pytest.raises(QConfigError, match=r"'bdoy'.*'body'"):
        qlib.prepare(captured, QConfigMapping(None, {"bdoy": PRESETS["default"]}))
    without_operators = QConfigMapping(None, {"drop": None}, {"nn.Conv2d": None})
    unused = qlib.prepare(captured, without_operators).meta["unused_rules"]
    assert unused == ("modules: drop", "types: nn.Conv2d")


def test_a_module_without_submodules_has_no_paths() -> None:
    captured = qlib.capture(nn.Linear(3, 4).eval(), (torch.randn(2, 3),))
    with pytest.raises(QConfigError, match="no submodules"):
        qlib.prepare(captured, QConfigMapping(None, {"fc": None}))


@pytest.mark.parametrize("form", ["captured", "prepared", "debug", "final"])
def test_every_form_says_what_it_was_captured_for(form: str) -> None:
    model = getattr(qlib.quantize_model(TwoLayers().eval(), (torch.randn(2, 3),)), form)
    assert model(torch.randn(7, 3)).shape == (7, 4)
    for wrong in (torch.randn(2, 4), torch.randn(3), torch.randn(2, 3, dtype=torch.float64)):
        with pytest.raises(CaptureError, match=r"'x': expected float32\[2, 3\].*found float"):
            model(wrong)
    with pytest.raises(CaptureError, match=r"expected 1 inputs \(x\), found 2"):
        model(torch.randn(2, 3), torch.randn(2, 3))
    assert torch.equal(model(x=torch.ones(2, 3)), model(torch.ones(2, 3)))


def test_a_graph_that_holds_for_one_batch_says_so() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.size(0) * 3)

    captured = qlib.capture(Fixed(), (torch.randn(2, 3),))
    with pytest.raises(CaptureError, match=r"expected float32\[2, 3\].*found float32\[4, 3\].*torch: "):
        captured(torch.randn(4, 3))


def test_calibration_data_of_another_shape() -> None:
    prepared = qlib.prepare(qlib.capture(TwoLayers().eval(), (torch.randn(2, 3),)))
    with pytest.raises(CaptureError, match=r"found float32\[2, 5\]"):
        qlib.calibrate(prepared, [(torch.randn(2, 5),)])


# ---- single tensors

floats = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=24)
integers = st.sampled_from([DType.UINT8, DType.INT8, DType.INT16, DType.INT4, DType.UINT4])


@given(floats, integers, st.booleans())
def test_there_and_back_within_half_a_step(values: Iterable[float], dtype: DType, symmetric: bool) -> None:
    x = torch.tensor(list(values), dtype=torch.float32)
    chosen = qlib.choose_qparams(x, dtype, symmetric)
    q = qlib.quantize_per_tensor(x, chosen.scale, chosen.zero_point, dtype)
    back = qlib.dequantize(q, chosen.scale, chosen.zero_point)
    assert torch.equal(back, by_params(q, chosen))
    # Rounding the zero point to an integer moves the range by up to half a step more.
    assert bool(((back - x).abs() <= chosen.scale * 1.001 + 1e-30).all())


@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3))
def test_channels_are_tensors_of_their_own(axis: int, first: int, second: int) -> None:
    x = torch.randn(first, second, 2, generator=torch.Generator().manual_seed(axis))
    chosen = qlib.choose_qparams(x, DType.INT8, True, axis)
    q = qlib.quantize_per_channel(x, chosen.scale, chosen.zero_point, axis)
    back = qlib.dequantize(q, chosen.scale, chosen.zero_point, axis)
    for index in range(x.shape[axis]):
        part = x.select(axis, index)
        one = qlib.choose_qparams(part, "int8", symmetric=True)
        stored = qlib.quantize_per_tensor(part, one.scale, one.zero_point, torch.int8)
        assert torch.equal(q.select(axis, index), stored)
        assert torch.equal(back.select(axis, index), qlib.dequantize(stored, one.scale, one.zero_point))


def test_quantizing_by_hand() -> None:
    x = torch.tensor([-1.0, 0.25, 0.75, 1.25, 1000.0])  # ties go to the even integer, the last saturates
    assert qlib.quantize_per_tensor(x, 0.5, 10, torch.uint8).tolist() == [8, 10, 12, 12, 255]
    assert qlib.quantize_per_tensor(x, 0.5, 10, torch.quint8).dtype is torch.uint8
    assert qlib.dequantize(torch.tensor([8, 255], dtype=torch.uint8), 0.5, 10).tolist() == [-1.0, 122.5]


def test_parameters_that_can_not_be() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(QConfigError, match="positive"):
        qlib.quantize_per_tensor(x, 0.0, 0)
    with pytest.raises(QConfigError, match="zero points in"):
        qlib.quantize_per_tensor(x, 1.0, 256)
    with pytest.raises(QConfigError, match="expected 3 scales"):
        qlib.quantize_per_channel(x, [1.0, 1.0], [0, 0], 1)
    with pytest.raises(QConfigError, match="axis"):
        qlib.choose_qparams(x, axis=2)
    with pytest.raises(QConfigError, match="expected a type"):
        qlib.quantize_per_tensor(x, 1.0, 0, torch.complex64)
    with pytest.raises(CalibrationError):
        qlib.choose_qparams(torch.tensor([float("nan")]))
