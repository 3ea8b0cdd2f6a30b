"""Two inputs joined along the batch, quantized and multiplied: compile_model raises; along dimension 1 it is right."""

from onnx_lines import *

w = rng.integers(-127, 128, (8, 6)).astype(np.int8)
for axis, shape, rows in ((0, [4, 8], 8), (1, [4, 4], 4)):
    join = node("Concat", ["x", "z"], ["c"], axis=axis)
    parts = [join, qdq("c", 0.01, 128, "a"), weighted("MatMul", "a", "m"), qdq("m", 0.05, 128, "y")]
    m = model(parts, {"x": shape, "z": shape}, {"y": [rows, 6]}, w=w, ws=f32(0.01), wz=np.int8(0))
    x, z = draw(*shape), draw(*shape)
    attempt(f"axis {axis}: worst error", lambda: np.abs(vino(m, x=x, z=z) - reference(m, x=x, z=z)).max())
