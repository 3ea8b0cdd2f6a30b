"""Specs' QConfigs in the words of torch, and the refusals of what has no word there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.ao.quantization import observer as observers  # noqa: TID251

from conformance.backends.torch_qconfigs import (
    LACKS,
    PLAIN_TENSORS,
    Words,
    constructor,
    in_mode,
    refuse_types_of_integers,
    refuse_zero_points,
    torch_qconfig,
    torch_words,
    trainable,
)
from conformance.errors import Unsupported
from qlib.qconfig import PRESETS, QConfig, QConfigMapping
from qlib.qparams import DType, QSpec


@pytest.mark.parametrize(
    ("spec", "kind", "expected"),
    [
        (QSpec(), "MinMaxObserver", (torch.quint8, torch.per_tensor_affine, 0, 255)),
        (QSpec(qmax=127), "MinMaxObserver", (torch.quint8, torch.per_tensor_affine, 0, 127)),
        (QSpec(DType.INT4, symmetric=True), "MinMaxObserver", (torch.qint8, torch.per_tensor_symmetric, -7, 7)),
        (
            QSpec(DType.INT8, symmetric=True, axis=0),
            "PerChannelMinMaxObserver",
            (torch.qint8, torch.per_channel_symmetric, -127, 127),
        ),
        (QSpec(observer="histogram"), "HistogramObserver", (torch.quint8, torch.per_tensor_affine, 0, 255)),
    ],
)
def test_observers(spec: QSpec, kind: str, expected: tuple[object, ...]) -> None:
    made = constructor(spec, torch_words())()
    assert type(made).__name__ == kind
    assert (made.dtype, made.qscheme, made.quant_min, made.quant_max) == expected


def test_fixed_and_run_time_ranges() -> None:
    fixed = constructor(QSpec(observer="fixed", scale=0.5, zero_point=3), torch_words())()
    scale, zero_point = fixed.calculate_qparams()
    assert (float(scale), int(zero_point)) == (0.5, 3)
    assert constructor(QSpec(observer="runtime"), torch_words())().is_dynamic


def test_the_range_that_is_observed_gives_the_scale() -> None:
    made = constructor(QSpec(qmax=127), torch_words())()
    made(torch.tensor([0.0, 12.7]))
    assert float(made.calculate_qparams()[0]) == pytest.approx(0.1)


def test_trainable() -> None:
    made = trainable(QSpec(DType.INT8, symmetric=True, axis=0), torch_words())()
    made(torch.tensor([[1.27, 0.0], [0.0, -2.54]]))
    assert made.scale.tolist() == pytest.approx([0.01, 0.02])


def test_types_by_library() -> None:
    with pytest.raises(Unsupported, match="int16"):
        constructor(QSpec(DType.INT16), torch_words())
    assert constructor(QSpec(DType.INT16), Words(observers, PLAIN_TENSORS)) is not None


@pytest.mark.parametrize(
    ("qconfig", "mode", "feature"),
    [
        (PRESETS["weight_only_int8"], "static", "weights alone in few bits"),
        (PRESETS["fp16"], "static", "float16"),
        (QConfig(QSpec(), None), "static", "activations alone"),
        (QConfig(QSpec(), QSpec(DType.INT8), QSpec(DType.INT8)), "static", "results of a type of their own"),
        (PRESETS["per_token"], "dynamic", "groups"),
        (QConfig(QSpec(observer="runtime")), "static", "ranges at run time in another mode than dynamic"),
        (PRESETS["qat_learnable"], "qat", "the observer learnable"),
        (QConfig(QSpec(), QSpec(DType.INT8, axis=0, observer="histogram")), "static", "histograms for each channel"),
    ],
)
def test_what_has_no_word_is_declared(qconfig: QConfig, mode: str, feature: str) -> None:
    with pytest.raises(Unsupported) as raised:
        torch_qconfig(qconfig, mode)
    assert raised.value.feature == feature and feature in LACKS


def test_dynamic_takes_its_range_at_run_time_whatever_the_observer() -> None:
    activation, weight = in_mode(QConfig(QSpec(observer="fixed", scale=1.0, zero_point=0)), "dynamic")
    assert activation.observer == "runtime" and activation.scale is None and weight.observer == "min_max"


def test_integers_that_kernels_do_not_know() -> None:
    refuse_types_of_integers(QConfigMapping(PRESETS["int4_weight"]))
    for preset in ("int8", "asymmetric_weight"):
        with pytest.raises(Unsupported):
            refuse_types_of_integers(QConfigMapping(None, {"a": PRESETS[preset]}))
    uneven = SimpleNamespace(activation=QSpec(), weight=QSpec(DType.INT8))
    refuse_zero_points(QConfigMapping(uneven), "fbgemm")  # type: ignore[arg-type]
    with pytest.raises(Unsupported):
        refuse_zero_points(QConfigMapping(uneven), "onednn")  # type: ignore[arg-type]
