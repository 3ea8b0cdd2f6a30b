from __future__ import annotations

import copy

import pytest
import torch
from small_modules import Apply, Residual, image, pairs
from torch import Tensor, nn

import conformance
from conformance import check_graph_mode_op, checkGraphModeOp
from conformance.errors import UsageError
from qlib import PRESETS, DType, QConfig, QConfigMapping, QSpec

both_captures = pytest.mark.parametrize("tracing", [False, True])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
