"""Pad with a negative number, which takes elements away, in the reference evaluator."""

from onnx_lines import *

m = model([node("Pad", ["x", "pads"], ["y"])], {"x": [2, 5]}, {"y": [2, 6]}, pads=np.array([0, -1, 0, 2]))
x = draw(2, 5)
print("expected:", np.pad(x[:, 1:], ((0, 0), (0, 2)))[0])
for name, run in (("reference evaluator", reference), ("ONNX Runtime", runtime), ("OpenVINO", vino)):
    attempt(f"{name}:", lambda run=run: run(m, x=x)[0])
