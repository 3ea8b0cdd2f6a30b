"""A layer whose weight the graph keeps in float has it quantized to int8 by the optimizer."""

from onnx_lines import *

w = draw(10, 8)
w[0, 0] = 20
parts = [qdq("x", 0.01, 128, "a"), node("Gemm", ["a", "w"], ["m"]), qdq("m", 0.02, 128, "y")]
m = model(parts, {"x": [16, 10]}, {"y": [16, 8]}, w=w)
x = draw(16, 10)
want = reference(m, x=x)
tell("ONNX Runtime", runtime(m, x=x), want, 0.02)
tell("not optimized", runtime(m, "DISABLE", x=x), want, 0.02)
tell("OpenVINO", vino(m, x=x), want, 0.02)
