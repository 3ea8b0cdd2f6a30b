"""A transposed convolution of uint8 with zero point 0 and uint8 weights with a zero point: nearly all is wrong."""

from onnx_lines import *

v = rng.integers(0, 256, (6, 4, 3, 3)).astype(np.uint8)
for zero, weights in ((0, 128), (128, 128), (0, 0)):
    parts = [node("Relu", ["x"], ["f"]), qdq("f", 0.02, zero, "b"), weighted("ConvTranspose", "b", "m", "v"), qdq("m", 0.05, 128, "y")]
    m = model(parts, {"x": [1, 6, 5, 5]}, {"y": [1, 4, 7, 7]}, v=v, ws=f32(0.002), wz=np.uint8(weights))
    x = draw(1, 6, 5, 5)
    want = runtime(m, "DISABLE", x=x)
    tell(f"zero point {zero}, of weights {weights}, OpenVINO", vino(m, x=x), want, 0.05)
    tell("    without LPT", vino(m, "NO", x=x), want, 0.05)
