"""Operators that capture writes as several others: the same numbers, and nothing of the whole operator left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captures import BOTH, Of, assert_normal, image, ops, spelled
from torch import Tensor, nn

from qlib.frontends.capture import capture

X = image(2, 5, 4)
MASK = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.zeros(5, 5, dtype=torch.bool).index_fill(0, torch.tensor([2]), True) | (MASK > 0)


def attention(**arguments: Any) -> nn.Module:
    return Of(lambda s, x: F.scaled_dot_product_attention(x, x + 1, 2 - x, **arguments))


def product(call: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    parameters = {
        "w": nn.Parameter(torch.randn(3, 4, generator=generator)),
        "b": nn.Parameter(torch.randn(3, generator=generator)),
    }
    return Of(call, parameters)


PROGRAMS: dict[str, tuple[nn.Module, str]] = {
    "attention": (attention(), "matmul softmax matmul"),
    "causal": (attention(is_causal=True), "matmul masked_fill softmax matmul"),
    "scaled": (attention(scale=2.0), "matmul softmax matmul"),
    "scaled by nothing": (attention(scale=1.0), "matmul softmax matmul"),
    "mask": (attention(attn_mask=MASK), "matmul add _safe_softmax matmul"),
    "hidden": (attention(attn_mask=~HIDDEN), "matmul masked_fill _safe_softmax matmul"),
    "layer": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), "linear matmul softmax matmul linear"),
    "gate": (Of(lambda s, x: F.glu(x)), "slice slice sigmoid mul"),
    "gate of another dimension": (Of(lambda s, x: F.glu(x, 0)), "slice slice sigmoid mul"),
    "product": (Of(lambda s, x: x[0].mm(x[1].t())), "matmul"),
    "sum": (Of(lambda s, x: torch.addmm(x[0, :, 0], x[0], x[1].t(), beta=2, alpha=3)), "matmul mul mul add"),
    "sum of nothing": (Of(lambda s, x: torch.addmm(x[0, :, 0], x[0], x[1].t(), beta=0)), "matmul"),
    "sums": (Of(lambda s, x: torch.baddbmm(x[:, :, :1], x, x.transpose(1, 2))), "bmm add"),
    "linear": (product(lambda s, x: torch.addmm(s.b, x[0], s.w.t())), "linear"),
    "linear without bias": (product(lambda s, x: x @ s.w.t()), "linear"),
    "not a layer": (product(lambda s, x: torch.addmm(s.b, x[0], s.w.t(), alpha=2)), "matmul mul add"),
    "not transposed": (product(lambda s, x: x[0, :, :3] @ s.w), "matmul"),
    "number elsewhere": (Of(lambda s, x: torch.where(x > 0, x, 2.0)), "gt logical_not masked_fill"),
    "number here": (Of(lambda s, x: torch.where(x > 0, 2, x)), "gt masked_fill"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_parts_give_what_the_whole_gives(name: str) -> None:
    module, wanted = PROGRAMS[name]
    module = module.eval()
    graphs = []
    for method in BOTH:
        model = capture(copy.deepcopy(module), X, method)
        assert_normal(model.graph)
        with torch.no_grad():
            expected: Tensor = module(*X)
            found = model(*X)
        torch.testing.assert_close(found, expected)
        graphs.append(spelled(model.graph))
        names = [name.split(".")[1] for name in ops(model)]
        sequence = iter(names)
        assert all(part in sequence for part in wanted.split()), names
    assert graphs[0] == graphs[1]


def test_dropout_in_attention_is_left_as_it_is() -> None:
    model = capture(attention(dropout_p=0.5), X)
    assert ops(model)[-1] == "aten.scaled_dot_product_attention.default"
