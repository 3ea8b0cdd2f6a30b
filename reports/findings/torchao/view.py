"""After convert_pt2e a view no longer sees what was written after it was taken; all four lines should agree."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        y = self.fc(x)
        view = y.view(-1)
        y.add_(1)
        return view


torch.manual_seed(0)
m, x = M().eval(), torch.rand(1, 4)
with torch.no_grad():
    exported = torch.export.export(m, (x,)).module()
    print("expected     ", m(x).tolist())
    print("got exported ", exported(x).tolist())
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.SUPPORTED_PATTERNS = [p for p in quantizer.SUPPORTED_PATTERNS if not p.is_qat]  # only to be quick
    prepared = prepare_pt2e(exported, quantizer)
    print("got prepared ", prepared(x).tolist())
    print("got converted", convert_pt2e(prepared)(x).tolist())
