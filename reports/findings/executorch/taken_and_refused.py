"""Quantized models that XNNPACK's partitioner takes, and that then can't be lowered or loaded; ExecuTorch's own kernels run each."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import executorch.kernels.quantized  # noqa: F401
import torch
from torch import nn
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


class Largest(nn.Module):
    def forward(self, x):
        return x.max(1).values.sigmoid()


def outcome(converted, x, partitioners, want):
    try:
        lowered = to_edge_transform_and_lower(torch.export.export(converted, (x,)), partitioner=partitioners)
        content = lowered.to_executorch().buffer
        got = _load_for_executorch_from_buffer(content).forward((x,))[0]
        return f"runs, off by at most {(got - want).abs().max():.3f}"
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        return f"{type(error).__name__}: {str(error)[:90]}"


torch.manual_seed(0)
vectors, sequences, images = torch.rand(4, 10), torch.rand(6, 4, 10), torch.rand(2, 6, 5, 5)
for name, last, first, x in (
    ("Hardtanh(-2, 1)", nn.Hardtanh(-2, 1), nn.Linear(10, 8), vectors),
    ("Hardtanh(-2.0, 1.0)", nn.Hardtanh(-2.0, 1.0), nn.Linear(10, 8), vectors),
    ("BatchNorm1d along the middle dimension", nn.BatchNorm1d(4), nn.Linear(10, 8), sequences),
    ("max(1).values", Largest(), nn.Conv2d(6, 4, 3), images),
    ("ZeroPad2d", nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3), images),
):
    m = nn.Sequential(first, last).eval()
    with torch.no_grad():
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        quantizer.SUPPORTED_PATTERNS = [p for p in quantizer.SUPPORTED_PATTERNS if not p.is_qat]  # only to be quick
        prepared = prepare_pt2e(torch.export.export(m, (x,)).module(), quantizer)
        prepared(x)
        converted = convert_pt2e(prepared)
        print(f"{name}: XNNPACK {outcome(converted, x, [XnnpackPartitioner()], m(x))}", flush=True)
        print(f"{name}: without {outcome(converted, x, [], m(x))}", flush=True)
