"""QuantizeLinear of infinity and of numbers beyond int32 in the reference evaluator: 12.7 and -12.8 are right."""

from onnx_lines import *

m = model([qdq("x", 0.1, 128, "y")], {"x": [1, 4]}, {"y": [1, 4]})
x = np.array([[np.inf, -np.inf, 1e12, -1e12]], f32)
for name, run in (("reference evaluator", reference), ("ONNX Runtime", runtime), ("OpenVINO", vino)):
    print(f"{name}: expected [12.7 -12.8 12.7 -12.8], got", run(m, x=x)[0])
