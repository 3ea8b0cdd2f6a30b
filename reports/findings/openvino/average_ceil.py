"""With ceil_mode, the last windows of an average pooling are divided by elements that lie beyond the padding."""

from onnx_lines import *

for spatial in ([7, 8], [6, 7, 8]):
    n, out = len(spatial), [(s + 2 - 3 + 1) // 2 + 1 for s in spatial]
    pool = node("AveragePool", ["a"], ["p"], kernel_shape=[3] * n, strides=[2] * n, pads=[1] * 2 * n, count_include_pad=1, ceil_mode=1)
    m = model([qdq("x", 0.01, 128, "a"), pool, qdq("p", 0.01, 128, "y")], {"x": [1, 2, *spatial]}, {"y": [1, 2, *out]})
    x = draw(1, 2, *spatial)
    want = reference(m, x=x)
    tell(f"OpenVINO, {n} dimensions", vino(m, x=x), want, 0.01)
    tell("    without LPT", vino(m, "NO", x=x), want, 0.01)
    tell("    ONNX Runtime, optimized", runtime(m, x=x), want, 0.01)
    tell("    ONNX Runtime, not optimized", runtime(m, "DISABLE", x=x), want, 0.01)
