"""Every kernel of the table keeps the arithmetic contract, at scales and zero points as extreme as they may be.

Rows are drawn with their arguments; scales and zero points are given, not measured, and so are the stored integers.
Each form is judged by the oracle: exact or a tie, never wrong.
"""

from __future__ import annotations

import pytest
import torch
from graphs import QConfigs, forms
from growth import single
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_random_graphs import assert_equal, judged
from torch import Tensor, fx

from qlib.arith import MIN_SCALE
from qlib.kernels import KERNELS, implementation
from qlib.ops import OPS, Op, When
from qlib.passes.reference import reference
from qlib.qconfig import QConfig, QConfigMapping, at_run_time
from qlib.qparams import ROW, DType, QSpec

ROWS = {kernel: [op for op in OPS.values() if op.kernel == kernel] for kernel in KERNELS}
SCALES = st.one_of(st.sampled_from([MIN_SCALE, 2.0**40]), st.floats(-20, 20).map(lambda power: 2.0**power))
ACTIVATIONS = st.sampled_from([DType.UINT8, DType.UINT8, DType.INT8, DType.INT16])


@st.composite
def fixed(draw: st.DrawFn, dtype: DType) -> QSpec:
    """Given parameters; the zero point is at an end of the range as often as within it."""
    low, high = QSpec(dtype).range
    zero_point = draw(st.one_of(st.sampled_from([low, high]), st.integers(low, high)))
    return QSpec(dtype, observer="fixed", scale=draw(SCALES), zero_point=zero_point)


@st.composite
def weights(draw: st.DrawFn, op: Op) -> QSpec:
    """A description of weights that the row takes, with one scale for all, for each channel or for each group."""
    dtype = draw(st.sampled_from(sorted(op.weight_types)))
    if dtype is DType.FLOAT16:
        return QSpec(dtype, observer="fixed", scale=1.0)
    way = draw(st.sampled_from(["tensor", "channel", *(["group"] if op.when is When.WEIGHT_ONLY else [])]))
    group_size = draw(st.integers(1, 5)) if way == "group" else None
    axis = 0 if way == "channel" else None
    return QSpec(dtype, symmetric=draw(st.booleans()), axis=axis, group_size=group_size)


@st.composite
def qconfigs(draw: st.DrawFn, op: Op) -> QConfigMapping:
    weight = draw(weights(op)) if op.weight is not None else QSpec(DType.INT8)
    dtype = draw(ACTIVATIONS)
    if op.when is When.WEIGHT_ONLY:
        return QConfigMapping(QConfig(None, weight))
    if op.when is When.PER_TOKEN:
        return QConfigMapping(QConfig(QSpec(dtype, group_size=ROW, observer="runtime"), weight))
    if op.when is When.DYNAMIC:
        return QConfigMapping(at_run_time(QConfig(QSpec(dtype, symmetric=draw(st.booleans())), weight)))
    left, right, result = (draw(fixed(dtype)) for _ in range(3))
    return QConfigMapping(
        QConfig(result, weight),
        {"left": QConfig(left, weight), "right": QConfig(right, weight), "row": QConfig(left, weight, result)},
    )


def data_for(model: fx.GraphModule, qconfig: QConfigMapping, seed: int, size: float) -> tuple[Tensor, ...]:
    """Numbers that are quantized to integers of the whole range; where the range is not given, of about `size`."""
    random = torch.Generator().manual_seed(seed)
    found = []
    holders = [node for node in model.graph.nodes if node.op == "placeholder"]
    for node, path in zip(holders, ("left", "right"), strict=False):
        rule = qconfig.modules.get(path)
        x = torch.randn(node.meta["shape"], generator=random) * size
        if rule is not None and rule.activation is not None and rule.activation.scale is not None:
            spec = rule.activation
            low, high = spec.range
            stored = torch.randint(low, high + 1, node.meta["shape"], generator=random)
            x = ((stored.double() - spec.zero_point) * rule.activation.scale).float()
        found.append(x)
    return tuple(found)


def hold(model: fx.GraphModule, qconfig: QConfigs, inputs: tuple[Tensor, ...], name: str) -> None:
    found = forms(model, qconfig)
    assert name in {node.meta.get("operator") for node in found.debug.graph.nodes}
    spelled = reference(found.debug)
    for form in (found.debug, found.final, spelled):
        counts = judged(found.debug, form, inputs)
        assert counts.wrong == 0, counts
    with implementation("reference"):
        assert judged(found.debug, found.final, inputs).wrong == 0
        assert_equal(spelled(*inputs), found.final(*inputs))


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@settings(max_examples=12)  # of each of more than twenty kernels
@given(data=st.data(), number=st.integers(0, 20), seed=st.integers(0, 2**20))
def test_a_kernel_at_any_scale(kernel: str, data: st.DataObject, number: int, seed: int) -> None:
    op = data.draw(st.sampled_from(ROWS[kernel]), label="row")
    model, qconfig = single(op, number), data.draw(qconfigs(op))
    assume(model is not None)
    assert model is not None
    size = data.draw(st.sampled_from([1.0, 1e-6, 1e6]), label="size of data whose range is not given")
    hold(model, qconfig, data_for(model, qconfig, seed, size), op.name)
