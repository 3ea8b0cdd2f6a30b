"""A dynamic linear layer has 7 bits whatever the QConfig asks for, and no step below 6.1e-5."""

import warnings

import torch
from torch import nn
from torch.ao.quantization import PlaceholderObserver, QConfig, QConfigMapping, default_weight_observer
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.ao.quantization.quantize_jit import quantize_dynamic_jit

warnings.filterwarnings("ignore")
activation = PlaceholderObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=255, is_dynamic=True)
asked = QConfig(activation=activation, weight=default_weight_observer)
m = nn.Linear(4, 4, bias=False).eval()
m.weight.data = torch.eye(4)
x = torch.linspace(0, 1, 1024).reshape(256, 4)
for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
    torch.backends.quantized.engine = engine
    fx = convert_fx(prepare_fx(m, QConfigMapping().set_global(asked), (x,)))
    jit = quantize_dynamic_jit(torch.jit.trace(m, x), {"": asked})
    for name, form in (("FX", fx), ("TorchScript", jit)):
        print(engine, name, "different values of 1024: expected 256, got", len(form(x).unique()))
        errors = [f"{((form(x * a) - x * a).abs().max() / a).item():.2g} for [0, {a}]" for a in (1, 1e-3, 1e-6)]
        print("    relative error: expected 0.002, got", ", ".join(errors))
