"""convert_pt2e traces its patterns of training wherever a batch norm is left, calibrated or trained; both lines should take as long."""

import logging
import time
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86


def seconds(*layers: nn.Module) -> float:
    model, x = nn.Sequential(*layers).eval(), torch.rand(2, 3, 6, 6)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    prepared(x)
    start = time.perf_counter()
    convert_pt2e(prepared)
    return time.perf_counter() - start


seconds(nn.Conv2d(3, 4, 3))  # warms up
print(f"conv, relu:             {seconds(nn.Conv2d(3, 4, 3), nn.ReLU()):6.2f} s")
print(f"conv, relu, batch norm: {seconds(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)):6.2f} s")
