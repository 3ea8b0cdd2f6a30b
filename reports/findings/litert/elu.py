"""ELU and others are converted to parts, one of which is quantized by a range it has where it is not used; 40 dB is right."""

from lines import *

for act, span in ((torch.nn.ELU(), 3.0), (torch.nn.ELU(), 8.0), (torch.nn.SELU(), 8.0)):
    m = torch.nn.Sequential(torch.nn.Linear(8, 8), act).eval()
    with torch.no_grad():
        m[0].weight.copy_(torch.eye(8))
        m[0].bias.zero_()
    x = torch.linspace(-span, span, 128).reshape(16, 8)
    model = quantized(m, x)
    for kernels in KERNELS:
        tell(f"{act} on [{-span}, {span}] {kernels}", lambda: run(model, kernels, x), m(x))
