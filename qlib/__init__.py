"""A quantization library on plain integer tensors: capture, prepare, calibrate, convert, lower.

    graph = qlib.capture(module, inputs)          # one functional ATen graph
    prepared = qlib.prepare(graph, "default")     # batch norms folded, observers placed
    qlib.calibrate(prepared, batches)             # run on calibration data; or prepare_qat, and train
    debug = qlib.convert(prepared)                # quantize and dequantize around float operators
    final = qlib.lower(debug)                     # integer kernels and integer weights

The names below are imported when they are first used, so that the operator table can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "QParams": "qparams",
    "QSpec": "qparams",
    "DType": "qparams",
    "QConfig": "qconfig",
    "QConfigMapping": "qconfig",
    "PRESETS": "qconfig",
    "OPS": "ops",
    "OBSERVERS": "observers",
    "capture": "frontends.capture",
    "check_inputs": "signature",
    "prepare": "passes.prepare",
    "prepare_qat": "passes.prepare",
    "enable_observer": "fake_quantize",
    "disable_observer": "fake_quantize",
    "enable_fake_quant": "fake_quantize",
    "disable_fake_quant": "fake_quantize",
    "freeze_bn_stats": "trained",
    "update_bn_stats": "trained",
    "calibrate": "quantize",
    "convert": "passes.convert",
    "lower": "passes.lower",
    "reference": "passes.reference",
    "quantize_model": "quantize",
    "Quantized": "quantize",
    "MODES": "quantize",
    "capture_pre_autograd_graph": "pt2e",
    "prepare_pt2e": "pt2e",
    "prepare_qat_pt2e": "pt2e",
    "convert_pt2e": "pt2e",
    "move_exported_model_to_eval": "training",
    "move_exported_model_to_train": "training",
    "Quantizer": "quantizer",
    "QuantizationAnnotation": "quantizer",
    "QuantizationSpec": "quantizer",
    "FixedQParamsQuantizationSpec": "quantizer",
    "SharedQuantizationSpec": "quantizer",
    "DerivedQuantizationSpec": "quantizer",
    **dict.fromkeys(("get_script_module", "script_qconfig", "script_qconfig_dict", "QuantType"), "jit"),
    **dict.fromkeys(("fuse_conv_bn_jit", "prepare_jit", "prepare_dynamic_jit"), "jit"),
    **dict.fromkeys(("convert_jit", "convert_dynamic_jit", "quantize_jit", "quantize_dynamic_jit"), "jit"),
    **dict.fromkeys(("insert_observers", "register_prepacked_params", "is_weight"), "jit_passes"),
    **dict.fromkeys(("quantize_per_tensor", "quantize_per_channel", "dequantize", "choose_qparams"), "functional"),
    "executed_ops": "executed",
    "layers_of": "layers",
    "implementation": "kernels",
    "replay": "oracle",
    "to_onnx": "onnx",
    "QlibError": "errors",
    "CaptureError": "errors",
    "CalibrationError": "errors",
    "QConfigError": "errors",
    "QuantizerError": "errors",
    "ConversionError": "errors",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (one list of names is enough)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qlib' has no attribute {name!r}")
    value = getattr(import_module(f"qlib.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
