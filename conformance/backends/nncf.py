"""NNCF, OpenVINO's quantization tool: a spec's QConfig in its words, and the model that it makes of a float one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from conformance.backend import Task, demand_one_size
from conformance.backends.one_qconfig import LACKS as LACKS_OF_ONE
from conformance.backends.one_qconfig import lacking, one_qconfig
from conformance.backends.onnx_source import feeds

# How it estimates ranges, by observer.
_ESTIMATORS: Mapping[str, str] = MappingProxyType({"min_max": "MINMAX", "histogram": "HISTOGRAM"})
_RANGES = MappingProxyType({"uint8": {(0, 255)}, "int8": {(-128, 127), (-127, 127)}})
LACKS = (
    LACKS_OF_ONE
    | {"narrow ranges", "int16", "int4", "uint4", "float16"}
    | {f"the observer {name}" for name in ("moving_average_min_max", "fixed", "runtime", "learnable")}
)


@dataclass(frozen=True)
class Numbers:
    """The numbers that tensors are quantized to: ``symmetric`` or ``asymmetric``, per channel or not."""

    mode: str
    per_channel: bool


@dataclass(frozen=True)
class Request:
    """What it is asked for."""

    activation: Numbers
    weight: Numbers
    estimator: str


def request_of(task: Task) -> Request:
    """The task's QConfig in its words; raises Unsupported, with a feature of `LACKS`, for one that it has none for.

    Signed or unsigned is its own choice: both stand for the same numbers.
    """
    asked = one_qconfig(task)
    for spec in (asked.activation, asked.weight):
        if spec.dtype not in _RANGES:
            raise lacking(str(spec.dtype))
        if spec.range not in _RANGES[spec.dtype]:
            raise lacking("narrow ranges")
    if asked.activation.observer not in _ESTIMATORS:
        raise lacking(f"the observer {asked.activation.observer}")
    return Request(_numbers(asked.activation), _numbers(asked.weight), _ESTIMATORS[asked.activation.observer])


def _numbers(spec: Any) -> Numbers:
    return Numbers("symmetric" if spec.symmetric else "asymmetric", spec.axis is not None)


def quantized(model: Any, source: Any, task: Task) -> Any:
    """Quantize an OpenVINO model with the task's calibration data; `source` is the ONNX model it was read from."""
    import nncf
    from nncf.common.quantization.structs import QuantizationScheme
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    request = request_of(task)
    demand_one_size(task)
    numbers = [
        QuantizationParameters(mode=QuantizationScheme(n.mode), per_channel=n.per_channel)
        for n in (request.activation, request.weight)
    ]
    options = AdvancedQuantizationParameters(
        activations_quantization_params=numbers[0],
        weights_quantization_params=numbers[1],
        activations_range_estimator_params=getattr(RangeEstimatorParametersSet, request.estimator),
    )
    batches = [feeds(source, batch) for batch in task.calibration]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        target_device=nncf.TargetDevice.CPU,
        advanced_parameters=options,
    )
