"""A relu of data that are all negative has the range {0}, which the default kernels (XNNPACK) refuse; zeros are right."""

from lines import *

m = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU()).eval()
with torch.no_grad():
    m[0].weight.uniform_(-1, 0)
    m[0].bias.fill_(-1)
x = torch.rand(16, 10)
model = quantized(m, x)
for kernels in KERNELS:
    tell(kernels, lambda: run(model, kernels, x), m(x))
