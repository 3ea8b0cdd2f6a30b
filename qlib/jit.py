"""Quantizing a TorchScript model, traced or scripted, or a plain module, without example inputs: they come with calls.

    prepared = prepare_jit(model, {"": qconfig, "head": None})    # by module path, "" for the whole model
    run_fn(prepared, data)                                        # the first call captures the model
    quantized = convert_jit(prepared)                             # debug=True for the readable form

Results are always new modules; ``inplace=True`` means that nothing is copied, so that they share parameters, and a
converted model its observers, with what was given. A plain module is captured by script where TorchScript compiles
it, else by trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from qlib.borrowed import qconfig_of
from qlib.deferred import Deferred
from qlib.errors import CalibrationError, ConversionError, QConfigError
from qlib.graph import copy_of
from qlib.passes.convert import convert
from qlib.passes.fuse import fold_batch_norm
from qlib.passes.lower import lower
from qlib.passes.prepare import check_paths, prepare
from qlib.qconfig import QConfig, QConfigMapping, transform
from qlib.qparams import RangeFrom
from qlib.quantize import MODES

QConfigDict = Mapping[str, Any] | QConfigMapping


class QuantType(StrEnum):
    """What is quantized and when: kinds of quantization by the names of the TorchScript passes."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    QAT = "qat"
    WEIGHT_ONLY = "weight_only"


def _weights_alone(qconfig: QConfig) -> QConfig:
    return QConfig(None, qconfig.weight)


_ADAPT: Mapping[QuantType, Callable[[QConfigMapping], QConfigMapping]] = MappingProxyType(
    {
        QuantType.STATIC: MODES["static"].adapt,
        QuantType.DYNAMIC: MODES["dynamic"].adapt,
        QuantType.QAT: MODES["qat"].adapt,
        QuantType.WEIGHT_ONLY: partial(transform, change=_weights_alone),
    }
)


def script_qconfig(qconfig: Any) -> QConfig | None:
    """The library's QConfig for one whose `activation` and `weight` make observers; see `qlib.borrowed.qconfig_of`."""
    return qconfig_of(qconfig)


def script_qconfig_dict(qconfig_dict: QConfigDict) -> QConfigMapping:
    """The QConfigs of a dictionary by module path, with "" for the whole model; None leaves a module in float.

    Raises QConfigError for a key that is no text and for a QConfig without counterpart.
    """
    if isinstance(qconfig_dict, QConfigMapping):
        return qconfig_dict
    if not isinstance(qconfig_dict, Mapping):
        raise QConfigError(f"expected a dictionary of QConfigs by module path, found {type(qconfig_dict).__name__}")
    for key in qconfig_dict:
        if not isinstance(key, str):
            raise QConfigError(f"expected module paths as keys, found {key!r}; write '' for the whole model")
    rules = {path: script_qconfig(qconfig) for path, qconfig in qconfig_dict.items()}
    return QConfigMapping(rules.pop("", None), rules)


def mapping_of(qconfig_dict: QConfigDict, quant_type: QuantType) -> QConfigMapping:
    """The QConfigs as the kind of quantization uses them; raises QConfigError for a kind that there is not."""
    if quant_type not in _ADAPT:
        raise QConfigError(f"expected one of {', '.join(_ADAPT)}, found {quant_type!s}")
    return _ADAPT[quant_type](script_qconfig_dict(qconfig_dict))


def get_script_module(model: nn.Module, tracing: bool, data: Any) -> Any:
    """`model` as TorchScript: traced on `data` (a tuple of inputs) where `tracing` says so, else scripted."""
    return torch.jit.trace(model, data) if tracing else torch.jit.script(model)


def fuse_conv_bn_jit(model: nn.Module, inplace: bool = False) -> Deferred:
    """The model with each batch norm, in evaluation mode, folded into the layer before it; made at the first call."""
    return Deferred(_source(model, inplace), (_folded,))


def prepare_jit(model: nn.Module, qconfig_dict: QConfigDict, inplace: bool = False) -> Deferred:
    """The model with batch norms folded and observers placed: call it on calibration data, then `convert_jit` it.

    Calls with inputs of other shapes are captured anew and feed the same observers. Raises QConfigError for a module
    path that the model does not have.
    """
    return _prepare(model, qconfig_dict, inplace, QuantType.STATIC)


def prepare_dynamic_jit(model: nn.Module, qconfig_dict: QConfigDict, inplace: bool = False) -> Deferred:
    """As `prepare_jit`, for activations that are quantized by their range at run time: no calibration is needed."""
    return _prepare(model, qconfig_dict, inplace, QuantType.DYNAMIC)


def convert_jit(
    prepared: nn.Module, inplace: bool = False, debug: bool = False, preserved_attrs: Iterable[str] | None = None
) -> Deferred:
    """The quantized model of a calibrated one: integer kernels, or the readable form for ``debug=True``.

    `preserved_attrs` names attributes and methods of the float module that the result is to have. Raises
    CalibrationError where calibration never ran, ConversionError for what `prepare_jit` did not make.
    """
    if not isinstance(prepared, Deferred) or not isinstance(prepared.steps[0], partial):
        raise ConversionError(f"expected a model from prepare_jit, found {type(prepared).__name__}: prepare it first")
    if not len(prepared.graphs) and _needs_data(prepared.steps[0].keywords["qconfig"]):
        raise CalibrationError("the prepared model was never called: run it on calibration data before converting it")
    source = prepared if inplace else copy.deepcopy(prepared)
    converted = Deferred(source, (convert,) if debug else (convert, lower), tuple(preserved_attrs or ()))
    converted.follow()
    return converted


def convert_dynamic_jit(
    prepared: nn.Module, inplace: bool = False, debug: bool = False, preserved_attrs: Iterable[str] | None = None
) -> Deferred:
    """As `convert_jit`, for a model from `prepare_dynamic_jit`; one never called is captured by its result."""
    return convert_jit(prepared, inplace, debug, preserved_attrs)


def quantize_jit(
    model: nn.Module,
    qconfig_dict: QConfigDict,
    run_fn: Callable[..., Any],
    run_args: Sequence[Any],
    inplace: bool = False,
    debug: bool = False,
) -> Deferred:
    """Quantize a model after training: prepare it, call ``run_fn(prepared, *run_args)`` to calibrate it, convert it."""
    if not callable(run_fn) or not run_args:
        raise CalibrationError("expected a calibration function and its arguments: give run_fn and run_args")
    prepared = prepare_jit(model, qconfig_dict, inplace)
    run_fn(prepared, *run_args)
    return convert_jit(prepared, inplace=True, debug=debug)


def quantize_dynamic_jit(
    model: nn.Module, qconfig_dict: QConfigDict, inplace: bool = False, debug: bool = False
) -> Deferred:
    """Quantize weights beforehand and activations by their range at run time; the graph is made at the first call."""
    return convert_dynamic_jit(prepare_dynamic_jit(model, qconfig_dict, inplace), inplace=True, debug=debug)


def _prepare(model: nn.Module, qconfig_dict: QConfigDict, inplace: bool, quant_type: QuantType) -> Deferred:
    mapping = mapping_of(qconfig_dict, quant_type)
    source = _source(model, inplace)
    check_paths(mapping, [path for path, _ in source.named_modules(remove_duplicate=False)])
    return Deferred(source, (partial(prepare, qconfig=mapping),))


def _source(model: nn.Module, inplace: bool) -> nn.Module:
    """The float module to work on; folded batch norms are folded again, since every form starts from it."""
    if not isinstance(model, nn.Module):
        raise QConfigError(f"expected a module to quantize, found {type(model).__name__}")
    source = model.float_module if isinstance(model, Deferred) else model
    return source if inplace else copy.deepcopy(source)


def _folded(captured: fx.GraphModule) -> fx.GraphModule:
    return fold_batch_norm(copy_of(captured))


def _needs_data(mapping: QConfigMapping) -> bool:
    """Whether a range is measured on calibration data."""
    rules = [rule for rule in (mapping.default, *mapping.modules.values(), *mapping.types.values()) if rule is not None]
    specs = [spec for rule in rules for spec in (rule.activation, rule.output) if spec is not None]
    return any(spec.range_from is RangeFrom.CALIBRATION for spec in specs)
