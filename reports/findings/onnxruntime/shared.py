"""`quantize_dynamic` of two Gemm with `transB=1` that share a weight: other values, or an error where it is not square; less than 0.1 is right."""

from onnx_lines import *
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantized(m, x):
    """The worst error against the float model."""
    onnx.save(onnx.load_from_string(m), "m.onnx")
    quantize_dynamic("m.onnx", "q.onnx", weight_type=QuantType.QInt8)
    return np.abs(runtime(onnx.load("q.onnx").SerializeToString(), "DISABLE", x=x) - reference(m, x=x)).max()


x = draw(4, 12)
for outputs in (12, 8):
    for bias in (["b"], []):
        nodes = [node("Relu", ["x"], ["r"]), node("Gemm", ["x", "w", *bias], ["a"], transB=1)]
        nodes += [node("Gemm", ["r", "w", *bias], ["c"], transB=1), node("Add", ["a", "c"], ["y"])]
        m = model(nodes, {"x": [4, 12]}, {"y": [4, outputs]}, w=draw(outputs, 12), b=draw(outputs))
        attempt(f"12 inputs, {outputs} outputs, {len(bias)} bias: worst error", lambda: quantized(m, x))
