"""A layer that is called twice has one output scale in the FX flow's final form; each call needs its own."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx
from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

warnings.filterwarnings("ignore")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        self.fc.weight.data = 10 * torch.eye(4)

    def forward(self, x):
        return self.fc(self.fc(x))


x, m = torch.linspace(-1, 1, 32).reshape(8, 4), Twice().eval()
for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
    torch.backends.quantized.engine = engine
    fx = prepare_fx(copy.deepcopy(m), get_default_qconfig_mapping(engine), (x,))
    jit = prepare_jit(torch.jit.trace(m, x), {"": get_default_qconfig(engine)})
    fx(x), jit(x)
    forms = {"FX, reference form": convert_to_reference_fx(copy.deepcopy(fx)), "FX, final form": convert_fx(fx), "TorchScript": convert_jit(jit)}
    print(engine, "largest, expected 100, got", {name: round(form(x).max().item(), 2) for name, form in forms.items()})
