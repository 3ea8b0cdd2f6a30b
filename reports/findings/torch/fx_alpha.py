"""torch.add(x, y, alpha=3) of ones is 4; the FX flow's final form gives 2."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx
from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

warnings.filterwarnings("ignore")


class M(nn.Module):
    def forward(self, x, y):
        return torch.add(x, y, alpha=3)


x, y = torch.ones(1, 4), torch.ones(1, 4)
for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
    torch.backends.quantized.engine = engine
    fx = prepare_fx(M().eval(), get_default_qconfig_mapping(engine), (x, y))
    jit = prepare_jit(torch.jit.trace(M(), (x, y)), {"": get_default_qconfig(engine)})
    fx(x, y), jit(x, y)
    forms = {"FX, reference form": convert_to_reference_fx(copy.deepcopy(fx)), "FX, final form": convert_fx(fx), "TorchScript": convert_jit(jit)}
    print(engine, "expected 4, got", {name: round(form(x, y)[0, 0].item(), 2) for name, form in forms.items()})
