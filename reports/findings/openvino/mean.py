"""The mean of a quantized tensor with a zero point: all but the first of the batch are wrong."""

from onnx_lines import *

for dtype, zero in ((np.int8, 5), (np.uint8, 128), (np.int8, 0)):
    w = rng.integers(-127, 128, (7, 5)).astype(np.int8)
    mean = node("ReduceMean", ["c", "axes"], ["r"], keepdims=0)
    parts = [qdq("x", 0.03, zero, "a", dtype), weighted("MatMul", "a", "m"), qdq("m", 0.03, zero, "c", dtype), mean, qdq("r", 0.03, zero, "y", dtype)]
    m = model(parts, {"x": [3, 61, 7]}, {"y": [3]}, axes=np.array([1, 2]), w=w, ws=f32(0.01), wz=np.int8(0))
    x = draw(3, 61, 7, low=-4, high=4)
    want = reference(m, x=x)
    print(dtype.__name__, "zero point", zero, "expected", want, "got", vino(m, x=x), "without LPT", vino(m, "NO", x=x))
    tell("    OpenVINO", vino(m, x=x), want, 0.03)
