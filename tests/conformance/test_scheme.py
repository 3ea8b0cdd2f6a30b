"""The scheme by which a dynamic linear layer quantizes its input is told from its input and output alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conformance.scheme import MARGIN, SCHEMES, decidable, identify

# What a kernel makes of rows in float32: the numbers that its integers stand for.
Kernel = Callable[[Tensor], Tensor]


def symmetric(steps: float, least: int, highest: int, dims: tuple[int, ...]) -> Kernel:
    def run(x: Tensor) -> Tensor:
        scale = x.abs().amax(dims, keepdim=True) / steps
        return torch.round(x / scale).clamp(least, highest) * scale

    return run


def asymmetric(highest: int, dims: tuple[int, ...], rounded: Kernel = torch.round, least: int = 0) -> Kernel:
    def run(x: Tensor) -> Tensor:
        low, high = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
        scale = (high - low) / (highest - least)
        zero_point = rounded(least - low / scale)
        q = (torch.round(x * (1 / scale)) + zero_point).clamp(least, highest)
        return (q - zero_point) * scale

    return run


def range_of_the_data(x: Tensor) -> Tensor:
    low = x.amin(1, keepdim=True)
    scale = (x.amax(1, keepdim=True) - low) / 255
    zero_point = torch.round(-low / scale)
    return ((torch.round(x / scale) + zero_point).clamp(0, 255) - zero_point) * scale


TENSOR, ROW = (0, 1), (1,)
KERNELS: dict[str, dict[str, Kernel]] = {
    "per_tensor_symmetric": {
        "over 127": symmetric(127, -127, 127, TENSOR),
        "over the middle": symmetric(127.5, -128, 127, TENSOR),
        "7 bits": symmetric(63.5, -64, 63, TENSOR),
        "16 bits": symmetric(32767, -32767, 32767, TENSOR),
    },
    "per_tensor_asymmetric": {
        "unsigned": asymmetric(255, TENSOR),
        "signed": asymmetric(127, TENSOR, least=-128),
        "7 bits": asymmetric(127, TENSOR),
        "truncated zero point": asymmetric(255, TENSOR, torch.trunc),
    },
    "per_row_symmetric": {
        "over 127": symmetric(127, -127, 127, ROW),
        "over the middle": symmetric(127.5, -128, 127, ROW),
        "over 128": symmetric(128, -128, 127, ROW),
        "7 bits": symmetric(63, -63, 63, ROW),
    },
    "per_row_asymmetric": {
        "unsigned": asymmetric(255, ROW),
        "signed": asymmetric(127, ROW, least=-128),
        "zero not in the range": range_of_the_data,
        "without the least integer": asymmetric(127, ROW, least=-127),
        "7 bits": asymmetric(127, ROW),
        "truncated zero point": asymmetric(255, ROW, torch.trunc),
        "truncated signed zero point": asymmetric(127, ROW, torch.trunc, least=-128),
    },
    "none": {"float": lambda x: x},
}
EACH = [(name, form) for name, forms in KERNELS.items() for form in forms]


def data(seed: int, rows: int, features: int) -> Tensor:
    """More above zero than below, rows of very different magnitude."""
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, features, generator=source) * 1.7 - 0.7
    return x * 10 ** (torch.rand(rows, 1, generator=source) * 2 - 1)


def layer(seed: int, features: int, outputs: int, bias: float) -> Callable[[Tensor], Tensor]:
    """A layer with integer weights and a scale for each output, in float32 but for the sums."""
    source = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (outputs, features), generator=source)
    scale = torch.rand(outputs, generator=source) / 100 + 0.001
    shift = (torch.rand(outputs, generator=source) - 0.5) * bias
    return lambda x: (x.double() @ weight.double().T).float() * scale + shift


ANY = st.integers(0, 2**31)


@pytest.mark.parametrize(("name", "form"), EACH)
def test_each_form_of_each_scheme_is_told(name: str, form: str) -> None:
    x = data(1, 64, 12)
    assert identify(x, layer(2, 12, 8, 1.0)(KERNELS[name][form](x))).name == name


@settings(deadline=None)
@given(st.sampled_from(EACH), ANY, st.integers(2, 40), st.integers(1, 16), st.sampled_from([0.0, 1.0, 1e4]))
def test_whatever_the_layer_the_scheme_that_it_has_is_told(
    each: tuple[str, str], seed: int, features: int, outputs: int, bias: float
) -> None:
    x = data(seed, 2 * features + 40, features)
    y = layer(seed + 1, features, outputs, bias)(KERNELS[each[0]][each[1]](x))
    found = identify(x, y)
    assert each[0] in found.names
    # A bias a thousand times the rest leaves float32 no digits to tell by; with 16 bits many numbers lie by a tie.
    assert bias > 1.0 or features < 4 or each[1] == "16 bits" or found.name == each[0]


MUTATED: dict[str, Kernel] = {
    "bits cut off": lambda x: torch.trunc(x * 100 / x.abs().amax()) * x.abs().amax() / 100,
    "a scale of one's own": lambda x: torch.round(x * 37.0) / 37.0,
    "half of the range": lambda x: symmetric(127, -127, 127, TENSOR)(x).clamp(-x.abs().amax() / 2, x.abs().amax() / 2),
    "one range for each feature": symmetric(127, -127, 127, (0,)),
    "6 bits": symmetric(31, -31, 31, ROW),
    "half precision": lambda x: x.half().float(),
    "only the first row's range": lambda x: torch.round(x / (x[:1].abs().amax() / 127)) * (x[:1].abs().amax() / 127),
}


@pytest.mark.parametrize("how", MUTATED)
@pytest.mark.parametrize("seed", range(3))
def test_what_no_scheme_explains(how: str, seed: int) -> None:
    x = data(seed, 64, 12)
    found = identify(x, layer(seed, 12, 8, 1.0)(MUTATED[how](x)))
    assert found.names == () and found.name == "none of them"


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - {"none"}))
def test_a_single_output_that_is_a_step_off_is_explained_by_none(name: str) -> None:
    x = data(3, 64, 12)
    y = layer(4, 12, 8, 1.0)(next(iter(KERNELS[name].values()))(x))
    y[5, 3] += 1e-3 * float(y[5].abs().amax())
    assert identify(x, y).names == ()


def test_symmetric_data_does_not_tell_schemes_apart_that_make_the_same_of_it() -> None:
    x = data(1, 64, 12)
    x[0, 0], x[0, 1] = x.abs().amax() + 1, -x.abs().amax() - 1
    y = layer(2, 12, 8, 1.0)(symmetric(127.5, -128, 127, TENSOR)(x))
    assert identify(x, y).name == "per_tensor_symmetric or per_tensor_asymmetric"


def test_rows_with_the_same_range_do_not_tell_its_granularity() -> None:
    x = data(1, 64, 12).clamp(-0.5, 2.0)
    x[:, 0], x[:, 1] = -0.5, 2.0
    found = identify(x, layer(2, 12, 8, 1.0)(asymmetric(255, TENSOR)(x)))
    assert found.name == "per_tensor_asymmetric or per_row_asymmetric"


def test_numbers_that_every_scheme_holds_decide_nothing() -> None:
    x = torch.randint(0, 2, (64, 12), generator=torch.Generator().manual_seed(1)) * 127.5
    assert identify(x, layer(2, 12, 8, 1.0)(x)).name == "undecided"


def test_too_few_rows_decide_nothing() -> None:
    least = 12 + 1 + MARGIN
    x = data(1, least, 12)
    y = layer(2, 12, 8, 1.0)(KERNELS["per_row_symmetric"]["over 127"](x))
    assert decidable(x) and identify(x, y).name == "per_row_symmetric"
    assert not decidable(x[1:]) and identify(x[1:], y[1:]).name == "undecided"
    assert identify(x[1:].repeat(9, 1), y[1:].repeat(9, 1)).name == "undecided"


def test_leading_dimensions_are_rows() -> None:
    x = data(1, 64, 12)
    y = layer(2, 12, 8, 1.0)(KERNELS["per_row_asymmetric"]["signed"](x))
    assert identify(x.reshape(4, 16, 12), y.reshape(4, 16, 8)).name == "per_row_asymmetric"


def test_what_is_no_linear_layer_or_no_number() -> None:
    x = data(1, 64, 12)
    y = layer(2, 12, 8, 1.0)(x)
    assert identify(x, y[:32]).name == "undecided"
    assert identify(x / 0.0, y).name == "undecided"
    assert identify(x[:, :0], y).name == "undecided"
    assert identify(x, y / 0.0).name == "none of them"


def test_a_layer_that_ignores_its_input_decides_nothing() -> None:
    x = data(1, 64, 12)
    assert identify(x, torch.zeros(64, 8)).name == "undecided"
    assert identify(x, torch.full((64, 8), 3.0)).name == "undecided"
