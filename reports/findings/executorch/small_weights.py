"""The quantizer never gives a scale below 2**-12, so small weights lose their bits; 45 dB is right for all."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

torch.manual_seed(0)
for largest in (0.1, 0.03, 0.01, 0.003, 0.001, 0.0001):
    m, x = nn.Linear(64, 32, bias=False).eval(), torch.rand(16, 64) * 2 - 1
    with torch.no_grad():
        m.weight.uniform_(-largest, largest)
        want = m(x)
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
        quantizer.SUPPORTED_PATTERNS = [p for p in quantizer.SUPPORTED_PATTERNS if not p.is_qat]  # only to be quick
        prepared = prepare_pt2e(torch.export.export(m, (x,)).module(), quantizer)
        prepared(x)
        got = convert_pt2e(prepared)(x)
    print(f"weights up to {largest}: {10 * torch.log10(want.square().sum() / (got - want).square().sum()):.1f} dB, 45 is right", flush=True)
