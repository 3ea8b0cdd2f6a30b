"""hardtanh of a quantized tensor in channels-last order: the engine qnnpack gives its elements in another order."""

import warnings

import torch

warnings.filterwarnings("ignore")
torch.manual_seed(0)
stored = torch.quantize_per_tensor(torch.randn(2, 6, 4, 4), 0.02, 128, torch.quint8)
for name, x in (("contiguous", stored), ("channels-last", stored.contiguous(memory_format=torch.channels_last))):
    want = x.dequantize().clamp(-1, 1)
    for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
        torch.backends.quantized.engine = engine
        apart = (torch.nn.functional.hardtanh(x).dequantize() - want).abs() / 0.02
        print(f"{engine}, {name}: {int((apart > 1).sum())} of {apart.numel()} wrong, by up to {apart.max().item():.0f} quanta")
