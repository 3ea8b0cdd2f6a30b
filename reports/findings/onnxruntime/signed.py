"""int8 that goes through a Reshape: the optimizer makes a model that is refused."""

from onnx_lines import *

for dtype in (np.int8, np.uint8):
    parts = [qdq("x", 0.01, 3, "a", dtype), node("Reshape", ["a", "shape"], ["r"]), node("Sigmoid", ["r"], ["s"]), qdq("s", 0.01, 3, "y", dtype)]
    m = model(parts, {"x": [4, 6]}, {"y": [24]}, shape=np.array([24]))
    x = draw(4, 6)
    want = reference(m, x=x)
    for level in ("ENABLE", "DISABLE"):
        attempt(f"{dtype.__name__}, optimizations {level}: worst error", lambda: np.abs(runtime(m, level, x=x) - want).max())
