"""QNNPACK's average pooling heeds neither count_include_pad nor divisor_override; 0 off is right (1 at ties)."""

import warnings

import torch

warnings.filterwarnings("ignore")
torch.manual_seed(0)
x = torch.randint(0, 256, (1, 4, 9, 9), dtype=torch.uint8)
excluded = {"kernel_size": 3, "padding": 1, "count_include_pad": False}
for given in ({"kernel_size": 3, "padding": 1}, excluded, {"kernel_size": (2, 3), "divisor_override": 5}):
    for engine in ("fbgemm", "qnnpack"):
        torch.backends.quantized.engine = engine
        q = torch._make_per_tensor_quantized_tensor(x, 0.1, 100)
        y = torch.nn.functional.avg_pool2d(q, **given).int_repr().double()
        exact = torch.nn.functional.avg_pool2d(x.double() - 100, **given)
        off = (y - (exact.round() + 100).clamp(0, 255)).abs()
        print(engine, given, f"{int((off > 0).sum())} of {off.numel()} off, by up to {int(off.max())} quanta")
