"""torch.linalg.lstsq with its default driver reads uninitialized pivots: it may take rank 11 for rank 1, or 0, and err by 0.2."""

import torch

torch.manual_seed(0)
constant = torch.ones(64, 1, dtype=torch.float64)
a = torch.cat([-0.5 * constant, 2 * constant, torch.rand(64, 10, dtype=torch.float64), constant], 1)
a = a / a.norm(dim=0)
b = a @ torch.rand(13, 8, dtype=torch.float64)
w = torch.rand(64, 1, dtype=torch.float64) + 1
for driver in ("gelsy", "gelsd", "gelss"):
    for name, weight in (("equal rows", constant), ("weighted rows", w)):
        found = torch.linalg.lstsq(a * weight, b * weight, driver=driver)
        error = (a @ found.solution - b).abs().max().item()
        print(driver, name, "rank: expected 11, got", int(found.rank), "; error: expected 1e-15, got", f"{error:.2g}")
