"""A convolution of uint8 with uint8 weights whose zero point is 0: compile_model raises."""

from onnx_lines import *

w = rng.integers(0, 256, (4, 4, 3, 3)).astype(np.uint8)
x = draw(2, 4, 5, 5)
for zero in (0, 1):
    parts = [qdq("x", 0.01, 121, "a"), weighted("Conv", "a", "m"), qdq("m", 0.1, 60, "y")]
    m = model(parts, {"x": [2, 4, 5, 5]}, {"y": [2, 4, 3, 3]}, w=w, ws=f32(0.002), wz=np.uint8(zero))
    want = runtime(m, "DISABLE", x=x)
    for lpt in ("YES", "NO"):
        attempt(f"zero point {zero}, LPT {lpt}: worst error", lambda: np.abs(vino(m, lpt, x=x) - want).max())
