"""Random graphs drawn from the operator table: debug, final and reference form hold by the suite's own classification.

A graph is a list of steps; each takes tensors that are there already, so that chains, branches, residuals and tensors
that several operators share come about by themselves. A step that does not fit the tensor it is given is skipped.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from graphs import Draft, aten, example, forms
from hypothesis import example as also
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import fx

from conformance.compare import Rounding, Tally, tally
from qlib.errors import CalibrationError
from qlib.kernels import implementation
from qlib.ops import OPS
from qlib.oracle import replay
from qlib.passes.reference import reference
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time
from qlib.qparams import RangeFrom
from qlib.spelled import REWRITES

MOST_ELEMENTS = 3000


@dataclass(frozen=True)
class Choice:
    """What a step is given: two tensors of the graph, a number to vary it by, and a name for its constants."""

    a: fx.Node
    b: fx.Node
    number: int
    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.a.meta["shape"])

    @property
    def axis(self) -> int:
        return self.number % len(self.shape)

    @property
    def partner(self) -> fx.Node:
        """The second tensor where it has the shape of the first, else the first itself."""
        return self.b if self.b.meta["shape"] == self.a.meta["shape"] else self.a


Grow = Callable[[Draft, Choice], fx.Node | None]


def unary(name: str) -> Grow:
    target = getattr(aten, name).default
    return lambda draft, choice: draft.call(target, choice.a)


def _is_unary(name: str) -> bool:
    """Whether a float operator takes one tensor and needs nothing else."""
    target = getattr(getattr(aten, name), "default", None)
    if target is None:
        return False
    first, *rest = target._schema.arguments
    return str(first.type) == "Tensor" and all(argument.has_default_value() for argument in rest)


# Every table of the operator table that a tensor alone is enough for.
CURVES = {
    name: unary(name)
    for op in OPS.values()
    if op.kernel == "table" and len(op.chain) == 1
    for name in [op.chain[0].removeprefix("aten::")]
    if _is_unary(name)
}


def conv(draft: Draft, choice: Choice) -> fx.Node | None:
    dim = len(choice.shape) - 2
    if dim not in (1, 2, 3):
        return None
    channels, n = choice.shape[1], choice.number
    groups = 2 if n % 5 == 0 and channels % 2 == 0 else 1
    size, stride, padding, dilation = 1 + n % 3, 1 + n % 2, n % 4 // 2, 1 + n % 7 // 5
    if any(dilation * (size - 1) >= length + 2 * padding for length in choice.shape[2:]):
        return None
    outputs = groups * (1 + n % 4)
    weight = draft.draw(f"{choice.path}.weight", outputs, channels // groups, *[size] * dim)
    bias = draft.draw(f"{choice.path}.bias", outputs) if n % 4 else None
    geometry = ([stride] * dim, [padding] * dim, [dilation] * dim, groups)
    target = getattr(aten, f"conv{dim}d").default
    return draft.call(target, choice.a, weight, bias, *geometry, module=(choice.path, f"nn.Conv{dim}d"))


def norm(draft: Draft, choice: Choice) -> fx.Node | None:
    return draft.batch_norm(choice.a, choice.path) if len(choice.shape) >= 2 else None


def pool(name: str) -> Grow:
    def grow(draft: Draft, choice: Choice) -> fx.Node | None:
        dim = len(choice.shape) - 2
        if dim not in (1, 2, 3) or min(choice.shape[2:]) < 2:
            return None
        pooled = draft.call(getattr(aten, f"{name}{dim}d").default, choice.a, [2] * dim, [1 + choice.number % 2] * dim)
        return draft.call(operator.getitem, pooled, 0) if name.startswith("adaptive_max") else pooled

    return grow


def adaptive(name: str) -> Grow:
    def grow(draft: Draft, choice: Choice) -> fx.Node | None:
        dim = len(choice.shape) - 2
        if dim not in (1, 2, 3):
            return None
        pooled = draft.call(getattr(aten, f"{name}{dim}d").default, choice.a, [1 + choice.number % 3] * dim)
        return draft.call(operator.getitem, pooled, 0) if name.startswith("adaptive_max") else pooled

    return grow


def piece(draft: Draft, choice: Choice) -> fx.Node | None:
    if choice.shape[choice.axis] < 2:
        return None
    pieces = draft.call(aten.chunk.default, choice.a, 2, choice.axis)
    return draft.call(operator.getitem, pieces, choice.number % 2)


def pad(draft: Draft, choice: Choice) -> fx.Node:
    return draft.call(aten.constant_pad_nd.default, choice.a, [choice.number % 2, 1])


def join(target: Any) -> Grow:
    return lambda draft, choice: draft.call(target, [choice.a, choice.partner], choice.axis)


def binary(target: Any) -> Grow:
    return lambda draft, choice: draft.call(target, choice.a, choice.partner)


GROW: dict[str, Grow] = {
    **CURVES,
    "clamp": lambda draft, c: draft.call(aten.clamp.default, c.a, -0.1 * c.number, None if c.number % 2 else 0.5),
    "conv": conv,
    "conv_relu": lambda draft, c: None if (layer := conv(draft, c)) is None else draft.relu(layer),
    "conv_norm": lambda draft, c: None if (layer := conv(draft, c)) is None else draft.batch_norm(layer, f"{c.path}.n"),
    "linear": lambda draft, c: draft.linear(c.a, 1 + c.number % 4, c.path, "bias" if c.number % 3 else None),
    "linear_relu": lambda draft, c: draft.relu(draft.linear(c.a, 1 + c.number % 4, c.path)),
    "norm": norm,
    "add": binary(aten.add.Tensor),
    "add_relu": lambda draft, c: draft.relu(draft.call(aten.add.Tensor, c.a, c.partner)),
    "sub": binary(aten.sub.Tensor),
    "maximum": binary(aten.maximum.default),
    "mul": binary(aten.mul.Tensor),
    "add_number": lambda draft, c: draft.call(aten.add.Scalar, c.a, 0.37 * c.number - 3),
    "mul_number": lambda draft, c: draft.call(aten.mul.Scalar, c.a, 0.11 * c.number - 0.5),
    "cat": join(aten.cat.default),
    "stack": join(aten.stack.default),
    "max_pool": pool("max_pool"),
    "avg_pool": pool("avg_pool"),
    "adaptive_max_pool": adaptive("adaptive_max_pool"),
    "adaptive_avg_pool": adaptive("adaptive_avg_pool"),
    "pad": pad,
    "flatten": lambda draft, c: draft.call(aten.flatten.using_ints, c.a, 1) if len(c.shape) > 1 else None,
    "reshape": lambda draft, c: draft.call(aten.reshape.default, c.a, [c.shape[0], -1, 1]),
    "transpose": lambda draft, c: draft.call(aten.transpose.int, c.a, 0, c.axis),
    "unsqueeze": lambda draft, c: draft.call(aten.unsqueeze.default, c.a, c.axis),
    "piece": piece,
    "select": lambda draft, c: draft.call(aten.select.int, c.a, c.axis, 0) if len(c.shape) > 2 else None,
    "in_float": lambda draft, c: draft.call(aten.cos.default, c.a),
}

NUMBERS = st.integers(0, 20)
STEPS = st.lists(st.tuples(st.sampled_from(sorted(GROW)), NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=9)
WITH_RANGES = sorted(
    name
    for name, qconfig in PRESETS.items()
    if qconfig.weight and qconfig.activation and qconfig.activation.range_from is RangeFrom.CALIBRATION
)
SHAPES = st.sampled_from([(2, 4, 6), (2, 3, 5, 4), (1, 2, 4, 3, 3), (3, 5)])
Steps = list[tuple[str, int, int, int]]


def grown(shape: tuple[int, ...], steps: Steps) -> fx.GraphModule:
    """The graph of the steps; every tensor that nothing takes is an output. The latest tensors are counted first."""
    draft = Draft()
    first = draft.input(*shape)
    stem = conv(draft, Choice(first, first, 7, "stem"))
    pool_ = [first, draft.linear(first, 4, "stem") if stem is None else stem]
    for n, (name, i, j, number) in enumerate(steps):
        a, b = (pool_[-1 - k % len(pool_)] for k in (i, j))
        if not a.meta["shape"] or math.prod(a.meta["shape"]) > MOST_ELEMENTS:
            continue
        value = GROW[name](draft, Choice(a, b, number, f"step{n}"))
        if value is not None:
            pool_.append(value)
    return draft.done(*[value for value in pool_[1:] if not value.users])


def judged(debug: fx.GraphModule, form: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> Tally:
    return tally(Rounding(**vars(step)) for step in replay(debug, form, inputs).steps)


def assert_forms_hold(model: fx.GraphModule, qconfig: str | QConfigMapping, seed: int) -> None:
    try:
        found = forms(model, qconfig)
    except CalibrationError:  # a chain of products left the range of float32
        reject()
    spelled = reference(found.debug)
    assert not [node for node in spelled.graph.nodes if str(node.target).startswith("qlib")]
    for inputs in (found.inputs, example(found.debug, seed)):
        for form in (found.debug, found.final, spelled):
            counts = judged(found.debug, form, inputs)
            assert counts.wrong == 0, counts
        if kernels_of(found.debug) <= set(REWRITES):  # an operator that stays in float rounds otherwise than its kernel
            with implementation("reference"):
                expected = found.final(*inputs)
            assert_equal(spelled(*inputs), expected)


def assert_equal(given_: Any, expected: Any) -> None:
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (given_, expected)), strict=True)
    for one, other in pairs:
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@given(SHAPES, STEPS, st.sampled_from(WITH_RANGES), st.integers(1, 1000))
@also((2, 3, 5, 4), [("conv_relu", 0, 0, 2), ("relu", 0, 0, 0), ("add", 0, 1, 0), ("cat", 0, 1, 1)], "default", 1)
def test_a_random_graph(shape: tuple[int, ...], steps: Steps, preset: str, seed: int) -> None:
    assert_forms_hold(grown(shape, steps), preset, seed)


@given(SHAPES, STEPS, st.integers(1, 1000))
def test_a_random_graph_with_ranges_at_run_time(shape: tuple[int, ...], steps: Steps, seed: int) -> None:
    assert_forms_hold(grown(shape, steps), QConfigMapping(at_run_time(PRESETS["default"])), seed)


def kernels_of(debug: fx.GraphModule) -> set[str]:
    return {OPS[node.meta["operator"]].kernel for node in debug.graph.nodes if "operator" in node.meta}


def test_every_kernel_can_be_drawn() -> None:
    assert {"relu", "sigmoid", "gelu"} <= set(CURVES)
    drawn: set[str] = set()
    for name in sorted(GROW):
        steps: Steps = [("conv", 0, 0, 4), ("sigmoid", 0, 0, 0), (name, 0, 1, 1)]
        drawn |= kernels_of(forms(grown((2, 4, 6), steps)).debug)
    assert set(REWRITES) - {"linear_dynamic", "linear_per_token", "parametric_table", "matmul"} <= drawn
