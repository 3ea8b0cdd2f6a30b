"""TorchScript flow: leaky_relu with a slope above 1 keeps the range of its input, and clips what exceeds it."""

import warnings

warnings.simplefilter("ignore")
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig
from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

torch.backends.quantized.engine = "x86"
model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LeakyReLU(1.5)).eval()
nn.init.ones_(model[0].weight)
x = torch.linspace(-4, 1, 8).reshape(8, 1)
prepared = prepare_jit(torch.jit.trace(model, x), {"": get_default_qconfig("x86")})
prepared(x)
with torch.no_grad():
    print("expected", [round(v, 2) for v in model(x).flatten().tolist()])
    print("got     ", [round(v, 2) for v in convert_jit(prepared)(x).flatten().tolist()])
