"""An instance norm with running statistics goes by them in evaluation mode; its quantized operator by those of each input."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx
from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

warnings.filterwarnings("ignore")


def forms(module, x, engine="x86"):
    torch.backends.quantized.engine = engine
    fx = prepare_fx(copy.deepcopy(module), get_default_qconfig_mapping(engine), (x,))
    jit = prepare_jit(torch.jit.trace(module, x.clone(), check_trace=False), {"": get_default_qconfig(engine)})
    fx(x.clone()), jit(x.clone())
    reference = convert_to_reference_fx(copy.deepcopy(fx))
    return {"FX, reference form": reference, "FX, final form": convert_fx(fx), "TorchScript": convert_jit(jit)}


torch.manual_seed(0)
x, m = torch.randn(2, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)).eval()
for name, form in forms(m, x).items():
    print(f"{name}: standard deviation expected {m(x).std().item():.2f}, got {form(x).std().item():.2f}")
