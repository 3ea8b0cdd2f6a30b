"""What is written in place, through a view, over a result or over an input, is lost in the quantized forms."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx
from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

warnings.filterwarnings("ignore")


class Written(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.fc, self.write = nn.Linear(10, 8), write

    def forward(self, x):
        y = self.fc(x)
        if self.write == "y[1].relu_()":
            y[1].relu_()
        if self.write == "y[:, :4] = 9":
            y[:, :4] = 9
        if self.write == "y.fill_(9)":
            y.fill_(9)
        if self.write == "x.fill_(9)":
            x.fill_(9)
        return y


def forms(module, x, engine="x86"):
    torch.backends.quantized.engine = engine
    fx = prepare_fx(copy.deepcopy(module), get_default_qconfig_mapping(engine), (x,))
    jit = prepare_jit(torch.jit.trace(module, x.clone(), check_trace=False), {"": get_default_qconfig(engine)})
    fx(x.clone()), jit(x.clone())
    reference = convert_to_reference_fx(copy.deepcopy(fx))
    return {"FX, reference form": reference, "FX, final form": convert_fx(fx), "TorchScript": convert_jit(jit)}


torch.manual_seed(0)
x = torch.randn(4, 10)
for write in ("y[1].relu_()", "y.fill_(9)", "x.fill_(9)", "y[:, :4] = 9"):
    m = Written(write).eval()
    try:
        found = forms(m, x)
    except Exception as error:
        print(write, "raises", type(error).__name__)
        continue
    for name, form in found.items():
        a, b = x.clone(), x.clone()
        apart = (m(a) - form(b)).abs().max().item()
        print(
            f"{write}: {name}: result off by {apart:.2f}, input {'as it should be' if torch.equal(a, b) else 'not as it should be'}"
        )
