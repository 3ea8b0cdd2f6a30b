"""What the programs share: a module as a quantized model, and its values by each set of kernels."""

import contextlib
import io
import warnings

warnings.simplefilter("ignore")
import numpy as np
import torch

with contextlib.redirect_stdout(io.StringIO()):
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from ai_edge_quantizer import quantizer, recipe

KERNELS = ("BUILTIN", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF")
torch.manual_seed(0)


def converted(module, *inputs):
    """The module as a float .tflite model."""
    with contextlib.redirect_stdout(io.StringIO()):
        return bytes(litert_torch.convert(module, inputs).model_content())


def quantized(module, *inputs, in_float=()):
    """The module as a .tflite model with 8-bit integers, by the recipe static_wi8_ai8; `in_float` names what is not."""
    source = converted(module, *inputs)
    with contextlib.redirect_stdout(io.StringIO()):
        work = quantizer.Quantizer(bytearray(source), recipe.static_wi8_ai8())
        for border in in_float:
            work.update_quantization_recipe(".*", border, algorithm_key="no_quantize")
        given = {f"args_{i}": x.numpy() for i, x in enumerate(inputs)}
        return bytes(work.quantize(work.calibrate({"serving_default": [given]})).quantized_model)


def run(model, kernels, *inputs):
    """The first output, as real numbers, for real numbers."""
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType[kernels])
    runner = interpreter.get_signature_runner("serving_default")
    details, given = runner.get_input_details(), {}
    for i, x in enumerate(inputs):
        scale, zero = details[f"args_{i}"]["quantization"]
        stored = np.clip(np.round(x.numpy() / scale) + zero, -128, 127).astype(np.int8) if scale else x.numpy()
        given[f"args_{i}"] = stored
    scale, zero = runner.get_output_details()["output_0"]["quantization"]
    return (runner(**given)["output_0"].astype(np.float64) - zero) * (scale or 1)


def tell(name, call, want):
    """Print how far off a call's values are, and the signal to noise, or what it raises."""
    try:
        got, want = call(), want.detach().numpy().astype(np.float64)
    except Exception as error:
        print(name, "raises", type(error).__name__, " ".join(str(error).split())[-200:], flush=True)
        return
    off, step = np.abs(got - want).max(), (np.ptp(want) or 1) / 255
    noise = 10 * np.log10(np.square(want).sum() / np.square(got - want).sum()) if off and want.any() else np.inf
    print(f"{name}: off by up to {off:.3g}, {off / step:.0f} steps of the range, {noise:.1f} dB", flush=True)
