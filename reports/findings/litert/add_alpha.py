"""torch.add(x, y, alpha=2) is not converted; a model is right."""

from lines import *


class M(torch.nn.Module):
    def forward(self, x, y):
        return torch.add(x, y, alpha=2)


x, y = torch.randn(3), torch.randn(3)
try:
    print("expected a model, got one of", len(converted(M().eval(), x, y)), "bytes")
except TypeError as error:
    print("expected a model, got TypeError", str(error).partition("\n")[0])
