"""Which operators on quantized tensors dequantize within, by the profiler."""

import os
import warnings

os.environ["KINETO_LOG_LEVEL"] = "99"
import torch
from torch.autograd.profiler import profile

warnings.filterwarnings("ignore")
ops = torch.ops.quantized


def draw(*shape):
    return torch.quantize_per_tensor(torch.rand(shape), 0.01, 3, torch.quint8)


table, images = draw(4, 8), draw(2, 4, 6, 6)
last = images.contiguous(memory_format=torch.channels_last)
rows = {
    "quantized::matmul": lambda: ops.matmul(table, draw(8, 4), 0.1, 0),
    "quantized::softmax": lambda: ops.softmax(table, -1, 0.01, 0),
    "quantized::cat": lambda: ops.cat([images, images], 1, 0.1, 0),
    "quantized::cat, channels last": lambda: ops.cat([last, last], 1, 0.1, 0),
    "aten::mean": lambda: images.mean([2, 3]),
    "aten::mean, channels last": lambda: last.mean([2, 3]),
    "quantized::add": lambda: ops.add(table, table, 0.1, 0),
    "quantized::layer_norm": lambda: ops.layer_norm(table, [8], None, None, 1e-5, 0.1, 0),
    "aten::avg_pool2d": lambda: torch.nn.functional.avg_pool2d(images, 2),
}
for engine in ("x86", "qnnpack"):
    torch.backends.quantized.engine = engine
    for name, call in rows.items():
        with profile(use_kineto=True) as seen:
            call()
        within = any(event.name() == "aten::dequantize" for event in seen.kineto_results.events())
        print(engine, name, "dequantizes" if within else "does not dequantize")
