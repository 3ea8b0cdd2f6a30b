"""`quantize_static` of an attention with a mask: minus infinity, which hides keys, goes into the range of its result."""

from onnx_lines import *
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Data(CalibrationDataReader):
    """One batch."""

    def __init__(self, **x):
        self.left = iter([x])

    def get_next(self):
        """It, then nothing."""
        return next(self.left, None)


mask = np.tril(np.ones((4, 4), bool))
x, y = draw(2, 4, 8), draw(2, 8, 4)
for hidden in (-np.inf, -100.0):
    nodes = [node("MatMul", ["x", "y"], ["a"]), node("Where", ["mask", "a", "hidden"], ["b"])]
    nodes.append(node("Softmax", ["b"], ["z"], axis=-1))
    m = model(nodes, {"x": [2, 4, 8], "y": [2, 8, 4]}, {"z": [2, 4, 4]}, mask=mask, hidden=f32(hidden))
    onnx.save(onnx.load_from_string(m), "m.onnx")
    quantize_static("m.onnx", "q.onnx", Data(x=x, y=y), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8)
    want = reference(m, x=x, y=y)
    q = onnx.load("q.onnx")
    infinite = [t.name for t in q.graph.initializer if not np.isfinite(numpy_helper.to_array(t)).all()]
    for level in ("ENABLE", "DISABLE"):
        got = runtime(q.SerializeToString(), level, x=x, y=y)
        print(f"hidden by {hidden}, optimizations {level}: worst error {np.abs(got - want).max():.3g} of {want.max():.3g};", "not finite:", infinite)
