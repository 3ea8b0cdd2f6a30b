"""A float layer with int8 weights in blocks of 32 gets activations of 8 bits; the graph says float."""

import openvino as ov
from onnx_lines import *

w = rng.integers(-127, 128, (64, 16)).astype(np.int8)
nodes = [node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=32), node("MatMul", ["x", "d"], ["y"])]
m = model(nodes, {"x": [8, 64]}, {"y": [8, 16]}, w=w, s=np.full((2, 16), 0.01, f32), z=np.zeros((2, 16), np.int8))
x, core = draw(8, 64), ov.Core()
want = reference(m, x=x)
for size in ("32", "0"):
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": size}
    got = core.compile_model(core.read_model(m), "CPU", options)({"x": x})[0]
    print("OpenVINO, group size", size, "relative error", np.abs(got - want).max() / np.abs(want).max(), "; 1e-7 is right")
default = core.compile_model(core.read_model(m), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print("OpenVINO, default group size:", default.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE"))
for level in ("ENABLE", "DISABLE"):
    print("ONNX Runtime", level, "relative error", np.abs(runtime(m, level, x=x) - want).max() / np.abs(want).max())
