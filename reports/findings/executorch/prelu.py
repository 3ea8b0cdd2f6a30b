"""A PReLU on a tensor of other than 4 dimensions: the partitioner takes it, and lowering fails; all should be lowered."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

for shape in ((2, 5, 3, 4), (4, 5), (2, 5, 7), (1, 5, 2, 3, 2)):
    for slopes in (1, 5):
        x, m = torch.randn(shape), nn.PReLU(slopes).eval()
        try:
            to_edge_transform_and_lower(torch.export.export(m, (x,)), partitioner=[XnnpackPartitioner()])
            print(shape, slopes, "got: lowered")
        except Exception as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            print(shape, slopes, "expected: lowered, got:", type(error).__name__, "from", type(cause).__name__, str(cause)[:150])
