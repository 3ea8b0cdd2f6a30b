"""Quantized with one step and then at once with another: one of the two is left out."""

from onnx_lines import *

parts = [qdq("x", 0.03, 128, "a"), qdq("a", 0.02, 120, "b"), weighted("MatMul", "b", "m"), qdq("m", 0.05, 128, "y")]
w = rng.integers(-127, 128, (10, 8)).astype(np.int8)
m = model(parts, {"x": [16, 10]}, {"y": [16, 8]}, w=w, ws=f32(0.01), wz=np.int8(0))
x = draw(16, 10)
want = reference(m, x=x)
tell("before a product, ONNX Runtime", runtime(m, x=x), want, 0.05)
tell("before a product, not optimized", runtime(m, "DISABLE", x=x), want, 0.05)
tell("before a product, OpenVINO", vino(m, x=x), want, 0.05)
m = model([qdq("x", 0.03, 128, "a"), qdq("a", 0.02, 120, "y")], {"x": [16, 10]}, {"y": [16, 10]})
tell("alone, ONNX Runtime", runtime(m, x=x), reference(m, x=x), 0.02)
tell("alone, not optimized", runtime(m, "DISABLE", x=x), reference(m, x=x), 0.02)
