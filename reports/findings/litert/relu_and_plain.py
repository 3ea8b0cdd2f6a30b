"""A sum that is returned both as it is and after a relu can't be prepared where outputs stay in float; 40 dB is right."""

from lines import *


class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6)

    def forward(self, x, y):
        z = self.left(x) + self.right(y)
        return torch.relu(z), z


m, x, y = M().eval(), torch.randn(4, 8), torch.randn(4, 8)
for in_float in ((), ("INPUT", "OUTPUT")):
    model = quantized(m, x, y, in_float=in_float)
    for kernels in KERNELS:
        tell(f"in float: {in_float} {kernels}", lambda: run(model, kernels, x, y), m(x, y)[0])
