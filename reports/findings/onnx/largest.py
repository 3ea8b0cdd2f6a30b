"""GlobalMaxPool in the reference evaluator reduces two dimensions whatever the rank."""

from onnx_lines import *

for shape in ([2, 6, 17], [2, 6, 4, 5], [2, 6, 3, 4, 5]):
    want = tuple([2, 6] + [1] * (len(shape) - 2))
    m = model([node("GlobalMaxPool", ["x"], ["y"])], {"x": shape}, {"y": list(want)})
    x = draw(*shape)
    print(shape, "expected", want, "got", reference(m, x=x).shape, "ONNX Runtime", runtime(m, x=x).shape)
