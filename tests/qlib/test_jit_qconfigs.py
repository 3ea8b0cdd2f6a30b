"""QConfigs of other libraries in the TorchScript flow: read by names and attributes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import FileCheck

from qlib.errors import QConfigError
from qlib.jit import (
    quantize_dynamic_jit,
    script_qconfig,
    script_qconfig_dict,
)
from qlib.qconfig import PRESETS, QConfigMapping
from qlib.qparams import DType, QSpec


def observer(name: str, **attributes: Any) -> Callable[[], Any]:
    """What makes an observer of a class with this name and these attributes."""
    return partial(type(name, (), attributes))


def borrowed(activation: Callable[[], Any], weight: Callable[[], Any]) -> Any:
    return SimpleNamespace(activation=activation, weight=weight)


UINT8 = observer("MinMaxObserver", dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=255)
WEIGHT = observer(
    "PerChannelMinMaxObserver", dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-128, quant_max=127,
    ch_axis=0,
)  # fmt: skip
HALF = observer("PlaceholderObserver", dtype=torch.float16)
OURS_WEIGHT = QSpec(DType.INT8, -128, 127, symmetric=True, axis=0)


@pytest.mark.parametrize(
    ("made", "spec"),
    [
        (UINT8, QSpec(DType.UINT8, 0, 255)),
        (
            observer("HistogramObserver", dtype=torch.quint8, quant_min=0, quant_max=127, bins=2048),
            QSpec(DType.UINT8, 0, 127, observer="histogram"),
        ),
        (observer("MinMaxObserver", dtype=torch.quint8, reduce_range=True), QSpec(DType.UINT8, 0, 127)),
        (observer("MinMaxObserver", dtype=torch.qint8, reduce_range=True), QSpec(DType.INT8, -64, 63)),
        (
            observer("MovingAverageMinMaxObserver", dtype=torch.uint8, averaging_constant=0.01),
            QSpec(DType.UINT8, 0, 255, observer="moving_average_min_max"),
        ),
        (
            observer("PlaceholderObserver", dtype=torch.quint8, is_dynamic=True, quant_min=0, quant_max=255),
            QSpec(DType.UINT8, 0, 255, observer="runtime"),
        ),
        (
            observer("MinMaxObserver", dtype=torch.quint8, is_dynamic=True),
            QSpec(DType.UINT8, 0, 255, observer="runtime"),
        ),
        (
            observer("FixedQParamsObserver", dtype=torch.quint8, scale=torch.tensor([0.5]), zero_point=torch.tensor(3)),
            QSpec(DType.UINT8, 0, 255, observer="fixed", scale=0.5, zero_point=3),
        ),
        (observer("PlaceholderObserver", dtype=torch.float32), None),
    ],
)
def test_activations_of_other_libraries(made: Callable[[], Any], spec: QSpec | None) -> None:
    qconfig = script_qconfig(borrowed(made, WEIGHT))
    assert qconfig is not None
    assert qconfig.activation == spec
    assert qconfig.weight == OURS_WEIGHT


def test_fake_quantize_modules_are_read_by_the_observer_within() -> None:
    inner = UINT8()
    fake = observer("FakeQuantize", dtype=torch.quint8, quant_min=0, quant_max=255, activation_post_process=inner)
    qconfig = script_qconfig(borrowed(fake, WEIGHT))
    assert qconfig is not None
    assert qconfig.activation == QSpec(DType.UINT8, 0, 255)


def test_half_precision() -> None:
    assert script_qconfig(borrowed(HALF, HALF)) == PRESETS["fp16"]
    model, x = nn.Sequential(nn.Linear(16, 5)).eval(), torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    final = quantize_dynamic_jit(model, {"": borrowed(HALF, HALF)})
    with torch.no_grad():
        assert (final(x) - model(x)).norm() < 0.05 * model(x).norm()
    FileCheck().check("quantized::linear_dynamic_fp16").run(final.graph)


def test_ours_and_none_stay_as_they_are() -> None:
    assert script_qconfig(None) is None
    assert script_qconfig(PRESETS["int8"]) is PRESETS["int8"]
    assert script_qconfig("int8") is PRESETS["int8"]
    mapping = QConfigMapping(PRESETS["int8"])
    assert script_qconfig_dict(mapping) is mapping
    assert script_qconfig_dict({"": None, "fc": PRESETS["int8"]}) == QConfigMapping(None, {"fc": PRESETS["int8"]})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (observer("MovingAverageMinMaxObserver", dtype=torch.quint8, averaging_constant=0.5), "averaging_constant"),
        (observer("HistogramObserver", dtype=torch.quint8, bins=64), "bins=2048"),
        (observer("OtherObserver", dtype=torch.quint8), "'OtherObserver'"),
        (observer("MinMaxObserver", dtype=torch.complex64), "complex64"),
        (observer("MinMaxObserver", dtype=torch.quint8, qscheme=torch.per_channel_affine), "one scale per tensor"),
    ],
)
def test_what_has_no_counterpart_here(made: Callable[[], Any], said: str) -> None:
    with pytest.raises(QConfigError, match=said):
        script_qconfig(borrowed(made, WEIGHT))
