"""Which scheme a dynamic linear layer quantizes its input by: told from one input and output, the weights unknown.

Whatever the weights, a layer that quantizes its input at run time computes

    y = xhat W' + b        xhat = scale (q - zero_point),  q = clamp(round(x / scale) + zero_point)

with some W and b, where scale and zero_point follow from the range of the whole of x or of each of its rows. So each
scheme makes an xhat of its own out of x, and least squares find the W and b that fit it best: what is left over is
float32's error for the scheme that was used, and a share of a quantization step, a thousand times more, for others.
A scheme has forms in the field that differ in the number of steps, in whether zero is part of the range, and in how
the zero point is rounded: it fits where one of its forms does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from conformance.compare import FLOAT32_ERROR
from conformance.identified import named

# As many rows as there are unknowns fit anything; so many more are what no wrong scheme fits by chance.
MARGIN = 8
# A number in steps, by float32: its roundings, each of half a unit in the last place.
QUOTIENT_ERROR = 4 * 2.0**-24
IN_FLOAT = "none"


@dataclass(frozen=True)
class Form:
    """One way in which a range becomes a scale: how many steps it has, and the integers that are kept.

    Symmetric forms count the steps from zero to the largest absolute value, asymmetric ones those of the whole range.
    `round_zero_point` is None for symmetric ones; it takes the exact zero point, counted from the least integer 0.
    """

    steps: float
    low: int
    high: int
    round_zero_point: Callable[[Tensor], Tensor] | None = None
    keeps_zero: bool = True


def _toward_zero(zero_point: Tensor) -> Tensor:
    """Truncation in a signed type, whose least integer is -128; in an unsigned one it is rounding down."""
    return torch.trunc(zero_point - 128) + 128


# 8 bits over the largest value that both signs have, over the middle, over the largest of the negative ones; 7; 16.
SYMMETRIC = tuple(
    Form(steps, low, high)
    for steps, low, high in (
        (127, -127, 127),
        (127.5, -128, 127),
        (127.5, -127, 127),
        (128, -128, 127),
        (63, -63, 63),
        (63.5, -64, 63),
        (32767, -32767, 32767),
        (32767.5, -32768, 32767),
    )
)
ASYMMETRIC = (
    *(Form(255, 0, 255, rounded) for rounded in (torch.round, torch.floor, _toward_zero)),
    Form(255, 0, 255, torch.round, keeps_zero=False),
    # 8 bits without the least integer, 7 bits, 16 bits.
    *(Form(steps, 0, steps, torch.round) for steps in (254, 127, 65535)),
)
FORMS = {"symmetric": SYMMETRIC, "asymmetric": ASYMMETRIC}
# The dimensions that share a range, of rows by features.
GRANULARITIES = {"per_tensor": (0, 1), "per_row": (1,)}
SCHEMES = (*(f"{shared}_{kind}" for shared, kind in product(GRANULARITIES, FORMS)), IN_FLOAT)


@dataclass(frozen=True)
class Scheme:
    """What input and output of a layer say of its scheme.

    `names` are the schemes that explain the output, in the order of `SCHEMES`: none where no scheme does, several where
    they make the same of this input, or where it has too few rows to exclude one.
    """

    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The scheme, or the few that fit; "undecided" where all do, "none of them" where none does."""
        return named(self.names, SCHEMES)


@dataclass(frozen=True)
class Seen:
    """What a scheme makes of an input, and by how much float32's error may have changed each number: a step or not."""

    values: Tensor
    doubt: Tensor


def decidable(x: Tensor) -> bool:
    """Whether an input, features last, has enough different rows to tell a scheme by; infinities and NaN tell none."""
    if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point() or not bool(x.isfinite().all()):
        return False
    rows = x.reshape(-1, x.shape[-1])
    return _enough(rows.unique(dim=0).shape[0], rows.shape[1])


def identify(x: Tensor, y: Tensor) -> Scheme:
    """The schemes that explain the output `y` (..., outputs) of one linear layer for the float input `x` (..., inputs).

    Nothing is decided where the rows of `x` are not at least `MARGIN` more than the unknowns of an output, one for
    each feature and a bias, or where the shapes are not those of a linear layer.
    """
    if not decidable(x) or y.shape[:-1] != x.shape[:-1] or y.numel() == 0:
        return Scheme(SCHEMES)
    if not bool(y.isfinite().all()):
        return Scheme(())
    rows = x.detach().reshape(-1, x.shape[-1]).double()
    given = y.detach().reshape(rows.shape[0], -1).double()
    numbers = rows.unique(dim=0, return_inverse=True)[1]
    return Scheme(tuple(name for name in SCHEMES if any(_explains(seen, numbers, given) for seen in _seen(rows, name))))


def _enough(different: int, features: int) -> bool:
    """Whether there are `MARGIN` more different rows than unknowns."""
    return different >= features + 1 + MARGIN


def _seen(rows: Tensor, name: str) -> Iterator[Seen]:
    """What each form of a scheme makes of an input."""
    if name == IN_FLOAT:
        yield Seen(rows, torch.zeros_like(rows))
        return
    shared, _, kind = name.rpartition("_")
    low, high = rows.amin(GRANULARITIES[shared], keepdim=True), rows.amax(GRANULARITIES[shared], keepdim=True)
    for form in FORMS[kind]:
        yield _stored(rows, low, high, form)


def _stored(rows: Tensor, low: Tensor, high: Tensor, form: Form) -> Seen:
    """``scale * (q - zero_point)``, and a step of doubt where float32's error leads to another integer.

    So many roundings are in the scale, its inverse, the product with x and the sum with the zero point.
    """
    if form.keeps_zero:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    spread = torch.maximum(-low, high) if form.round_zero_point is None else high - low
    scale = torch.where(spread == 0.0, 1.0, spread / form.steps)
    steps, start = rows / scale, -low / scale * (form.round_zero_point is not None)
    error, turn = QUOTIENT_ERROR * torch.maximum(steps.abs(), (steps + start).abs()), QUOTIENT_ERROR * start.abs()
    found = [_integers(steps + i * error, start + j * turn, form) for i, j in product((-1, 1), repeat=2)]
    doubt = torch.stack([(other - found[0]).abs() for other in found[1:]]).amax(0)
    return Seen(scale * found[0], scale * doubt)


def _integers(steps: Tensor, start: Tensor, form: Form) -> Tensor:
    """The integers less their zero point: the nearest ones, as far as the type reaches."""
    zero_point = torch.zeros_like(start) if form.round_zero_point is None else form.round_zero_point(start)
    return torch.minimum(torch.maximum(torch.round(steps), form.low - zero_point), form.high - zero_point)


def _explains(seen: Seen, numbers: Tensor, given: Tensor) -> bool:
    """Whether a linear layer makes `given` out of what a scheme saw, but for float32's error.

    Rows of the input that are the same have the same of the `numbers`.

    The error is bounded as in `conformance.compare`, by what the layer gives on absolute values, and by the largest
    output of the row, since the errors of all rows are in what was found. Rows with a number in
    doubt are left out. Where too few are left, all rows are taken, and the squares of what is left over may add up to
    those of a step more or less wherever there is doubt: the right scheme's least squares are never more.
    """
    sure = ~seen.doubt.any(1)
    if _enough(numbers[sure].unique().numel(), seen.values.shape[1]):
        left, bound, _ = _left_over(seen.values[sure], given[sure], seen.doubt[sure])
        return bool((left <= bound).all())
    left, bound, weight = _left_over(seen.values, given, seen.doubt)
    return bool(((left * weight).norm(dim=0) <= (bound * weight).norm(dim=0)).all())


def _left_over(values: Tensor, y: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the best layer's outputs differ by from `y`, how much they may, and the weight that its rows had."""
    columns = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], 1)
    # Each row counts by its own error, which follows its magnitude; each feature has unit size, whatever its unit.
    largest = y.abs().amax(1, keepdim=True)
    unit = largest.clamp(min=float(largest.amax()) * 2.0**-20 or 1.0)
    weight = 1.0 / unit
    size = (columns * weight).norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    # By singular values, since features may depend on each other: the default driver takes such columns for one.
    layer = torch.linalg.lstsq(columns * weight / size, y * weight, driver="gelsd").solution / size[:, None]
    bound = FLOAT32_ERROR * (columns.abs() @ layer.abs() + unit) + doubt @ layer[:-1].abs()
    return (y - columns @ layer).abs(), bound, weight
