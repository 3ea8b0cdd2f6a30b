"""Script capture of branches and loops that the data decides: what the graph computes is what the module does."""

from __future__ import annotations

import copy
import re
from typing import NamedTuple, Optional

import pytest
import torch
from captures import assert_same, fresh, plain
from torch import Tensor, nn
from torch.nn import functional as F

from qlib.errors import CaptureError
from qlib.executed import sequence
from qlib.frontends.capture import capture
from qlib.quantize import quantize_model
from qlib.regions import all_models, inner_models, regions_in


class Layers(nn.Module):
    """What the modules below are made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))


class Branch(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            y = self.a(x)
        else:
            y = F.relu(self.b(x))
        return self.b(y)


class EarlyReturn(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.a(x)
        return self.b(x * 2)


class Nested(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            if float(x.max()) > 0.5:
                y = self.a(x)
            else:
                y = self.b(x)
        elif x.min() < -1:
            y = self.b(x) + x
        else:
            y = x
        return self.a(y)


class InPlace(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            x.add_(1)
            self.seen += 1
        else:
            x[:, 0] = 0
        return self.b(x) + self.seen


class OfInput(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x += 1
        return self.b(x)


class Attribute(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.seen = self.seen + 2
        return x + self.seen


class While(Layers):
    def forward(self, x: Tensor) -> Tensor:
        i = 0
        while x.abs().sum() > 1 and i < 5:
            x = self.a(x) * 0.7
            i += 1
        return self.b(x) * i


class Break(Layers):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(5):
            x = x * 2 + i
            if float(x.max()) > 3:
                break
        return self.b(x)


class ReturnInLoop(Layers):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            if x.sum() > i:
                return self.a(x)
            x = x + 1
        return x


class RangeOfData(Layers):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(int(x.abs().sum())):
            x = self.a(x) * 0.5 + i
        return x


class LoopsWithin(Layers):
    def forward(self, x: Tensor) -> Tensor:
        i = 0
        while i < 4 and x.sum() < 50:
            while x.max() < 1:
                x = x + 0.5
            if x.sum() > 0:
                x = self.a(x)
            else:
                x = self.b(x)
            i += 1
        return x


class InPlaceInLoop(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        while x.sum() < 10:
            x = x + 1
            y += x
        return y


class Augmented(Layers):
    def forward(self, x: Tensor) -> Tensor:
        while x.sum() < 10:
            x += 1
        return self.b(x)


class InPlaceAfter(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if x.sum() > 0:
            y = self.b(y)
        return self.a(F.relu_(y))


class Assertion(Layers):
    def forward(self, x: Tensor) -> Tensor:
        assert x.sum() < 1000, f"too large: {x.sum()}"
        if x.max() > 500:
            raise ValueError("no")
        return self.a(x)


class Numbers(Layers):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean().item()
        most = float(x.max())
        if (mean > 0 and most < 1) or not bool(x.min() < -1):
            y = self.a(x) * mean
        else:
            y = self.b(x) + most
        if int(x.sum()) % 2 == 0:
            y = y + 1
        return y


class Pair(NamedTuple):
    u: Tensor
    v: Tensor


class Containers(Layers):
    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        if x.sum() > 0:
            pair = Pair(self.a(x), x)
        else:
            pair = Pair(self.b(x), -x)
        return pair, {"sum": pair.u + pair.v}, [pair.v]


class Method(Layers):
    def act(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.act(x)
        return self.act(-x)


class MaybeNone(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.other = None

    def forward(self, x: Tensor, y: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        if y is None:
            y = x
        other = self.other
        if other is not None:
            y = other
        if y.sum() > 0:
            y = self.a(y)
        return y


KINDS = [Branch, EarlyReturn, Nested, InPlace, OfInput, Attribute, While, Break, ReturnInLoop, RangeOfData, LoopsWithin]
KINDS += [InPlaceInLoop, Augmented, InPlaceAfter, Assertion, Numbers, Containers, Method, MaybeNone]
KEPT_STRAIGHT = [Assertion]


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_does_what_the_module_does(kind: type[nn.Module]) -> None:
    module, example = kind().eval(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    graph = capture(module, (example.clone(),), "script")
    assert bool(list(regions_in(graph))) == (kind not in KEPT_STRAIGHT)
    for part in all_models(graph):
        part.graph.lint()
    for seed in range(12):
        (x,) = fresh((example,), seed)
        ours, theirs = x.clone() * (1 + seed), x.clone() * (1 + seed)
        copied, eager = copy.deepcopy(graph), copy.deepcopy(module)
        with torch.no_grad():
            assert_same(as_tuples(copied(ours)), as_tuples(plain(eager(theirs))))
        assert_same(ours, theirs)
        state = dict(copied.named_buffers())
        for name, value in eager.named_buffers():
            if name in state:
                assert_same(state[name], value)


def as_tuples(value: object) -> object:
    return tuple(map(as_tuples, value)) if isinstance(value, tuple) else value


QUANTIZED = {
    Branch: {"quantized::linear": 3, "quantized::linear_relu": 1},
    EarlyReturn: {"quantized::linear": 2, "quantized::quantize_per_tensor": 2},
    Nested: {"quantized::linear": 4},
    InPlaceAfter: {"quantized::linear": 3, "quantized::relu": 1},
    While: {"quantized::linear": 2},
    Method: {"quantized::linear_relu": 2},
}


@pytest.mark.parametrize("kind", sorted(QUANTIZED, key=lambda kind: kind.__name__))
def test_all_forms_agree(kind: type[nn.Module]) -> None:
    random = torch.Generator().manual_seed(0)
    batches = [(torch.randn(3, 4, generator=random) * 2,) for _ in range(40)]
    found = quantize_model(kind().eval(), batches[0], batches, method="script")
    names = sequence(found.final)
    for name, count in QUANTIZED[kind].items():
        assert names.count(name) == count
    with torch.no_grad():
        for batch in batches:
            assert_same(found.final(*batch), found.debug(*batch))


def test_weights_used_in_both_branches_are_one_tensor() -> None:
    graph = capture(Method().eval(), (torch.randn(3, 4),), "script")
    (_, holds), (_, fails) = inner_models(graph)
    assert holds.a.weight is fails.a.weight  # type: ignore[union-attr]
    assert not any(name.startswith("a.") for name in dict(graph.named_parameters()))


class Shapes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            y = x
        else:
            y = x[:1]
        return y


class LoopShapes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 0:
            x = torch.cat([x, x])
        return x


class Listed(Layers):
    def forward(self, x: Tensor) -> Tensor:
        outs = [x]
        if x.sum() > 0:
            outs.append(x + 1)
        return torch.cat(outs)


class OfNone(Layers):
    def forward(self, x: Tensor) -> Optional[Tensor]:  # noqa: UP045
        if x.sum() > 0:
            return x
        return None


class Python(Layers):
    @torch.jit.ignore
    def outside(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(x)


class Sizes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(int(x.sum()))


class Fails(Layers):
    def forward(self, x: Tensor) -> Tensor:
        assert x.sum() > 1000, "too small"
        return x


REFUSED = [
    (
        Shapes,
        r"one shape and type from both branches at test_decisions.py:\d+, found float32\[3, 4\] and float32\[1, 4\]",
    ),
    (LoopShapes, r"the loop at test_decisions.py:\d+ makes float32\[6, 4\] of float32\[3, 4\] in a round"),
    (Listed, r"a list or dict is changed in what the data decides at test_decisions.py:\d+"),
    (OfNone, r"both branches at test_decisions.py:\d+, found float32\[3, 4\] and None"),
    (Python, r"call of Python code at test_decisions.py:\d+, as torch.jit.ignore leaves it"),
    (Sizes, r"test_decisions.py:\d+"),
    (Fails, r"raises .* on the example at test_decisions.py:\d+"),
]


@pytest.mark.parametrize(("kind", "message"), REFUSED)
def test_what_cannot_be_kept_names_its_line(kind: type[nn.Module], message: str) -> None:
    with pytest.raises(CaptureError) as error:
        capture(kind().eval(), (torch.ones(3, 4),), "script")
    assert re.search(message, str(error.value)), str(error.value)


@pytest.mark.parametrize("method", ["trace", "script"])
def test_a_script_module_is_taken_as_it_is(method: str) -> None:
    module, x = Branch().eval(), torch.randn(3, 4)
    graph = capture(torch.jit.script(module), (x,), method)
    for value in (x, -x):
        assert_same(graph(value), module(value))
    traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten()).eval(), x)
    assert_same(capture(traced, (x,), method)(x), traced(x))


class ByCond(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.cond(x.sum() > 0, lambda v: self.a(v), lambda v: F.relu(self.b(v)), (x,))


class ByWhile(Layers):
    def forward(self, x: Tensor) -> Tensor:
        start = (torch.zeros((), dtype=torch.int64), self.a(x))
        _, y = torch._higher_order_ops.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, self.b(v)), start)
        return self.a(y)


@pytest.mark.parametrize("kind", [ByCond, ByWhile])
@pytest.mark.parametrize("method", ["export", "export-strict"])
def test_what_the_module_says_in_torch_is_kept_by_export(kind: type[nn.Module], method: str) -> None:
    module = kind().eval()
    batches = [(torch.randn(3, 4) * sign,) for sign in (1, -1) for _ in range(5)]
    found = quantize_model(module, batches[0], batches, method=method)
    assert len(list(regions_in(found.final))) == 1
    assert "aten::linear" not in sequence(found.final)
    with torch.no_grad():
        for batch in batches:
            assert_same(found.captured(*batch), module(*batch))
            assert_same(found.final(*batch), found.debug(*batch))
