"""A convolution that pads with reflections: the FX flow's reference form pads with zeros, its final form does as asked."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx

warnings.filterwarnings("ignore")
torch.manual_seed(0)
x, m = torch.randn(2, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")).eval()
prepared = prepare_fx(m, get_default_qconfig_mapping("x86"), (x,))
prepared(x)
for name, form in {
    "reference form": convert_to_reference_fx(copy.deepcopy(prepared)),
    "final form": convert_fx(prepared),
}.items():
    print(f"{name}: worst error {(form(x) - m(x)).abs().max().item():.3f} of {m(x).abs().max().item():.3f}")
