"""A transposed convolution with stride 2 and a batch norm: the model can't be prepared; above 30 dB is right."""

from lines import *

m = torch.nn.Sequential(torch.nn.ConvTranspose2d(8, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.ReLU()).eval()
with torch.no_grad():
    m[1].running_mean.uniform_(-0.5, 0.5)
    m[1].running_var.uniform_(0.5, 2)
    m[1].weight.uniform_(-2, 2)
x = torch.randn(2, 8, 5, 6)
model = quantized(m, x)
for kernels in KERNELS:
    tell(kernels, lambda: run(model, kernels, x), m(x))
