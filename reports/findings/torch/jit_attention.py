"""prepare_dynamic_jit of a scripted MultiheadAttention ends the process with signal 11."""

import subprocess
import sys
import warnings

warnings.simplefilter("ignore")
import torch
from torch.ao.quantization import default_dynamic_qconfig
from torch.ao.quantization.quantize_jit import prepare_dynamic_jit


class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


if sys.argv[1:] == ["child"]:
    prepare_dynamic_jit(torch.jit.script(M().eval()), {"": default_dynamic_qconfig})
else:
    done = subprocess.run([sys.executable, __file__, "child"], capture_output=True)
    print(f"expected exit status 0, got {done.returncode}")
