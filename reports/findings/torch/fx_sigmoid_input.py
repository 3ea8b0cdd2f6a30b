"""sigmoid, tanh and hardsigmoid of a value in float: the FX flow quantizes the input by the range of the result."""

import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

warnings.filterwarnings("ignore")
x = torch.linspace(-6, 6, 25).reshape(1, -1)
for kind in (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid):
    m = kind().eval()
    prepared = prepare_fx(m, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    y, want = convert_fx(prepared)(x), m(x)
    noise = 10 * torch.log10(want.square().sum() / (y - want).square().sum())
    print(f"{kind.__name__}(-6): expected {want[0, 0]:.3f}, got {y[0, 0]:.3f}; worst error {(y - want).abs().max():.3f}, {noise:.1f} dB")
