from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from captures import BOTH, Of, check, image
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.again = self.encode

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.decode(self.encode(x)))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(3), persistent=False)
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.n += 1
        self.last.copy_(x)
        self.total = self.total + x
        return x * self.n, self.last


def swap(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)
    return kept


def chunked(self: nn.Module, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a = a * 1
    return torch.cat([F.relu(a, inplace=True), b], 1)


def written_pieces(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    a, b = y.split(2, 1)
    a.relu_()
    return torch.cat([b, a], 1), y


def assigned(self: nn.Module, x: Tensor) -> Tensor:
    z = torch.zeros(x.shape[0], 4)
    z[:, 0] = x[:, 1]
    z[:, 1:3] = 2
    z[..., -1] += 1
    z[x > 0] = 3.5
    return z


def viewed(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = x + 0
    row, turned, flat = y[1], y.t(), y.view(-1)
    flat[::2].mul_(3)
    row.add_(1)
    turned[0].zero_()
    y.clamp_(max=4)
    return y, row, turned, flat


def sizes(self: nn.Module, x: Tensor) -> Tensor:
    n = x.size(0) * x.size(1)
    y = x.reshape(n // 2, 2).view(x.shape[0], -1) / x.size(1) ** 0.5
    return y.permute(1, 0).contiguous().view(-1) * (n + 1)


def mixed_types(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    i = (x * 10).to(torch.int32)
    return (
        i + 1,
        i * 2.5,
        i / 2,
        i // 3,
        1 - x,
        2 / x,
        2**x,
        i.float().double(),
        torch.where(x > 0, x, 0.0),
        x > 0.5,
        i % 3,
    )


def padded(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return F.pad(x, (1, 2)), F.pad(x, (1, 1), value=2.0), F.pad(x[None], (1, 1), mode="reflect")


def moved(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = x[None]
    return (
        y.movedim(0, 2),
        y.swapaxes(0, 1),
        y.mT,
        x.T,
        x.t(),
        y.narrow(1, 0, 1),
        torch.flatten(y, 1),
        y.transpose(-1, 0),
    )


def joined(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.cat((x, x)),
        torch.stack([x, x], 1),
        torch.cat((x, x[:, :1]), -1),
        *x.unbind(1),
        *torch.split(x, [1, 3], 1),
    )


def returned_after_change(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept, view = x.clone(), x[0]
    x.add_(1)
    return kept, view, x


def in_place_types(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    i = torch.zeros(x.shape, dtype=torch.int64)
    i.copy_(x * 10)
    return i, (x + 0).eq_(x)


PROGRAMS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "block": (Block(), image(1, 4, 5, 5)),
    "blocks": (nn.Sequential(Block(), Block(), nn.Flatten(), nn.Dropout(), nn.Linear(100, 3)), image(1, 4, 5, 5)),
    "tied": (Tied(), image(2, 4)),
    "counter": (Counter(), image(3)),
    "swap": (Of(swap), (*image(3), torch.ones(3))),
    "chunked": (Of(chunked), image(2, 4)),
    "written_pieces": (Of(written_pieces), image(2, 4)),
    "assigned": (Of(assigned), image(2, 4)),
    "viewed": (Of(viewed), image(3, 4)),
    "sizes": (Of(sizes), image(2, 4)),
    "mixed_types": (Of(mixed_types), image(2, 4)),
    "padded": (Of(padded), image(2, 4)),
    "moved": (Of(moved), image(2, 4)),
    "joined": (Of(joined), image(2, 4)),
    "returned_after_change": (Of(returned_after_change), image(2, 4)),
    "in_place_types": (Of(in_place_types), image(2, 4)),
    "input_returned": (Of(lambda self, x: x), image(2)),
    "input_returned_twice": (Of(lambda self, x, y: (y, x, [x])), (*image(2), *image(3))),
    "unused_input": (Of(lambda self, x, y: x + 1), (*image(2), *image(3))),
    "dict": (Of(lambda self, x: {"b": x + 1, "a": (x, {"c": [x * 2]})}), image(2)),
    "named_tuple": (Of(lambda self, x: Pair(x + 1, x * 2)), image(2)),
    "list": (Of(lambda self, x: [x + 1]), image(2)),
    "none": (Of(lambda self, x: (x + 1, None, 3)), image(2)),
    "no_clone_of_state": (Of(lambda self, x: x @ self.w, {"w": nn.Parameter(torch.ones(2, 2))}), image(2, 2)),
    "plain_tensor": (Of(lambda self, x: x + self.function_table, {"function_table": torch.arange(3.0)}), image(3)),
    "constant": (Of(lambda self, x: x + torch.tensor([1.0, 2.0]) * torch.tensor(3.0)), image(2)),
    "one_matrix": (Of(lambda self, x: self.a(self.a(x)), {"a": nn.Linear(3, 3)}), image(2, 3)),
    "einsum": (Of(lambda s, x: torch.einsum("ij,kj->ik", x, x)), image(2, 3)),
    "channels_last": (nn.Conv2d(2, 3, 1), (image(1, 2, 4, 4)[0].to(memory_format=torch.channels_last),)),
    "no_grad": (Of(lambda s, x: torch.relu(x).detach().contiguous().clone()), image(2)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_captured_alike(name: str) -> None:
    module, inputs = PROGRAMS[name]
    check(module.eval(), inputs)


VIEWS = [
    *("y.t()", "y[0]", "y[:, 1:]", "y[::2]", "y.view(-1)", "y.reshape(-1)", "y.unsqueeze(1)", "y[None]", "y.squeeze()"),
    *("y.flatten()", "y.transpose(0, -1)", "y.diagonal()", "y.detach()", "y.chunk(2, -1)[0]", "y.unbind(-1)[-1]"),
    *(
        "y.expand_as(y)",
        "y.narrow(0, 0, 1)",
        "y.contiguous()",
        "y.select(-1, 0)",
        "y.split(1)[0]",
        "y.movedim(0, -1)",
        "y.mT",
    ),
]
CHANGES = [
    "y.add_(1)",
    "y.mul_(z.amax())",
    "y.relu_()",
    "y.zero_()",
    "y.clamp_(-1, 1)",
    "y.fill_(2)",
    "y.copy_(z.amax())",
    "y.neg_()",
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["view", "change"]), st.integers(0, 5), st.integers(0, 50)), max_size=8),
    st.sampled_from(BOTH),
    st.booleans(),
)
def test_random_views_and_changes(steps: list[tuple[str, int, int]], method: str, own: bool) -> None:
    """Any chain of views and in-place operators gives what eager execution gives, in outputs and inputs."""

    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x + 0 if own else x]
        for kind, which, what in steps:
            y = tensors[which % len(tensors)]
            texts = VIEWS if kind == "view" else CHANGES
            tensors.append(eval(texts[what % len(texts)], {"y": y, "z": x}))
        return tuple(tensors)

    module = Of(forward).eval()
    try:
        module(*image(2, 4))
    except (RuntimeError, IndexError):
        return  # not possible in eager execution either
    check(module, image(2, 4), (method,))
