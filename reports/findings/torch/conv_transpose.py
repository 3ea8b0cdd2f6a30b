"""quantized::conv_transpose{1,2,3}d against exact sums, by engine and channels; 0 off is right."""

import warnings

import torch

warnings.filterwarnings("ignore")
torch.manual_seed(0)


def worst(engine, dim, inputs, outputs):
    torch.backends.quantized.engine = engine
    x = torch.randint(0, 256, (2, inputs) + (7,) * dim, dtype=torch.uint8)
    w = torch.randint(-100, 101, (inputs, outputs) + (3,) * dim, dtype=torch.int8)
    window = [1] * dim, [0] * dim, [0] * dim, [1] * dim, 1  # stride, padding, output padding, dilation, groups
    quantized, name = torch._make_per_tensor_quantized_tensor, f"conv_transpose{dim}d"
    packed = getattr(torch.ops.quantized, f"{name}_prepack")(quantized(w, 0.01, 0), None, *window)
    exact = getattr(torch.nn.functional, name)((x.double() - 120) * 0.02, w.double() * 0.01)
    scale = float(exact.abs().max()) / 127
    y = getattr(torch.ops.quantized, name)(quantized(x, 0.02, 120), packed, scale, 128)
    off = (y.int_repr().double() - ((exact / scale).round() + 128).clamp(0, 255)).abs()
    return f"{int((off > 1).sum())} of {off.numel()} off by more than 1, by up to {int(off.max())} quanta"


for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
    for dim in (1, 2, 3):
        for channels in ((4, 8), (8, 4), (8, 8)):
            print(engine, f"{dim}d", channels, worst(engine, dim, *channels))
