"""Recurrent layers: the recurrence against torch's own, the kernel against the steps that the debug form spells out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from captures import Of
from graphs import names
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qlib.graph import op_name
from qlib.kernels import Implementation, implementation
from qlib.kernels.recurrence import STEPS, Geometry, recurrence
from qlib.oracle import replay
from qlib.passes.lower import lower
from qlib.quantize import Quantized, quantize_model

BOTH = list(Implementation)
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "aten::lstm": nn.LSTM,
    "aten::gru": nn.GRU,
    "aten::rnn_tanh": nn.RNN,
    "aten::rnn_relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def test_every_row_has_a_step() -> None:
    assert set(STEPS) == set(LAYERS)


@dataclass(frozen=True)
class InFloat:
    """A recurrence without any quantization."""

    layer: nn.RNNBase

    def call(self, target: Callable[..., Any], *args: Any) -> Any:
        return target(*args)

    def enter(self, x: Tensor) -> Tensor:
        return x

    def product(self, entered: Tensor, layer: int, matrix: int) -> Tensor:
        own = dict(zip(self.layer._all_weights[layer], self.layer.all_weights[layer], strict=True))
        weight = next(w for name, w in own.items() if name.startswith(("weight_ih", "weight_hh", "weight_hr")[matrix]))
        bias = [b for name, b in own.items() if name.startswith(("bias_ih", "bias_hh", "none")[matrix])]
        return nn.functional.linear(entered, weight, *bias)


OPTIONS = st.fixed_dictionaries(
    {"num_layers": st.integers(1, 3), "bias": st.booleans(), "bidirectional": st.booleans()}
)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("projection", [0, 3])
@given(options=OPTIONS, steps=st.integers(1, 5), batch=st.integers(0, 3))
@settings(max_examples=15)
def test_the_recurrence_is_that_of_torch(
    name: str, projection: int, options: dict[str, Any], steps: int, batch: int
) -> None:
    if projection and name != "aten::lstm":
        return
    torch.manual_seed(5)
    extra = {"proj_size": projection} if projection else {}
    layer = LAYERS[name](4, 5, **options, **extra).double()
    ways = options["num_layers"] * (1 + options["bidirectional"])
    sizes = [projection or 5, 5] if name == "aten::lstm" else [5]
    states = [torch.randn(ways, batch, size, dtype=torch.float64) for size in sizes]
    x = torch.randn(steps, batch, 4, dtype=torch.float64)
    geometry = Geometry(steps, options["num_layers"], 1 + options["bidirectional"], 3 if projection else 2)
    with torch.no_grad():
        y, last = layer(x, tuple(states) if len(states) > 1 else states[0])
        found, ends = recurrence(InFloat(layer), STEPS[name], x, states, geometry)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(ends, last if isinstance(last, tuple) else (last,))


def quantized(name: str, x: Tensor, qconfig: str = "default", **options: Any) -> Quantized:
    torch.manual_seed(3)
    layer = LAYERS[name](x.shape[-1], 5, **options)
    module = Of(lambda s, x: torch.utils._pytree.tree_leaves(s.rnn(x)), {"rnn": layer}).eval()
    return quantize_model(module, (x,), mode="dynamic", qconfig=qconfig)


def flawed(found: Quantized, x: Tensor) -> int:
    """How many values of the final form differ from the debug form's by more than float32 can excuse."""
    steps = replay(found.debug, found.final, (x,)).steps
    assert len(steps) == len(found.final(x))
    return sum(int(((s.given - s.real).abs() > 2.0**-24 * (s.magnitude + 2.0**-120)).sum()) for s in steps)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("name", LAYERS)
@given(options=OPTIONS, first=st.booleans(), steps=st.integers(1, 6), scale=st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=6, deadline=None)
def test_the_kernel_takes_the_steps_of_the_debug_form(
    kernels: str, name: str, options: dict[str, Any], first: bool, steps: int, scale: float
) -> None:
    x = torch.randn(steps, 2, 4, generator=torch.Generator().manual_seed(steps)) * scale
    found = quantized(name, x, batch_first=first, **options)
    with implementation(kernels):
        assert flawed(found, x) == 0


@pytest.mark.parametrize("qconfig", ["per_tensor", "int8", "symmetric", "asymmetric_weight", "int16", "int4_weight"])
def test_types_and_scales_come_from_the_qconfig(qconfig: str) -> None:
    x = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1))
    for name in ("aten::lstm", "aten::gru"):
        assert flawed(quantized(name, x, qconfig), x) == 0


def test_the_debug_form_quantizes_every_hidden_state() -> None:
    x = torch.randn(3, 2, 4)
    found = quantized("aten::lstm", x, num_layers=2)
    (call,) = found.debug.graph.find_nodes(op="call_module")
    assert op_name(call) == "aten::lstm"
    inner = found.debug.get_submodule(str(call.target))
    assert isinstance(inner, torch.fx.GraphModule)
    # Six hidden states, and the outputs of the first layer; the input was quantized outside.
    assert names(inner).count("choose_qparams") == 6 + 1
    assert names(inner).count("linear") == 6 + 2
    assert "lstm_dynamic" in names(found.final)
    assert not found.final.graph.find_nodes(op="call_module")


def test_a_saved_debug_form_lowers_as_the_one_it_was() -> None:
    x = torch.randn(3, 2, 4)
    found = quantized("aten::gru", x)
    loaded = pickle.loads(pickle.dumps(found.debug))
    torch.testing.assert_close(loaded(x), found.debug(x), rtol=0, atol=0)
    torch.testing.assert_close(lower(loaded)(x), found.final(x), rtol=0, atol=0)


def test_weights_that_are_computed_stay_in_float() -> None:
    torch.manual_seed(3)

    def run(s: Any, x: Tensor) -> Tensor:
        weights = [weight * 2 for weight in s.rnn.all_weights[0]]
        first = torch.zeros(1, x.shape[1], 5)
        y: Tensor = torch.gru(x, first, weights, True, 1, 0.0, False, False, False)[0]
        return y

    x = torch.randn(3, 2, 4)
    found = quantize_model(Of(run, {"rnn": nn.GRU(4, 5)}).eval(), (x,), mode="dynamic")
    assert "gru" in names(found.final)
    assert "gru_dynamic" not in names(found.final)
