"""fc(relu(fc(x))) has negative numbers; the FX flow's final form puts the relu after both calls."""

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
        self.fc = nn.Linear(10, 10)

    def forward(self, x):
        return self.fc(nn.functional.relu(self.fc(x)))


def forms(module, x, engine="x86"):
    torch.backends.quantized.engine = engine
    fx = prepare_fx(copy.deepcopy(module), get_default_qconfig_mapping(engine), (x,))
    jit = prepare_jit(torch.jit.trace(module, x.clone(), check_trace=False), {"": get_default_qconfig(engine)})
    fx(x.clone()), jit(x.clone())
    reference = convert_to_reference_fx(copy.deepcopy(fx))
    return {"FX, reference form": reference, "FX, final form": convert_fx(fx), "TorchScript": convert_jit(jit)}


torch.manual_seed(0)
x, m = torch.randn(16, 10), Twice().eval()
print(
    f"least, expected {m(x).min().item():.2f}, got",
    {name: round(form(x).min().item(), 2) for name, form in forms(m, x).items()},
)
