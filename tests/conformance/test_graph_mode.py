from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_modules import Apply, Plain, Residual, image, pairs
from torch import Tensor, nn
from torch.nn import functional

from conformance import check_graph_mode_op, executed_ops

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
both_captures = pytest.mark.parametrize("tracing", [False, True])


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
        assert (
            counts["quantized::clamp"] == 2 and counts["quantized::hardtanh"] == 3 and counts["quantized::relu6"] == 3
        )
        assert counts["quantized::quantize_per_tensor"] == counts["quantized::dequantize_per_tensor"] == 1


@both_captures
def test_tuples_come_back_as_tuples(tracing: bool) -> None:
    module = Apply(lambda x, y: (x, (y.relu(), x + y)))
    x, y = pairs(1)[0]
    model = check_graph_mode_op(module, pairs(), "quantized::add", tracing=tracing)
    result, wanted = model(x, y), module(x, y)
    assert isinstance(result, tuple) and isinstance(result[1], tuple)
    assert [r.shape for r in (result[0], *result[1])] == [w.shape for w in (wanted[0], *wanted[1])]
