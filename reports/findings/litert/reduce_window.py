"""Poolings with dilation or in three dimensions stop the quantizer; a model is right."""

from lines import *

for pool, shape in (
    (torch.nn.MaxPool2d(2), (1, 3, 6, 6)),
    (torch.nn.MaxPool2d(2, dilation=2), (1, 3, 6, 6)),
    (torch.nn.MaxPool3d(2), (1, 3, 6, 6, 6)),
    (torch.nn.AvgPool3d(2), (1, 3, 6, 6, 6)),
):
    try:
        quantized(pool.eval(), torch.randn(shape))
        print(pool, "got a model")
    except Exception as error:
        print(pool, "expected a model, got", type(error).__name__, " ".join(str(error).split())[-190:])
