"""prepare_pt2e folds a batch norm into a convolution whose result is used elsewhere too, and loses one of two in a row."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86


class TwoUsers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x):
        y = self.conv(x)
        return y, self.norm(y)


class TwoNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.next = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x):
        return self.next(self.norm(self.conv(x)))


def shown(result):
    return [round(float(y.detach().abs().max()), 3) for y in (result if isinstance(result, tuple) else (result,))]


x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
for kind in (TwoUsers, TwoNorms):
    torch.manual_seed(0)
    model = kind().eval()
    for norm in [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]:
        nn.init.constant_(norm.weight, 3.0)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(model, (x,)).module()
    expected = shown(model(x))
    print(kind.__name__, "expected", expected, "got", shown(prepare_pt2e(exported, quantizer)(x)))
