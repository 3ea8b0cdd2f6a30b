"""An average pooling with counted padding pads with the stored 0; with a zero point, real 0 is another integer."""

from onnx_lines import *

pool = node("AveragePool", ["a"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
for zero in (0, 128):
    m = model([qdq("x", 0.01, zero, "a"), pool, qdq("p", 0.01, zero, "y")], {"x": [1, 4, 9, 9]}, {"y": [1, 4, 5, 5]})
    x = draw(1, 4, 9, 9)
    want = reference(m, x=x)
    tell(f"zero point {zero}, OpenVINO", vino(m, x=x), want, 0.01)
    tell(f"zero point {zero}, without LPT", vino(m, "NO", x=x), want, 0.01)
    tell(f"zero point {zero}, ONNX Runtime", runtime(m, x=x), want, 0.01)
