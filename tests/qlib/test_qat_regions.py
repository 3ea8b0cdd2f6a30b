"""Training through branches and loops that the data decides: what runs is trained, and converts to what was trained."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from graphs import Block, Draft, aten
from ties import disagreements
from torch import Tensor, fx, nn
from training import drawn, seeded

import qlib
from qlib.frontends.capture import capture
from qlib.graph import Model
from qlib.passes.prepare import prepare_qat
from qlib.regions import all_models, inner_models
from qlib.trained import BatchNorm, FoldedBatchNorm


class Branching(nn.Module):
    """A convolution with its norm and a dropout where the data is positive, another one where it isn't."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop, self.other, self.last = nn.Dropout(0.5), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            y = self.drop(self.norm(self.conv(x)))
        else:
            y = torch.relu(self.other(torch.tanh(self.other(x))))
        return self.last(y)  # type: ignore[no-any-return]


class Looping(nn.Module):
    """A layer that runs until its result is small, with the same weight before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc(x))
        n = torch.zeros((), dtype=torch.int64)
        while bool(n < 3):
            x = torch.relu(self.fc(x))
            n = n + 1
        return self.last(x)  # type: ignore[no-any-return]


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.one, self.two, (x,))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "branch": (Branching, "script", (4, 3, 5, 5)),
    "loop": (Looping, "script", (5, 4)),
    "cond": (Exported, "export", (5, 4)),
}


def both(*shape: int) -> tuple[Tensor, Tensor]:
    """Data of both signs, once with a positive sum and once with a negative one."""
    x = drawn(*shape) + 0.5
    return x, -x


def train(prepared: fx.GraphModule, batches: Sequence[Tensor]) -> None:
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for x in (*batches, *batches):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()


def assert_settles(prepared: fx.GraphModule, batches: Sequence[Tensor]) -> fx.GraphModule:
    prepared.eval()
    debug = qlib.convert(prepared)
    final = qlib.lower(debug)
    for x in batches:
        assert torch.equal(prepared(x), debug(x))
        assert disagreements(debug, final, (x,)) == 0
    return final


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_trained_wherever_it_is(case: str) -> None:
    make, method, shape = CASES[case]
    batches = both(*shape)
    captured = capture(seeded(make).train(), (batches[0],), method)
    prepared = prepare_qat(captured)
    before = {name: value.clone() for name, value in prepared.named_parameters()}
    train(prepared, batches)
    unmoved = [name for name, value in prepared.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in unmoved if not name.endswith("conv.bias")] == []  # which a batch norm takes away
    final = assert_settles(prepared, batches)
    left = {name for name in qlib.executed_ops(final) if name.startswith("aten::")}
    assert not {"aten::linear", "aten::conv2d", "aten::batch_norm", "aten::dropout"} & left
    assert sum(p.numel() for p in prepared.parameters()) == sum(p.numel() for p in make().parameters())


def test_a_norm_in_a_branch_is_folded_and_moves_where_the_branch_is_taken() -> None:
    yes, no = both(4, 3, 5, 5)
    prepared = prepare_qat(capture(seeded(Branching).train(), (yes,), "script"))
    assert sum(isinstance(part, FoldedBatchNorm) for part in prepared.modules()) == 1
    (mean,) = (b for name, b in prepared.named_buffers() if name.endswith("running_mean"))
    before = mean.clone()
    prepared(no)
    assert torch.equal(mean, before)
    prepared(yes)
    assert not torch.equal(mean, before)
    assert not torch.equal(prepared(yes), prepared(yes))  # the dropout is there
    train(prepared, (yes, no))
    final = assert_settles(prepared, (yes, no))
    assert qlib.executed_ops(final)["quantized::conv2d"] == 3
    assert "aten::add" not in qlib.executed_ops(final)  # the count of batches is gone from the branch too


def test_a_norm_alone_in_a_branch() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            if bool(x.sum() > 0):
                y = self.norm(y)
            return y  # type: ignore[no-any-return]

    batches = both(4, 3, 5, 5)
    prepared = prepare_qat(capture(seeded(Alone).train(), (batches[0],), "script"))
    assert sum(isinstance(part, BatchNorm) for part in prepared.modules()) == 1
    train(prepared, batches)
    final = assert_settles(prepared, batches)
    assert "quantized::batch_norm" in qlib.executed_ops(final)


def test_a_branch_that_training_never_reached_is_named() -> None:
    yes, _ = both(4, 3, 5, 5)
    prepared = prepare_qat(capture(seeded(Branching).train(), (yes,), "script"))
    train(prepared, (yes,))
    with pytest.raises(qlib.CalibrationError, match=r"in the branch .* where the condition at .* fails"):
        qlib.convert(prepared.eval())


@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_copy_trains_on(way: str) -> None:
    yes, no = both(4, 3, 5, 5)
    prepared = prepare_qat(capture(seeded(Branching).train(), (yes,), "script"))
    train(prepared, (yes, no))
    other = copy.deepcopy(prepared) if way == "copied" else pickle.loads(pickle.dumps(prepared))
    train(other, (yes, no))
    assert_settles(other, (yes, no))


# ---- graphs of a few nodes


def branch_of(inside: Block, before: Block) -> Model:
    draft = Draft()
    x = draft.input(4, 3, 5)
    predicate = draft.call(aten.gt.Scalar, draft.call(aten.sum.default, x), 0)
    (value,) = before(draft, x)
    return draft.done(*draft.cond(predicate, [value], inside, inside))


def conv(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
    return [inner.conv(x, 3)]


def conv_norm(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
    return [inner.batch_norm(inner.conv(x, 3), training=True)]


def itself(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
    return [x]


def doubled(inner: Draft, x: fx.Node) -> Sequence[fx.Node]:
    return [inner.call(aten.cos.default, x)]


@pytest.mark.parametrize("before", [itself, doubled, conv])
@pytest.mark.parametrize("inside", [conv, conv_norm])
def test_a_bias_in_a_branch_knows_the_scale_of_its_input(inside: Block, before: Block) -> None:
    """Whether the input comes from outside in float, was quantized there once for both branches, or is a result."""
    prepared = prepare_qat(branch_of(inside, before))
    layers = [part.layer_0 for _, part in inner_models(prepared)]
    assert all(layer.source is not None for layer in layers) and len(layers) == 2
    batches = both(4, 3, 5)
    for x in batches:
        prepared(x)
    final = assert_settles(prepared, batches)
    assert qlib.executed_ops(final)["quantized::conv1d"] == 2 + (before is conv)


def test_what_graphs_share_they_go_on_sharing() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            if bool(x.sum() > 0):
                y = self.fc(y)
            return y  # type: ignore[no-any-return]

    batches = both(5, 4)
    captured = capture(seeded(Shared).train(), (batches[0],), "script")
    prepared = prepare_qat(captured)
    held = [dict(part.named_parameters(recurse=False)) or part for part in all_models(prepared)]
    assert len(held) == 3 and len(list(prepared.parameters())) == 2
    train(prepared, batches)
    assert_settles(prepared, batches)
    assert torch.equal(captured.get_parameter("fc.weight"), seeded(Shared).get_parameter("fc.weight"))
