"""A layer and a PReLU through the FX flow with default QConfigs; the final form should be as near as the reference form."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx

warnings.filterwarnings("ignore")
torch.manual_seed(0)
x = torch.randn(16, 8)
for slope in (0.25, -0.5, 1.5):
    m = nn.Sequential(nn.Linear(8, 8), nn.PReLU(init=slope)).eval()
    prepared = prepare_fx(m, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    for name, convert in (("reference form", convert_to_reference_fx), ("final form", convert_fx)):
        y = convert(copy.deepcopy(prepared))(x)
        noise = (m(x) - y).square().sum()
        print(f"slope {slope}, {name}: {10 * torch.log10(m(x).square().sum() / noise):.1f} dB, off by up to {(y - m(x)).abs().max():.3g}")
