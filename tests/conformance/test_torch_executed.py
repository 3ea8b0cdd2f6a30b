"""What torch ran, read off its profiler: names, integers, what dequantizes within, and the steps of outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conformance.backends.torch_executed import Call, calls, canonical, counts, native, program, sequence, steps
from conformance.backends.torch_names import in_float, on_integers, plain


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.05, 10, torch.quint8)


ROWS = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x.relu(), ("aten::relu",)),
        (lambda x: x.clone().relu_().view(-1), ("aten::relu", "aten::reshape")),
        (lambda x: nn.functional.linear(x, x), ("aten::linear",)),
        (lambda x: quantized(x).dequantize(), ("quantized::quantize_per_tensor", "quantized::dequantize_per_tensor")),
        (lambda x: quantized(x).relu(), ("quantized::quantize_per_tensor", "quantized::relu")),
        (lambda x: x.dequantize(), ()),
        (lambda x: torch.ops.quantized.add(quantized(x), 0.5), ("quantized::quantize_per_tensor", "quantized::add_scalar")),
        (
            lambda x: torch.ops.quantized.add_relu(quantized(x), quantized(x), 0.1, 0),
            ("quantized::quantize_per_tensor", "quantized::quantize_per_tensor", "quantized::add_relu"),
        ),
        (
            lambda x: nn.functional.hardtanh(quantized(x), 0.0, 6.0),
            ("quantized::quantize_per_tensor", "quantized::relu6"),
        ),
    ],
)  # fmt: skip
def test_canonical_names(call: Callable[[Tensor], object], expected: tuple[str, ...]) -> None:
    assert sequence(calls(call, [ROWS])) == expected


def test_what_dequantizes_within_is_not_on_integers() -> None:
    found = sequence(calls(lambda x: torch.ops.quantized.matmul(quantized(x), quantized(x.t()), 0.1, 0), [ROWS]))
    assert "quantized::matmul" not in found
    assert found[-4:] == (
        "quantized::dequantize_per_tensor",
        "quantized::dequantize_per_tensor",
        "aten::matmul",
        "quantized::quantize_per_tensor",
    )


def test_convolutions_go_by_their_weights() -> None:
    traced = Call("aten::_convolution", ("float", "float"), ((1, 3, 5, 5), (4, 3, 3, 3)), (None,) * 6 + (False,))
    assert canonical(traced) == ("aten::conv2d",)
    transposed = Call("aten::_convolution", ("float", "float"), ((1, 3, 5), (3, 4, 3)), (None,) * 6 + (True,))
    assert canonical(transposed) == ("aten::conv_transpose1d",)


def test_calls_of_modules_are_those_within() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    assert counts(scripted, [ROWS]) == {"aten::linear": 1, "aten::relu": 1}
    assert native(calls(scripted, [ROWS])) == ("aten::linear", "aten::relu")


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def twice(x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.exp(x)
        return x

    assert counts(twice, [ROWS]) == {"aten::exp": 2}


def test_steps_are_those_of_dequantized_outputs() -> None:
    def call(x: Tensor) -> list[object]:
        q = quantized(x)
        return [q.dequantize(), {"real": x * 2}, (q.relu().dequantize(), q.dequantize() + 1)]

    assert steps(call, [ROWS]) == (0.05, None, 0.05, None)


def test_what_is_written_to_has_no_step_any_more() -> None:
    def call(x: Tensor) -> tuple[Tensor, ...]:
        quantized = torch.quantize_per_tensor(x, 0.05, 10, torch.quint8)
        part, whole, target, kept = (quantized.dequantize() for _ in range(4))
        part[:1].add_(0.01)
        torch.add(x, 1, out=target)
        return part, torch.nn.functional.silu(whole, inplace=True), target, kept

    assert steps(call, [ROWS]) == (None, None, None, 0.05)


def test_inputs_are_left_alone() -> None:
    x = ROWS.clone()
    made = program(lambda y: y.mul_(2), [x], "text")
    assert torch.equal(x, ROWS)
    assert made.ops == ("aten::mul",) and made.quanta == (None,) and made.graph == "text"


def test_names() -> None:
    assert plain("aten::add_") == "add" and plain("aten::__and__") == "__and__"
    assert plain("quantized::mul_scalar_out") == "mul_scalar"
    assert in_float("aten::clip") == "aten::clamp" and in_float("mkldnn::x") == "unmapped:mkldnn::x"
    assert on_integers("quantized::batch_norm2d_relu") == "quantized::batch_norm_relu"
    assert on_integers("aten::cumsum") == "unmapped:aten::cumsum"
