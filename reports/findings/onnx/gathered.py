"""GatherElements with fewer indices than elements: ONNX asks for the same rank alone; True is right."""

from onnx_lines import *

x = draw(4, 6)
for index in (np.array([[0, 1], [5, 2]]), rng.integers(0, 6, (4, 3)), rng.integers(0, 6, (4, 6))):
    m = model([node("GatherElements", ["x", "i"], ["y"], axis=1)], {"x": [4, 6]}, {"y": list(index.shape)}, i=index)
    want = np.take_along_axis(x[: len(index)], index, 1)
    for name, run in (("ONNX Runtime", runtime), ("reference evaluator", reference), ("OpenVINO", vino)):
        attempt(f"{index.shape} {name}", lambda: bool((run(m, x=x) == want).all()))
