"""Quantizations to int16 are left out: numbers are neither rounded nor saturated."""

from onnx_lines import *

w = rng.integers(-127, 128, (8, 6)).astype(np.int8)
parts = [qdq("x", 0.01, 0, "a", np.int16), weighted("MatMul", "a", "m"), node("Relu", ["m"], ["r"]), qdq("r", 0.03, 0, "y", np.int16)]
m = model(parts, {"x": [16, 8]}, {"y": [16, 6]}, w=w, ws=f32(0.01), wz=np.int8(0))
x = draw(16, 8)
for lpt in ("YES", "NO"):
    got = vino(m, lpt, x=x) / 0.03
    print(f"LPT {lpt}: up to {np.abs(got - got.round()).max():.2f} steps from a multiple of the step; 0 is right")
    print(f"LPT {lpt}: largest, expected {reference(m, x=1000 * x).max()}, got {vino(m, lpt, x=1000 * x).max()}")
alone = model([qdq("x", 0.01, 0, "y", np.int16)], {"x": [1, 8]}, {"y": [1, 8]})
attempt("alone in a graph:", lambda: vino(alone, x=draw(1, 8)))
