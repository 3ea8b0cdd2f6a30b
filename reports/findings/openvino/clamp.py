"""Low precision transformations round the bounds of a Clip to the step of its input; the bounds should stay 0.52."""

from onnx_lines import *

w = rng.integers(-127, 128, (10, 8)).astype(np.int8)
parts = [qdq("x", 0.01, 128, "a"), weighted("MatMul", "a", "m"), qdq("m", 0.05, 128, "c"),
         node("Clip", ["c", "low", "high"], ["d"]), qdq("d", 0.005, 128, "y")]
m = model(parts, {"x": [16, 10]}, {"y": [16, 8]}, w=w, ws=f32(0.01), wz=np.int8(0), low=f32(-0.52), high=f32(0.52))
x = draw(16, 10)
want = reference(m, x=x)
print("largest: expected", want.max(), "got", vino(m, x=x).max())
tell("OpenVINO", vino(m, x=x), want, 0.005)
tell("without LPT", vino(m, "NO", x=x), want, 0.005)
tell("ONNX Runtime", runtime(m, x=x), want, 0.005)
