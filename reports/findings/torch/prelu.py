"""quantized::prelu multiplies positive elements by the largest slope its weight can hold; they should stay as they are."""

import warnings

import torch

warnings.filterwarnings("ignore")
q = torch.quantize_per_tensor(torch.linspace(-2, 2, 64).reshape(8, 8), 4 / 255, 128, torch.quint8)
real = q.dequantize()
for engine in ("x86", "qnnpack"):
    torch.backends.quantized.engine = engine
    for slope, scale, zero in ((0.25, 0.25 / 255, 0), (0.25, 0.01, 100), (-0.5, 0.5 / 255, 255), (1.5, 1.5 / 255, 0)):
        w = torch.quantize_per_tensor(torch.tensor([slope]), scale, zero, torch.quint8)
        y = torch.ops.quantized.prelu(q, w, 4 / 255, 128).dequantize()
        want = torch.where(real > 0, real, real * w.dequantize()).clamp(-128 * 4 / 255, 127 * 4 / 255)
        off = (y - want).abs() / (4 / 255)
        print(engine, "slope", slope, f"of weights up to {scale * (255 - zero):.2f}: at 2 expected {want[-1, -1]:.2f} got {y[-1, -1]:.2f};",
              f"{int((off > 1).sum())} of 64 off, by up to {off.max():.0f} quanta")
