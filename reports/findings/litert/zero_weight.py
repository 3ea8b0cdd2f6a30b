"""A linear layer whose weights are zero gives its bias; the converted model gives zeros."""

from lines import *

m = torch.nn.Linear(30, 20).eval()
with torch.no_grad():
    m.weight.zero_()
x = torch.rand(4, 30)
model = quantized(m, x)
print("expected", m.bias[:4].tolist())
for kernels in KERNELS:
    print("got     ", run(model, kernels, x)[0, :4].tolist(), kernels)
