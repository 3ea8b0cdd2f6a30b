"""A linear layer with int8 weights, low precision transformations off: its quantized input is quantized once more."""

import openvino as ov
from onnx_lines import *

w = rng.integers(-127, 128, (24, 32)).astype(np.int8)
x, core = draw(8, 32), ov.Core()
nodes = [node("DequantizeLinear", ["w", "ws", "wz"], ["d"]), node("Gemm", ["a", "d"], ["m"], transB=1)]
parts = [qdq("x", 0.0173, 3, "a", np.int8), *nodes, qdq("m", 0.0731, 64, "y")]
m = model(parts, {"x": [8, 32]}, {"y": [8, 24]}, w=w, ws=f32(0.0071), wz=np.int8(0))
want = reference(m, x=x)
for lpt, size in (("YES", "32"), ("NO", "32"), ("NO", "0")):
    options = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": lpt, "DYNAMIC_QUANTIZATION_GROUP_SIZE": size}
    tell(f"LPT {lpt}, group size {size}", core.compile_model(core.read_model(m), "CPU", options)({"x": x})[0], want, 0.0731)
