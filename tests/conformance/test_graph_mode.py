from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import conformance
from conformance import check_graph_mode_op, checkGraphModeOp, executed_ops
from conformance.errors import UsageError
from qlib import PRESETS, DType, QConfig, QConfigMapping, QSpec

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
both_captures = pytest.mark.parametrize("tracing", [False, True])


class Apply(nn.Module):
    """Two layers over one or two inputs, and a function of their results."""

    def __init__(self, function: Callable[..., object], layer: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        make = layer or (lambda: nn.Conv2d(2, 2, 3))
        self.first, self.second = make(), make()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.function(self.first(x), self.second(y))


class Plain(nn.Module):
    """A function of the inputs themselves, with no layer that would have them quantized."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


class Residual(nn.Module):
    """A layer with a function after it."""

    def __init__(self, layer: nn.Module, function: Callable[..., object]) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self.layer(x))


def image(dim: int = 2, batch: int = 2) -> Tensor:
    return torch.rand(batch, 2, *[8] * dim) * 2 - 1


def pairs(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(image(), image()) for _ in range(count)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# ---- layers


@both_captures
@pytest.mark.parametrize("relu", [None, nn.ReLU(), nn.ReLU(inplace=True)])
@pytest.mark.parametrize("dim", CONVS)
def test_convolutions(dim: int, relu: nn.Module | None, tracing: bool) -> None:
    module = nn.Sequential(CONVS[dim](2, 4, 3), *([relu] if relu else []))
    name = f"quantized::conv{dim}d{'_relu' if relu else ''}"
    model = check_graph_mode_op(module, [(image(dim),), (image(dim),)], name, tracing=tracing)
    assert executed_ops(model)[name] == 1
    assert not any(found.startswith("aten::") for found in executed_ops(model))


@both_captures
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_linear(relu: bool, dynamic: bool, tracing: bool) -> None:
    module = nn.Sequential(nn.Linear(30, 4), *([nn.ReLU()] if relu else []))
    inputs = torch.rand(5, 30) if dynamic else [(torch.rand(5, 30),), (torch.rand(3, 30),)]
    name = f"quantized::linear{'_relu' if relu else ''}{'_dynamic' if dynamic else ''}"
    model = check_graph_mode_op(module, inputs, name, tracing=tracing, dynamic=dynamic)
    assert executed_ops(model)[name] == 1


def test_dynamic_linear_takes_its_tensor_alone_or_in_a_call() -> None:
    x, module = torch.rand(5, 30), nn.Linear(30, 4)
    one = check_graph_mode_op(module, x, "quantized::linear_dynamic", dynamic=True)
    two = check_graph_mode_op(module, [(x,)], "quantized::linear_dynamic", dynamic=True)
    assert torch.equal(one(x), two(x))
    assert "quantized::quantize_per_tensor" not in executed_ops(one)


@both_captures
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dim", NORMS)
def test_batch_norms_that_do_not_fold(dim: int, relu: bool, tracing: bool) -> None:
    norm = NORMS[dim](2)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    module = nn.Sequential(norm, *([nn.ReLU()] if relu else []))
    name = f"quantized::batch_norm{dim}d{'_relu' if relu else ''}"
    model = check_graph_mode_op(module, [(image(dim),)], name, tracing=tracing)
    assert executed_ops(model)["quantized::batch_norm_relu" if relu else "quantized::batch_norm"] == 1


# ---- arithmetic

SUMS: dict[str, tuple[Callable[..., object], str]] = {
    "add": (lambda x, y: x + y, "quantized::add"),
    "add in place": (lambda x, y: x.add_(y), "quantized::add"),
    "add by operator": (torch.add, "quantized::add"),
    "add relu": (lambda x, y: functional.relu(x + y), "quantized::add_relu"),
    "add in place, relu in place": (lambda x, y: x.add_(y).relu_(), "quantized::add_relu"),
    "mul": (lambda x, y: x * y, "quantized::mul"),
    "mul in place": (lambda x, y: x.mul_(y), "quantized::mul"),
    "mul relu": (lambda x, y: torch.relu(x * y), "quantized::mul_relu"),
    "cat": (lambda x, y: torch.cat([x, y], 1), "quantized::cat"),
}


@both_captures
@pytest.mark.parametrize("name", SUMS)
def test_arithmetic_on_quantized_tensors(name: str, tracing: bool) -> None:
    function, wanted = SUMS[name]
    model = check_graph_mode_op(Apply(function), pairs(), wanted, tracing=tracing)
    assert executed_ops(model) == {
        "quantized::quantize_per_tensor": 2,
        "quantized::conv2d": 2,
        wanted: 1,
        "quantized::dequantize_per_tensor": 1,
    }


@both_captures
def test_a_sum_with_a_factor_is_no_plain_sum(tracing: bool) -> None:
    module = Apply(lambda x, y: torch.add(x, y, alpha=3))
    model = check_graph_mode_op(module, pairs(), None, tracing=tracing)
    x, y = pairs(1)[0]
    assert (model(x, y) - module(x, y)).abs().max() < 0.1


@both_captures
@pytest.mark.parametrize("operation", ["add", "add_", "mul", "mul_"])
@pytest.mark.parametrize("relu", [False, True])
def test_scalars(operation: str, relu: bool, tracing: bool) -> None:
    def function(x: Tensor) -> Tensor:
        y = getattr(x, operation)(3)
        return y.relu() if relu else y

    name = f"quantized::{operation.rstrip('_')}_scalar{'_relu' if relu else ''}"
    module = Residual(nn.Conv2d(2, 2, 3), function)
    check_graph_mode_op(module, [(image(),)], name, tracing=tracing, check=False)
    check_graph_mode_op(module, [(image(),)], {name: 1, "quantized::conv2d": 1}, tracing=tracing)


FLOAT: dict[str, tuple[Callable[..., object], int]] = {
    "aten::add": (lambda x, y: x + y, 2),
    "aten::add_": (lambda x, y: (x * 1.5).add_(y), 2),
    "aten::mul": (lambda x, y: x * y, 2),
    "aten::mul_": (lambda x, y: (x + 1.5).mul_(y), 2),
    "aten::cat": (lambda x, y: torch.cat([x, y]), 2),
    "aten::mul(": (lambda x: x * 3, 1),
    "aten::add(": (lambda x: x + 3, 1),
}


@both_captures
@pytest.mark.parametrize("name", FLOAT)
def test_what_stands_alone_stays_in_float(name: str, tracing: bool) -> None:
    function, count = FLOAT[name]
    module, call = Plain(function), tuple(image() for _ in range(count))
    model = check_graph_mode_op(module, [call], name, tracing=tracing)
    assert torch.equal(model(*call), module(*call))
    assert not any(found.startswith("quantized::") for found in executed_ops(model))


# ---- activations

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quantized::hardswish": functional.hardswish,
    "quantized::elu": functional.elu,
    "quantized::leaky_relu": functional.leaky_relu,
    "quantized::relu6": functional.relu6,
    "aten::sigmoid": torch.sigmoid,
    "aten::tanh": torch.tanh,
    "aten::clamp": lambda x: x.clamp(-0.5, 0.5),
    "aten::clamp_": lambda x: x.clamp_(-0.5, 0.5),
    "aten::hardtanh": functional.hardtanh,
    "aten::hardtanh_": lambda x: functional.hardtanh(x, -0.3, 0.3, inplace=True),
    "aten::max_pool2d": lambda x: functional.max_pool2d(x, 2),
    "aten::avg_pool2d(": lambda x: functional.avg_pool2d(x, 2),
    "aten::flatten": torch.flatten,
}


@both_captures
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_operators_on_one_quantized_tensor(name: str, tracing: bool) -> None:
    module = Residual(nn.Conv2d(2, 2, 3), ACTIVATIONS[name])
    model = check_graph_mode_op(module, [(image(),)], name, tracing=tracing)
    counts = executed_ops(model)
    assert counts["quantized::dequantize_per_tensor"] == 1 and sum(counts.values()) == 4
    assert not any(found.startswith("aten::") for found in counts)


@both_captures
def test_a_chain_of_clamps(tracing: bool) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3)
            self.relu6, self.relu6_, self.hardtanh = nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh()
            self.hardtanh_ = nn.Hardtanh(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu6_(self.relu6(self.conv(x)))
            x = functional.relu6(x)
            x = torch.clamp(x, -3, 3)
            x = x.clamp(-2.5, 2.5)
            return functional.hardtanh(self.hardtanh_(self.hardtanh(x)))

    for name in ("aten::clamp", "aten::hardtanh", "aten::hardtanh_"):
        model = check_graph_mode_op(Chain(), [(image(),)], name, tracing=tracing)
        counts = executed_ops(model)
        assert counts["quantized::clamp"] == 2 and counts["quantized::hardtanh"] == 3 and counts["quantized::relu6"] == 3
        assert counts["quantized::quantize_per_tensor"] == counts["quantized::dequantize_per_tensor"] == 1


@both_captures
def test_tuples_come_back_as_tuples(tracing: bool) -> None:
    module = Apply(lambda x, y: (x, (y.relu(), x + y)))
    x, y = pairs(1)[0]
    model = check_graph_mode_op(module, pairs(), "quantized::add", tracing=tracing)
    result, wanted = model(x, y), module(x, y)
    assert isinstance(result, tuple) and isinstance(result[1], tuple)
    assert [r.shape for r in (result[0], *result[1])] == [w.shape for w in (wanted[0], *wanted[1])]


# ---- arguments


def test_calls_may_be_lists_and_the_first_is_the_example() -> None:
    x, y = image(), image() * 3
    module = nn.Conv2d(2, 2, 3)
    lists = check_graph_mode_op(module, [[x], [y]], "quantized::conv2d")
    tuples = check_graph_mode_op(module, [(x,), (y,)], "quantized::conv2d", check=False)
    assert torch.equal(lists(x), tuples(x))
    narrow = check_graph_mode_op(module, [[x]], "quantized::conv2d")
    assert not torch.equal(lists(x), narrow(x)), "further calls are calibration data"


def test_exact_counts() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.ReLU())
    check_graph_mode_op(module, [(image(),)], {"quantized::conv2d": 1, "quantized::conv2d_relu": 1, "aten::conv2d": 0})
    with pytest.raises(AssertionError, match=r"ops: expected .*conv2d.*: 2.*; got .*quantized::conv2d': 1"):
        check_graph_mode_op(module, [(image(),)], {"quantized::conv2d": 2})


def test_no_operator_asked_for() -> None:
    check_graph_mode_op(nn.Conv2d(2, 2, 3), [(image(),)], None)


def test_a_longer_name_does_not_stand_for_a_shorter_one() -> None:
    with pytest.raises(AssertionError) as caught:
        check_graph_mode_op(Apply(lambda x, y: torch.relu(x + y)), pairs(), "quantized::add")
    assert str(caught.value).startswith("ops: expected quantized::add: 1 or more; got {'quantized::add_relu': 1, ")
    assert "\n" not in str(caught.value), "only what failed is told"


def test_a_misspelt_operator_is_no_failure_of_the_model() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'quantized::conv2d_relu'\?"):
        check_graph_mode_op(nn.Conv2d(2, 2, 3), [(image(),)], "quantized::conv2d_rleu")


@pytest.mark.parametrize("dynamic", [False, True])
def test_without_check_nothing_is_compared(dynamic: bool) -> None:
    x = torch.rand(5, 30)
    model = check_graph_mode_op(nn.Linear(30, 4), [(x,)], "quantized::conv2d", check=False, dynamic=dynamic)
    assert model(x).shape == (5, 4)


@both_captures
def test_debug_prints_the_module_and_its_graphs(tracing: bool, capsys: pytest.CaptureFixture[str]) -> None:
    check_graph_mode_op(nn.Conv2d(2, 2, 3), [(image(),)], "quantized::conv2d", tracing=tracing, debug=True)
    said = capsys.readouterr().out
    places = [said.index(text) for text in ("module:\nConv2d(2, 2", "float graph:", "debug graph:", "final graph:")]
    assert places == sorted(places)
    assert "qlib.conv2d" in said[places[-1] :] and "aten.conv2d" in said[places[1] : places[2]]
    check_graph_mode_op(nn.Conv2d(2, 2, 3), [(image(),)], "quantized::conv2d", tracing=tracing)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("inputs", [[], ()])
def test_no_data_at_all(inputs: object) -> None:
    with pytest.raises(UsageError, match="inputs: expected one call or more, found none"):
        check_graph_mode_op(nn.Linear(30, 4), inputs, None)


def test_the_names_of_the_package() -> None:
    assert checkGraphModeOp is check_graph_mode_op is conformance.check_graph_mode_op
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = conformance.nonsense


# ---- nothing of the caller's is changed


@both_captures
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_module_is_left_as_it_was(tracing: bool, dynamic: bool, training: bool) -> None:
    module = nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 4))
    module.train(training)
    state = copy.deepcopy(module.state_dict())
    parts = {name: (id(part), part.training) for name, part in module.named_modules()}
    hooks = [len(part._forward_hooks) for part in module.modules()]
    check_graph_mode_op(module, [(torch.rand(5, 30),)], None, tracing=tracing, dynamic=dynamic)
    assert {name: (id(part), part.training) for name, part in module.named_modules()} == parts
    assert [len(part._forward_hooks) for part in module.modules()] == hooks
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@both_captures
@pytest.mark.parametrize("change", ["mul_", "relu_", "zero_"])
def test_data_is_left_as_it_was_even_by_modules_that_change_it(tracing: bool, change: str) -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(30, 4)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2).add_(1) if change == "mul_" else getattr(x, change)()
            return self.fc(x)

    calls = [(torch.rand(5, 30) * 2 - 1,), (torch.rand(5, 30) * 2 - 1,)]
    before = copy.deepcopy(calls)
    model = check_graph_mode_op(Changes(), calls, "quantized::linear", tracing=tracing)
    assert all(torch.equal(x, y) for (x,), (y,) in zip(calls, before, strict=True))
    x, y = calls[0][0].clone(), calls[0][0].clone()
    model(x)
    Changes()(y)
    assert torch.equal(x, y), "the quantized model changes its input as the module does"


@both_captures
def test_modules_that_work_in_place_are_compared_with_what_they_were(tracing: bool) -> None:
    module = Residual(nn.Linear(30, 4), lambda y: y.mul_(2).relu_())
    x = torch.rand(5, 30)
    model = check_graph_mode_op(module, [(x,)], "quantized::linear", tracing=tracing)
    assert (model(x) - module(x)).abs().max() < 0.1


def test_the_random_state_is_left_as_it_was() -> None:
    inputs = [(image(),)]
    state = torch.random.get_rng_state()
    check_graph_mode_op(nn.Identity(), inputs, None, check=False)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- qconfig

# Every output is 0 at this scale.
COARSE = QConfig(QSpec(DType.UINT8, observer="fixed", scale=1000.0, zero_point=0), QSpec(DType.INT8, symmetric=True))


@both_captures
@pytest.mark.parametrize("qconfig", ["per_tensor", PRESETS["per_tensor"], QConfigMapping(PRESETS["per_tensor"])])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_qconfig_is_honoured_in_every_form_and_mode(qconfig: object, dynamic: bool, tracing: bool) -> None:
    linear = nn.Linear(30, 4)
    with torch.no_grad():
        linear.weight[0] *= 100.0  # so that one scale for all channels shows
    x = torch.rand(5, 30)
    name = f"quantized::linear{'_dynamic' if dynamic else ''}"
    chosen = check_graph_mode_op(linear, [(x,)], name, tracing, check=False, dynamic=dynamic, qconfig=qconfig)
    default = check_graph_mode_op(linear, [(x,)], name, tracing, check=False, dynamic=dynamic)
    with torch.no_grad():
        error = [float((model(x) - linear(x))[:, 1:].abs().max()) for model in (chosen, default)]
    if dynamic:
        assert error[0] > 10 * error[1]
    else:
        assert not torch.equal(chosen(x), default(x))


def test_rules_by_path_leave_a_layer_in_float() -> None:
    module = nn.Sequential(nn.Linear(30, 8), nn.Linear(8, 4))
    mapping = QConfigMapping(PRESETS["default"], {"1": None})
    check_graph_mode_op(module, [(torch.rand(5, 30),)], {"quantized::linear": 1, "aten::linear": 1}, qconfig=mapping)


@both_captures
def test_a_scale_that_makes_every_output_zero_fails(tracing: bool) -> None:
    inputs = [(torch.rand(5, 30),)]
    with pytest.raises(AssertionError, match=r"accuracy: expected sqnr_db >= 15; got sqnr -?0 dB"):
        check_graph_mode_op(nn.Linear(30, 4), inputs, "quantized::linear", tracing, qconfig=COARSE)
    model = check_graph_mode_op(nn.Linear(30, 4), inputs, "quantized::linear", tracing, check=False, qconfig=COARSE)
    assert not model(*inputs[0]).any()


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(Exception, match="no preset is named 'per_tenser'"):
        check_graph_mode_op(nn.Linear(30, 4), [(torch.rand(5, 30),)], None, qconfig="per_tenser")


# ---- findings


def test_every_finding_that_failed_is_told_on_a_line_of_its_own() -> None:
    with pytest.raises(AssertionError) as caught:
        check_graph_mode_op(nn.Linear(30, 4), [(torch.rand(5, 30),)], "quantized::conv2d", qconfig=COARSE)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["accuracy", "ops"]
    assert all("expected" in line and "; got " in line for line in lines)


@both_captures
def test_a_module_with_a_state_of_its_own_is_not_repeatable(tracing: bool) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(30, 4)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.fc(x) + self.calls

    module = Counts()
    with pytest.raises(AssertionError, match="repeatable: expected equal outputs from a second call; got off by 1"):
        check_graph_mode_op(module, [(torch.rand(5, 30),)], None, tracing=tracing)
    assert float(module.calls) == 0
