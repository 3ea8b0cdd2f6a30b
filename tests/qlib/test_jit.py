"""The flow by the names that TorchScript users know."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import FileCheck

import qlib
from qlib.deferred import Deferred
from qlib.errors import CalibrationError, CaptureError, ConversionError, QConfigError
from qlib.executed import executed_ops
from qlib.jit import (
    convert_dynamic_jit,
    convert_jit,
    fuse_conv_bn_jit,
    get_script_module,
    prepare_dynamic_jit,
    prepare_jit,
    quantize_dynamic_jit,
    quantize_jit,
)
from qlib.qconfig import PRESETS

DEFAULT = {"": PRESETS["default"]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 5)
        self.version = 3

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.head(y.flatten(1))

    @torch.jit.export
    def twice(self, x: Tensor) -> Tensor:
        return x * 2


class PerImage(nn.Module):
    """Holds for the batch that it is captured with only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / x.size(0)


def net() -> Net:
    torch.manual_seed(3)
    model = Net()
    model(torch.randn(8, 3, 4, 4))  # statistics that are not those of a fresh norm
    return model.eval()


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(batch))


def run(model: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        model(batch)


KINDS: dict[str, Callable[[], Any]] = {
    "plain": net,
    "scripted": lambda: get_script_module(net(), False, None),
    "traced": lambda: get_script_module(net(), True, (image(),)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() < 0.05 * b.norm())


# ---- static


@each_kind
def test_the_steps_one_by_one(kind: str) -> None:
    model = KINDS[kind]()
    prepared = prepare_jit(model, DEFAULT)
    run(prepared, [image(), image(64)])
    final = convert_jit(prepared)
    check = FileCheck().check("aten::quantize_per_tensor").check("quantized::conv2d_relu").check("quantized::linear(")
    check.check("aten::dequantize").check_not("aten::").run(final.graph)
    FileCheck().check_not("batch_norm").run(final.graph)
    for batch in (2, 64, 7):
        with torch.no_grad():
            assert close(final(image(batch)), model(image(batch)))


@each_kind
def test_in_one_call_as_by_the_steps_of_the_library(kind: str) -> None:
    final = quantize_jit(KINDS[kind](), DEFAULT, run, [[image()]])
    by_steps = qlib.quantize_model(net(), (image(),), method="script")
    assert torch.equal(final(image()), by_steps.final(image()))
    debug = quantize_jit(KINDS[kind](), DEFAULT, run, [[image()]], debug=True)
    assert torch.equal(debug(image()), by_steps.debug(image()))
    FileCheck().check("aten::conv2d").check("aten::relu").run(debug.graph)


def test_batches_of_other_shapes_feed_the_same_observers() -> None:
    prepared = prepare_jit(net(), DEFAULT)
    run(prepared, [image(), image(5)])
    mixed = prepare_jit(net(), DEFAULT)
    run(mixed, [image(5), image()])
    assert len(prepared.graphs) == 2
    assert torch.equal(convert_jit(prepared)(image(1)), convert_jit(mixed)(image(1)))
    narrow = prepare_jit(net(), DEFAULT)
    run(narrow, [image()])
    assert not torch.equal(convert_jit(prepared)(image(1)), convert_jit(narrow)(image(1)))


def test_a_model_that_computes_with_its_batch_is_right_for_each() -> None:
    model = PerImage().eval()
    batches = [torch.randn(batch, 4) for batch in (1, 4, 9)]
    final = quantize_jit(model, DEFAULT, run, [batches])
    with torch.no_grad():
        for x in batches:
            assert (final(x) - model(x)).abs().max() < 0.05


def test_other_operators_on_other_shapes_can_not_share_observers() -> None:
    class Switching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc(x)) if x.size(0) > 2 else torch.sigmoid(self.fc(x))

    prepared = prepare_jit(torch.jit.script(Switching().eval()), DEFAULT)
    prepared(torch.randn(2, 4))
    with pytest.raises(CaptureError, match=r"other operators on float32\[3, 4\] than on float32\[2, 4\]"):
        prepared(torch.randn(3, 4))


def test_modules_by_path() -> None:
    final = quantize_jit(net(), {**DEFAULT, "head": None}, run, [[image()]])
    FileCheck().check("quantized::conv2d_relu").check("aten::linear(").run(final.graph)
    only = quantize_jit(net(), {"head": PRESETS["default"]}, run, [[image()]])
    FileCheck().check("aten::conv2d").check("quantized::linear(").run(only.graph)


@each_kind
def test_a_path_that_does_not_exist_names_the_close_ones(kind: str) -> None:
    with pytest.raises(QConfigError, match=r"'haed'.*'head'"):
        prepare_jit(KINDS[kind](), {"haed": PRESETS["default"]})


def test_the_model_is_left_alone_unless_in_place() -> None:
    model = net()
    prepared = prepare_jit(model, DEFAULT)
    with torch.no_grad():
        model.head.weight.zero_()
    assert prepared.float_module.head.weight.any()
    assert prepare_jit(model, DEFAULT, inplace=True).float_module is model


def test_calibration_after_converting_changes_a_model_converted_in_place_only() -> None:
    prepared = prepare_jit(net(), DEFAULT)
    prepared(image())
    own = convert_jit(prepared)
    before = own(image())
    prepared(100 * image())
    assert torch.equal(own(image()), before)
    shared = convert_jit(prepared, inplace=True)
    assert shared.__dict__["source"] is prepared


@pytest.mark.parametrize("kind", ["plain", "scripted", "traced"])
def test_preserved_attributes(kind: str) -> None:
    prepared = prepare_jit(KINDS[kind](), DEFAULT)
    prepared(image())
    names = ["norm"] if kind == "traced" else ["version", "twice"]
    kept = convert_jit(prepared, preserved_attrs=names)
    assert all(hasattr(kept, name) for name in names)
    if kind != "traced":
        assert kept.version == 3
        assert torch.equal(kept.twice(torch.ones(2)), torch.full((2,), 2.0))
    assert not hasattr(convert_jit(prepared), names[0])
    with pytest.raises(ConversionError, match="'conw'; did you mean 'conv'"):
        convert_jit(prepared, preserved_attrs=["conw"])


@each_kind
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_a_model_is_copied_and_saved_with_its_observers(kind: str, way: str) -> None:
    def through(model: Deferred) -> Any:
        if way == "deepcopy":
            return copy.deepcopy(model)
        if way == "pickle":
            return pickle.loads(pickle.dumps(model))
        file = io.BytesIO()
        torch.save(model, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    prepared = prepare_jit(KINDS[kind](), DEFAULT)
    run(prepared, [image(), image(5)])
    expected = convert_jit(prepared)
    again = convert_jit(through(prepared))
    for batch in (2, 5, 3):
        assert torch.equal(again(image(batch)), expected(image(batch)))
        assert torch.equal(through(expected)(image(batch)), expected(image(batch)))
    other = through(prepared)
    first, second = other.graphs.values()
    assert first.get_submodule("observer_0") is second.get_submodule("observer_0")


# ---- dynamic


@each_kind
def test_dynamic_needs_no_calibration(kind: str) -> None:
    final = quantize_dynamic_jit(KINDS[kind](), DEFAULT)
    with pytest.raises(CaptureError, match="no graph yet: call it once"):
        _ = final.graph
    expected = qlib.quantize_model(net(), (image(),), mode="dynamic", method="script")
    assert torch.equal(final(image()), expected.final(image()))
    assert executed_ops(final.model) == executed_ops(expected.final)
    FileCheck().check("quantized::linear_dynamic").run(final.code)
    debug = quantize_dynamic_jit(KINDS[kind](), DEFAULT, debug=True)
    assert torch.equal(debug(image()), expected.debug(image()))
    FileCheck().check("aten::_choose_qparams_per_tensor").check("aten::linear").run(debug.graph)


def test_dynamic_by_steps() -> None:
    prepared = prepare_dynamic_jit(net(), DEFAULT)
    never_called = convert_dynamic_jit(prepared)
    prepared(image())
    assert torch.equal(convert_dynamic_jit(prepared)(image()), never_called(image()))


# ---- batch norms


@each_kind
def test_batch_norms_fold(kind: str) -> None:
    model = KINDS[kind]()
    fused = fuse_conv_bn_jit(model)
    with torch.no_grad():
        assert torch.allclose(fused(image()), model(image()), atol=1e-5)
    FileCheck().check("aten::conv2d").check_not("batch_norm").run(fused.graph)
    prepared = prepare_jit(fused, DEFAULT)
    prepared(image())
    assert torch.equal(convert_jit(prepared)(image()), quantize_jit(model, DEFAULT, run, [[image()]])(image()))


# ---- bad input


def test_calibration_that_never_ran() -> None:
    with pytest.raises(CalibrationError, match="never called"):
        convert_jit(prepare_jit(net(), DEFAULT))
    with pytest.raises(CalibrationError, match="never called"):
        quantize_jit(net(), DEFAULT, lambda model, data: None, [[]])
    with pytest.raises(CalibrationError, match="run_fn and run_args"):
        quantize_jit(net(), DEFAULT, run, [])


def test_what_was_not_prepared_is_not_converted() -> None:
    for model in (net(), fuse_conv_bn_jit(net()), quantize_dynamic_jit(net(), DEFAULT)):
        with pytest.raises(ConversionError, match="prepare it first"):
            convert_jit(model)


@pytest.mark.parametrize("wrong", [{1: None}, [("", None)], {"": 3}, {"": "defualt"}, {"": SimpleNamespace()}])
def test_what_is_no_dictionary_of_qconfigs(wrong: Any) -> None:
    with pytest.raises(QConfigError, match="expected"):
        prepare_jit(net(), wrong)


def test_what_can_not_be_captured() -> None:
    with pytest.raises(CaptureError, match="expected a tensor"):
        prepare_jit(net(), DEFAULT)([image()])
    with pytest.raises(QConfigError, match="float32"):
        prepare_jit(nn.Linear(3, 3).double().eval(), DEFAULT)(torch.randn(2, 3, dtype=torch.float64))


def test_the_arguments_are_those_that_callers_know() -> None:
    def arguments(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert arguments(quantize_jit) == ["model", "qconfig_dict", "run_fn", "run_args", "inplace", "debug"]
    assert arguments(quantize_dynamic_jit) == ["model", "qconfig_dict", "inplace", "debug"]
    assert arguments(prepare_jit) == arguments(prepare_dynamic_jit) == ["model", "qconfig_dict", "inplace"]
    assert arguments(convert_jit)[1:] == arguments(convert_dynamic_jit)[1:] == ["inplace", "debug", "preserved_attrs"]
    assert arguments(fuse_conv_bn_jit) == ["model", "inplace"]
    assert arguments(get_script_module) == ["model", "tracing", "data"]
