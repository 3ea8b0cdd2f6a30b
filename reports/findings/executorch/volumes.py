"""Operators that ExecuTorch lowers and writes, and whose program can't be run: all should run or be refused before."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer


class Sort(nn.Module):
    def forward(self, x):
        return x.sort(1)[0]


x = torch.rand(2, 6, 6, 7, 8)
for m in (nn.Conv3d(6, 4, 2), nn.MaxPool3d(2), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(3), Sort()):
    lowered = to_edge_transform_and_lower(torch.export.export(m.eval(), (x,)), partitioner=[XnnpackPartitioner()])
    content = lowered.to_executorch().buffer
    try:
        _load_for_executorch_from_buffer(content).forward((x,))
        print(m, "got: runs", flush=True)
    except RuntimeError as error:
        print(m, "expected: runs, got:", error, flush=True)
