"""A model's tensors in numbers: how each form has them, against the float model and against each other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from conformance.backend import LayerValues
from conformance.compare import FLOAT32_ERROR, Rounding, sqnr_db, tally
from conformance.record import Layer


def measure_layer(values: LayerValues, roundings: Sequence[Rounding] = ()) -> Layer:
    """The numbers of one tensor; `roundings` are those of it in the final and the debug form, where they are known."""
    judged = tally(roundings) if roundings else None
    single = values.scale is not None and values.scale.numel() == 1
    final = None if values.final is None else _short(sqnr_db([values.real], [values.final]))
    return Layer(
        name=values.name,
        tensor=values.tensor,
        operator=values.operator,
        module=values.module_path,
        source=values.source,
        group=values.group,
        made_of=values.made_of,
        low=_short(float(values.real.min())),
        high=_short(float(values.real.max())),
        scale=_short(float(values.scale)) if single and values.scale is not None else None,
        zero_point=int(values.zero_point) if single and values.zero_point is not None else None,
        qmin=values.qmin,
        qmax=values.qmax,
        saturated=_saturated(values),
        sqnr_debug_db=_short(sqnr_db([values.real], [values.debug])),
        sqnr_final_db=final,
        elements=values.real.numel(),
        differing=_differing(values, roundings),
        tie=None if judged is None else judged.tie,
        wrong=None if judged is None else judged.wrong,
    )


def _short(value: float) -> float:
    """Six significant digits are what a person can read and more than these numbers are good for."""
    return float(f"{value:.6g}")


def _saturated(values: LayerValues) -> int | None:
    """How many elements have their nearest step outside of ``[qmin, qmax]``; those just at its ends are not counted."""
    x, scale, zero_point = values.unrounded, values.scale, values.zero_point
    if x is None or scale is None or zero_point is None or values.qmin is None or values.qmax is None:
        return None
    steps = x.double() / scale.double() + zero_point
    outside = (steps < values.qmin - 0.5) | (steps > values.qmax + 0.5)
    return int(outside.sum())


def _differing(values: LayerValues, roundings: Sequence[Rounding]) -> int | None:
    if values.final is None:
        return None
    distance = (values.debug.double() - values.final.double()).abs()
    return int((distance > _float32_error(values, roundings)).sum())


def _float32_error(values: LayerValues, roundings: Sequence[Rounding]) -> Tensor | float:
    """How far apart two forms may compute the same float number; integers are the same or are not."""
    if values.scale is not None or not roundings or roundings[0].magnitude.shape != values.debug.shape:
        return 0.0
    return 2.0 * FLOAT32_ERROR * roundings[0].magnitude
