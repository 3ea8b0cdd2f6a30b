"""The sum of two convolutions whose results are quantized: the first result's quantization is not the graph's."""

from onnx_lines import *

parts = [qdq("x", 0.01, 128, "a"), weighted("Conv", "a", "m", "v"), qdq("m", 0.0058, 141, "p"),
         qdq("z", 0.03, 159, "b"), weighted("Conv", "b", "n", "w"), qdq("n", 0.0354, 136, "q"),
         node("Add", ["p", "q"], ["s"]), qdq("s", 0.0339, 132, "y")]
v, w = (rng.integers(-127, 128, (4, 6, 3, 3)).astype(np.int8) for _ in range(2))
shape = [8, 6, 9, 9]
m = model(parts, {"x": shape, "z": shape}, {"y": [8, 4, 7, 7]}, v=v, w=w, ws=f32(0.0012), wz=np.int8(0))
x, z = draw(*shape), draw(*shape, low=-4, high=4)
want = reference(m, x=x, z=z)
tell("OpenVINO", vino(m, x=x, z=z), want, 0.0339)
tell("without LPT", vino(m, "NO", x=x, z=z), want, 0.0339)
tell("ONNX Runtime", runtime(m, x=x, z=z), want, 0.0339)
