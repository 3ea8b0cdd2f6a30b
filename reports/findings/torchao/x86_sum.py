"""The lowering for x86 fuses sums without their alpha, and in place: the caller's tensor is overwritten."""

import warnings

import torch
from torch import nn
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as q

warnings.filterwarnings("ignore")


class Alpha(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.add(self.a(x), self.b(x), alpha=3)


class Input(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.b(x)


class NotContiguous(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.b(x) + x


def show(kind, x):
    m = kind().eval()
    quantizer = q.X86InductorQuantizer().set_global(q.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(m, (x,)).module(), quantizer)
    prepared(x)
    converted = convert_pt2e(prepared)
    want = m(x)
    for name, form in (("reference", converted), ("lowered", lower_pt2e_quantized_to_x86(converted, (x,)))):
        given = x.clone()
        off = (form(given) - want).abs().max()
        print(kind.__name__, name, f"error: {off:.3g} of {want.abs().max():.3g}; input changed:", not torch.equal(given, x))


torch.manual_seed(0)
with torch.no_grad():
    for kind, x in ((Alpha, torch.rand(2, 3, 6, 6)), (Input, torch.rand(4, 8)), (NotContiguous, torch.rand(2, 3, 6, 6))):
        try:
            show(kind, x)
        except Exception as error:
            print(kind.__name__, type(error).__name__, str(error)[-120:])
