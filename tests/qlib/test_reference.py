"""The reference form: ATen operators only, and the final form's integers, kernel by kernel and module by module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from captures import Of
from graphs import Draft, Forms, QConfigs, example, forms
from growth import qconfig_for, single
from test_model_forms import WAYS
from ties import Target, errors
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from qlib import quantize_model
from qlib.graph import attribute, op_name
from qlib.kernels import KERNELS, boundary, implementation
from qlib.ops import OPS, Op, When
from qlib.oracle import Step, replay
from qlib.passes.reference import reference
from qlib.spelled import BORDERS, REWRITES
from qlib.spelled.selections import SELECTIONS

QCONFIGS = ("default", "int8", "asymmetric_weight", "per_tensor", "reduced_range", "int16")


def targets(model: fx.GraphModule) -> list[Any]:
    return [node.target for node in model.graph.nodes if node.op == "call_function"]


def assert_only_aten(model: fx.GraphModule) -> None:
    assert {node.op for node in model.graph.nodes} <= {"placeholder", "get_attr", "call_function", "output"}
    for target in targets(model):
        assert target is operator.getitem or (isinstance(target, OpOverload) and target.namespace == "aten"), target


def assert_same_integers(found: Forms | Any, form: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Equal to the final form by the reference kernels in every bit, and explained by the oracle."""
    with implementation("reference"):
        expected = found.final(*inputs)
    given = form(*inputs)
    for one, other in zip(listed(given), listed(expected), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    explained = replay(found.debug, form, inputs).steps
    assert [step.name for step in explained] == [s.name for s in replay(found.debug, found.final, inputs).steps]
    assert {step.name: n for step in explained if (n := wrong(step))} == {}


def listed(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def wrong(step: Step) -> int:
    if step.zero_point is None:
        return int(((step.given.double() - step.real).abs() > 8 * 2.0**-24 * step.magnitude + 1e-38).sum())
    target = Target(1.0, step.zero_point, step.qmin, step.qmax, step.given.dtype)
    return errors(step.given, step.real, step.magnitude, target)


# A row for each kernel.
ROW_OF = {op.kernel: op for op in reversed(OPS.values())}
# Kernels that compute in float64 by their nature, or because ATen has no other kernel for what they do.
IN_FLOAT = {op.kernel for op in OPS.values() if op.when is When.WEIGHT_ONLY} | {
    "computed",
    "homogeneous",
    "masked",
    "averaging",
    "recurrent_dynamic",
}


def grown(op: Op, qconfig: QConfigs, number: int = 6) -> Forms:
    model = single(op, number)
    assert model is not None, f"{op.name} does not fit"
    return forms(model, qconfig)


def made(kind: str, qconfig: str) -> Forms:
    return grown(ROW_OF[kind], qconfig_for(ROW_OF[kind], qconfig))


def rows_in(found: Forms) -> set[Any]:
    return {node.meta.get("operator") for node in found.debug.graph.nodes}


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_row_is_spelled_out(name: str) -> None:
    for number in (4, 7):
        found = grown(OPS[name], qconfig_for(OPS[name]), number)
        assert name in rows_in(found)
        form = reference(found.debug)
        assert_only_aten(form)
        assert_same_integers(found, form, found.inputs)


def test_every_kernel_is_spelled_out() -> None:
    assert set(REWRITES) == set(KERNELS)


@pytest.mark.parametrize("qconfig", QCONFIGS)
@pytest.mark.parametrize("kind", sorted(kind for kind, op in ROW_OF.items() if op.when is When.STATIC))
def test_a_kernel_of_each_kind(kind: str, qconfig: str) -> None:
    found = made(kind, qconfig)
    assert ROW_OF[kind].name in rows_in(found)
    form = reference(found.debug)
    assert_only_aten(form)
    assert_same_integers(found, form, found.inputs)
    assert_same_integers(found, form, tuple(3 * x for x in example(found.debug, 5)))


WEIGHT_ONLY = ("weight_only_int8", "weight_only_int4", "embedding_byte", "embedding_4bit")


@pytest.mark.parametrize("qconfig", WEIGHT_ONLY)
@pytest.mark.parametrize("kind", ["linear_weight_only", "embedding", "embedding_bag"])
def test_each_way_of_storing_weights(kind: str, qconfig: str) -> None:
    for number in range(3):
        found = grown(ROW_OF[kind], qconfig, number)
        if kind == "linear_weight_only" or "embedding" in qconfig:
            assert kind in {OPS[name].kernel for name in rows_in(found) if name}
        assert_same_integers(found, reference(found.debug), found.inputs)


@pytest.mark.parametrize("name", sorted(name for name, op in OPS.items() if op.kernel not in IN_FLOAT))
def test_only_scales_and_roundings_are_in_float(name: str) -> None:
    found = grown(OPS[name], qconfig_for(OPS[name]))
    form = reference(found.debug)
    allowed = {"div", "round", "add", "clamp", "nan_to_num", "to", "sub", "mul", "maximum", "minimum"}
    # What chooses ranges at run time, and what stays in float around the operator.
    run_time = {"flatten", "constant_pad_nd", "amin", "amax", "masked_fill", "rsub", "leaky_relu", "reshape", "relu"}
    names: set[str] = set()

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
                names.add(op_name(node).removeprefix("aten::"))
            return value

    Watch(form).run(*found.inputs)
    assert names <= allowed | (run_time if OPS[name].when is not When.STATIC else set())


@pytest.mark.parametrize("border", [name for name, *_ in boundary.OPERATORS])
def test_every_border_is_spelled(border: str) -> None:
    name, _, overload = border.partition(".")
    assert getattr(getattr(torch.ops.qlib, name), overload or "default") in BORDERS


def bordered(target: Any, *args: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A graph of one operator of the border, and its reference form."""
    draft = Draft()
    x = draft.input(4, 3)
    rest = [draft.constant(f"c{i}", a) if isinstance(a, Tensor) else a for i, a in enumerate(args)]
    node = draft.call(target, x, *rest)
    model = draft.done(node)
    return model, reference(model)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_a_quantize_does_what_the_library_does(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    model, form = bordered(torch.ops.qlib.quantize_per_tensor.default, 0.05, 3, info.min, info.max, dtype)
    numbers = [0.0, -0.0, 0.025, 0.075, -0.125, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 6.3, -6.4]
    x = torch.tensor(numbers).reshape(4, 3)
    assert_only_aten(form)
    assert torch.equal(form(x), model(x))


def test_a_quantize_per_channel_does_what_the_library_does() -> None:
    scale, zero_point = torch.tensor([0.1, 0.02, 1.0]), torch.tensor([3, 128, 0], dtype=torch.int32)
    target = torch.ops.qlib.quantize_per_channel.default
    model, form = bordered(target, scale, zero_point, 1, 0, 255, torch.uint8)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 5
    assert_only_aten(form)
    assert torch.equal(form(x), model(x))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_a_choice_at_run_time_does_what_the_library_does(dtype: torch.dtype, symmetric: bool) -> None:
    info = torch.iinfo(dtype)
    draft = Draft()
    choice = draft.call(torch.ops.qlib.choose_qparams.default, draft.input(4, 3), info.min, info.max, symmetric, dtype)
    model = draft.done(*(draft.call(operator.getitem, choice, i) for i in (0, 1)))
    form = reference(model)
    random = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    assert_only_aten(form)
    for x in (random, random.abs(), -random.abs() * 1e-3, random * 1e-30, random * 1e30, random * 0, random[:0]):
        for one, other in zip(form(x), model(x), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def call(target: Any, *args: Any, **modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Of(lambda self, x: target(self, x, *args), modules)


def both(self: Any, x: Tensor) -> Tensor:
    shared = self.one(x)
    return torch.cat([shared + self.two(x), shared * torch.sigmoid(shared), torch.relu(shared)], 1)


def pieces(self: Any, x: Tensor) -> Tensor:
    a, b, c = self.one(x).split([1, 2, 1], 1)
    y: Tensor = torch.stack([a, c], 1).flatten(1)
    return torch.cat([y, b.flatten(1)], 1)


def between(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.two(torch.cos(self.one(x)))
    return y


def block(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


IMAGE, SERIES, VOLUME, ROWS = (2, 4, 7, 6), (2, 4, 9), (2, 4, 5, 4, 6), (3, 6)
# What to quantize, and the shape of its input.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (block(nn.Linear(6, 5)), ROWS),
    "linear without a bias": (block(nn.Linear(6, 5, bias=False), nn.ReLU()), ROWS),
    "linear on three dimensions": (block(nn.Linear(6, 5), nn.Linear(5, 1)), (2, 3, 6)),
    "linear on one dimension": (block(nn.Linear(6, 5)), (6,)),
    "conv1d": (block(nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2)), SERIES),
    "conv2d": (block(nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), nn.ReLU()), IMAGE),
    "conv3d": (block(nn.Conv3d(4, 2, (1, 2, 3), padding=(0, 1, 1), bias=False)), VOLUME),
    "conv in groups": (block(nn.Conv2d(4, 6, 3, groups=2)), IMAGE),
    "depthwise conv": (block(nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="zeros")), IMAGE),
    "conv without a batch": (block(nn.Conv2d(4, 3, 3), nn.ReLU()), IMAGE[1:]),
    "conv padded to the same size": (block(nn.Conv2d(4, 3, 3, padding="same")), IMAGE),
    "conv, norm, relu": (block(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), IMAGE),
    "norm": (block(nn.BatchNorm1d(4)), SERIES),
    "norm of rows": (block(nn.BatchNorm1d(6), nn.ReLU()), ROWS),
    "norm of an image": (block(nn.BatchNorm2d(4)), IMAGE),
    "pools of a series": (
        block(nn.Conv1d(4, 4, 1), nn.MaxPool1d(3, 2, 1, 1), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(1)),
        SERIES,
    ),
    "pools of an image": (
        block(nn.Conv2d(4, 4, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
        IMAGE,
    ),
    "means without padding": (block(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)), IMAGE),
    "means by a divisor": (block(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2, divisor_override=3)), IMAGE),
    "pools of a volume": (block(nn.Conv3d(4, 2, 1), nn.MaxPool3d(2, dilation=2), nn.AdaptiveAvgPool3d(2)), VOLUME),
    "adaptive pools": (block(nn.Conv2d(4, 4, 1), nn.AdaptiveMaxPool2d((3, 4)), nn.AdaptiveAvgPool2d((2, 1))), IMAGE),
    "curves": (block(nn.Linear(6, 5), nn.GELU(), nn.SiLU(), nn.ELU(), nn.LeakyReLU(0.2), nn.Tanh()), ROWS),
    "bounds": (block(nn.Linear(6, 5), nn.ReLU6(), nn.Hardtanh(-0.3, 0.4), nn.Hardswish()), ROWS),
    "residual, gate, shared": (call(both, one=nn.Conv2d(4, 4, 3, padding=1), two=nn.Conv2d(4, 4, 1)), IMAGE),
    "pieces": (call(pieces, one=nn.Conv2d(4, 4, 3)), IMAGE),
    "float between": (call(between, one=nn.Linear(6, 5), two=nn.Linear(5, 5)), ROWS),
    "a number": (call(lambda self, x: torch.relu(self.one(x) * -1.5 + 0.25), one=nn.Linear(6, 5)), ROWS),
    "broadcast": (call(lambda self, x: self.one(x) + self.one(x)[:1], one=nn.Linear(6, 5)), ROWS),
    "twice the same": (call(lambda self, x: (y := self.one(x)) * y + y, one=nn.Linear(6, 5)), ROWS),
    "turned": (call(lambda self, x: self.one(x).permute(2, 0, 1).reshape(-1), one=nn.Conv1d(4, 3, 2)), SERIES),
    "padded": (block(nn.Conv2d(4, 3, 1), nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(3, 2, 2)), IMAGE),
}


def quantized(name: str, mode: str, qconfig: str, method: str = "trace") -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(11)
    make, shape = MODULES[name]
    inputs = (torch.randn(shape),)
    return quantize_model(make().eval(), inputs, (), mode, qconfig, method), inputs


@pytest.mark.parametrize("qconfig", ["default", "int8"])
@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module(name: str, qconfig: str) -> None:
    found, inputs = quantized(name, "static", qconfig)
    form = reference(found.debug)
    assert_only_aten(form)
    assert_same_integers(found, form, inputs)
    assert_same_integers(found, form, tuple(-2 * x for x in inputs))


@pytest.mark.parametrize("name", sorted(n for n in MODULES if "linear" in n or n in ("curves", "float between")))
def test_a_dynamic_module(name: str) -> None:
    found, inputs = quantized(name, "dynamic", "default")
    form = reference(found.debug)
    assert_only_aten(form)
    assert_same_integers(found, form, inputs)
    assert_same_integers(found, form, tuple(-2 * x for x in inputs))


def branching(self: Any, x: Tensor) -> Tensor:
    y = self.one(x)
    return torch.cond(y.sum() > 0, lambda v: torch.relu(self.two(v)), self.three, (y,))


def test_branches_are_spelled_out() -> None:
    torch.manual_seed(11)
    module = Of(branching, {"one": nn.Linear(6, 5), "two": nn.Linear(5, 5), "three": nn.Linear(5, 5)})
    x = torch.randn(3, 6)
    found = quantize_model(module.eval(), (x,), [(x,), (-x,)])
    form = reference(found.debug)
    graphs = [part.graph for part in form.modules() if isinstance(part, fx.GraphModule)]
    assert len(graphs) == 3
    assert not [node for graph in graphs for node in graph.nodes if str(node.target).startswith("qlib")]
    taken = {bool(module.one(y).sum() > 0) for y in (x, -x)}
    assert taken == {True, False}
    with implementation("reference"):
        for y in (x, -x):
            assert torch.equal(form(y), found.final(y))


def test_an_exported_module_gives_the_same_graph_as_a_traced_one() -> None:
    one, other = (quantized("residual, gate, shared", "static", "default", m)[0] for m in ("export", "trace"))
    assert targets(reference(one.debug)) == targets(reference(other.debug))


@pytest.mark.parametrize("name", ["conv2d", "conv, norm, relu", "norm of an image", "residual, gate, shared"])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_another_batch_size(name: str, batch: int) -> None:
    found, inputs = quantized(name, "static", "default")
    x = torch.randn(batch, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(2))
    with implementation("reference"):
        expected = found.final(x)
    assert torch.equal(reference(found.debug)(x), expected)


def test_the_debug_form_is_left_alone() -> None:
    found = made("conv", "default")
    before, state = targets(found.debug), set(found.debug.state_dict())
    expected = found.debug(*found.inputs)
    reference(found.debug)
    assert targets(found.debug) == before
    assert set(found.debug.state_dict()) == state
    assert torch.equal(found.debug(*found.inputs), expected)


@pytest.mark.parametrize("buffer", ["row.weight_int8", "row.bias_int32", "row.multiplier"])
def test_a_changed_constant_is_noticed(buffer: str) -> None:
    found = made("conv", "default")
    form = WAYS["deepcopy"](reference(found.debug), None)  # type: ignore[arg-type]
    constant = attribute(form, buffer)
    constant.flatten()[0] += {torch.int8: 30, torch.int32: 100_000}.get(constant.dtype, 1.0)
    (step,) = [step for step in replay(found.debug, form, found.inputs).steps if wrong(step)]
    assert step.operator == "aten.conv1d"


@pytest.mark.parametrize("way", sorted(WAYS))
def test_it_is_kept_as_any_form_is(way: str, tmp_path: Any) -> None:
    found = made("conv", "default")
    form = reference(found.debug)
    again = WAYS[way](form, tmp_path)
    assert torch.equal(again(*found.inputs), form(*found.inputs))
    assert_same_integers(found, again, found.inputs)


def test_it_can_be_exported() -> None:
    found, inputs = quantized("residual, gate, shared", "static", "default")
    form = reference(found.debug)
    program = torch.export.export(form, inputs)
    assert torch.equal(program.module()(*inputs), form(*inputs))


def test_every_selection_is_on_integers() -> None:
    assert set(SELECTIONS) == {op.chain[0] for op in OPS.values() if op.kernel == "monotone"}
