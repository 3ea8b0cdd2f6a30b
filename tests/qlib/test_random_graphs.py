"""Random graphs drawn from the operator table: debug, final and reference form hold by the suite's own classification.

A graph is a list of steps; each takes tensors that are there already, so that chains, branches, residuals and tensors
that several operators share come about by themselves. A step that does not fit the tensor it is given is skipped.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from choices import Choice
from graphs import Draft, QConfigs, aten, example, forms
from growth import grow, qconfig_for
from hypothesis import example as also
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import fx

from conformance.compare import Rounding, Tally, tally
from qlib.errors import CalibrationError
from qlib.kernels import implementation
from qlib.ops import GROUPS, OPS, Op
from qlib.oracle import replay
from qlib.passes.reference import reference
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time
from qlib.qparams import RangeFrom

NORM, FLOAT = "a layer and its norm", "an operator that stays in float"


def drawn_rows(ops: tuple[Op, ...]) -> list[str]:
    """The rows that differ in their float operators; the others are found by another QConfig."""
    return sorted({(op.chain, len(op.operands)): op.name for op in ops}.values())


# Each file of the operator table is as likely as another, however many rows it has.
NAMES = st.one_of(*(st.sampled_from(drawn_rows(group.OPS)) for group in GROUPS), st.sampled_from([NORM, FLOAT]))
NUMBERS = st.integers(0, 20)
STEPS = st.lists(st.tuples(NAMES, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=9)
STATIC = sorted(
    name
    for name, qconfig in PRESETS.items()
    if qconfig.weight and qconfig.activation and qconfig.activation.range_from is RangeFrom.CALIBRATION
)
RUN_TIME: dict[str, QConfigs] = {
    "per_tensor": QConfigMapping(at_run_time(PRESETS["default"])),
    "symmetric": QConfigMapping(at_run_time(PRESETS["symmetric"])),
    "per_token": "per_token",
    "per_token_symmetric": "per_token_symmetric",
}
WEIGHT_ONLY = sorted(name for name, qconfig in PRESETS.items() if qconfig.activation is None)
SHAPES = ((2, 4, 6), (2, 3, 6, 8), (1, 2, 4, 3, 3), (3, 5))
Steps = list[tuple[str, int, int, int]]


def step(draft: Draft, name: str, choice: Choice) -> fx.Node | None:
    if name == FLOAT:
        return draft.call(aten.cos.default, choice.a)
    if name != NORM:
        return grow(draft, OPS[name], choice)
    dim = len(choice.shape) - 2
    layer = grow(draft, OPS[f"quantized::conv{dim}d"], choice) if dim in (1, 2, 3) else None
    return None if layer is None else draft.batch_norm(layer, f"{choice.path}.norm")


def grown(shape: tuple[int, ...], steps: Steps) -> fx.GraphModule:
    """The graph of the steps; every tensor that nothing takes is an output. The latest tensors are counted first."""
    draft = Draft()
    first = draft.input(*shape)
    stem = grow(
        draft,
        OPS["quantized::linear" if len(shape) == 2 else f"quantized::conv{len(shape) - 2}d"],
        Choice(first, first, 7, "stem"),
    )
    assert stem is not None
    values = [first, stem]
    for n, (name, i, j, number) in enumerate(steps):
        a, b = (values[-1 - k % len(values)] for k in (i, j))
        if a.meta["shape"] and (value := step(draft, name, Choice(a, b, number, f"step{n}"))) is not None:
            values.append(value)
    return draft.done(*[value for value in values[1:] if not value.users])


def judged(debug: fx.GraphModule, form: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> Tally:
    return tally(Rounding(**vars(step)) for step in replay(debug, form, inputs).steps)


def assert_forms_hold(model: fx.GraphModule, qconfig: QConfigs, seed: int) -> None:
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
        with implementation("reference"):
            expected = found.final(*inputs)
        assert_equal(spelled(*inputs), expected)


def assert_equal(given_: Any, expected: Any) -> None:
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (given_, expected)), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


RESIDUAL = [
    ("quantized::conv2d_relu", 0, 0, 2),
    ("quantized::relu", 0, 0, 0),
    ("quantized::add", 0, 1, 0),
    ("quantized::cat", 0, 1, 1),
]

# A table after a convolution, whose result lies in memory in another order; a recurrent layer in float heeds the order.
PERMUTED = [
    ("quantized::linear_per_token_dynamic", 0, 0, 0),
    ("quantized::sub_scalar", 1, 0, 0),
    ("quantized::linear_per_token_dynamic", 0, 0, 0),
    ("quantized::linear_per_token_dynamic", 0, 0, 0),
    ("quantized::gru_dynamic", 2, 0, 0),
]


@given(st.sampled_from(SHAPES), STEPS, st.sampled_from(STATIC), st.integers(1, 1000))
@also((2, 3, 6, 8), RESIDUAL, "default", 1)
@also((2, 4, 6), [("quantized::div", 0, 0, 0)], "asymmetric_weight", 1)  # 0 by 0
@also((2, 4, 6), PERMUTED, "asymmetric_weight", 1)
def test_a_random_graph(shape: tuple[int, ...], steps: Steps, preset: str, seed: int) -> None:
    assert_forms_hold(grown(shape, steps), preset, seed)


@given(st.sampled_from(SHAPES), STEPS, st.sampled_from(sorted(RUN_TIME)), st.integers(1, 1000))
def test_a_random_graph_with_ranges_at_run_time(shape: tuple[int, ...], steps: Steps, kind: str, seed: int) -> None:
    assert_forms_hold(grown(shape, steps), RUN_TIME[kind], seed)


@given(st.sampled_from(SHAPES), STEPS, st.sampled_from(WEIGHT_ONLY), st.integers(1, 1000))
def test_a_random_graph_with_weights_in_few_bits(shape: tuple[int, ...], steps: Steps, preset: str, seed: int) -> None:
    assert_forms_hold(grown(shape, steps), preset, seed)


@pytest.mark.parametrize("name", drawn_rows(tuple(OPS.values())))
def test_every_row_can_be_drawn(name: str) -> None:
    """Each fits after a convolution in one of the shapes that are drawn, so that no row is left out in silence."""
    steps: Steps = [("quantized::hardswish", 0, 0, 0), (name, 0, 1, 1)]
    graphs = [grown(shape, steps) for shape in SHAPES]
    found = {n.meta.get("operator") for model in graphs for n in forms(model, qconfig_for(OPS[name])).debug.graph.nodes}
    assert name in found
