"""TorchScript flow: a stack takes the scale of its first tensor, and places of largest elements become floats."""

import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig
from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

warnings.filterwarnings("ignore")


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 8), nn.Linear(10, 8)
        self.b.weight.data *= 10

    def forward(self, x):
        return torch.stack([self.a(x), self.b(x)])


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 8)

    def forward(self, x):
        return self.fc(x).max(1)[1]


torch.manual_seed(0)
torch.backends.quantized.engine = "x86"
x = torch.randn(16, 10)
for m in (Stack().eval(), Places().eval()):
    prepared = prepare_jit(torch.jit.trace(m, x), {"": get_default_qconfig("x86")})
    prepared(x)
    want, got = m(x), convert_jit(prepared)(x)
    print(
        f"{type(m).__name__}: {got.dtype} where {want.dtype} is right; largest {got.amax().item():.2f} where {want.amax().item():.2f} is right"
    )
