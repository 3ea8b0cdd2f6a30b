"""Transposed convolutions with groups in the reference evaluator: they raise; an error of 1e-6 is right."""

from onnx_lines import *

for groups, i, o in ((1, 4, 6), (2, 4, 6), (4, 4, 4)):
    w, x = draw(i, o // groups, 3, 3), draw(1, i, 5, 5)
    layer = node("ConvTranspose", ["x", "w"], ["y"], group=groups)
    m = model([layer], {"x": [1, i, 5, 5]}, {"y": [1, o, 7, 7]}, w=w)
    attempt(f"groups {groups}: error", lambda: np.abs(reference(m, x=x) - runtime(m, x=x)).max())
