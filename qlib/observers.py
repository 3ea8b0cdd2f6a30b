"""Observers: they watch a tensor during calibration and then say how it is to be quantized. One class, one observer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from qlib.arith import dequantize, qparams_from_range, quantize
from qlib.errors import CalibrationError, QConfigError
from qlib.qparams import QParams, QSpec


def _group_range(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each `size` elements of the last dimension; the last group may be shorter.

    What it lacks is filled up with zeros, which every range includes.
    """
    groups = torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    return groups.amin(-1), groups.amax(-1)


def range_of(x: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """Least and greatest value of the whole tensor, of each index along the spec's axis, or of each group."""
    axis = spec.axis
    if spec.group_size is not None:
        return _group_range(x, spec.group_size)
    if axis is None:
        return torch.aminmax(x)
    if not -x.dim() <= axis < x.dim():
        raise QConfigError(f"expected a tensor with an axis {axis} to quantize along, found {x.dim()} dimensions")
    others = [d for d in range(x.dim()) if d != axis % x.dim()]
    return (x.amin(others), x.amax(others)) if others else (x, x)


class MinMaxObserver(nn.Module):
    """The least and the greatest value of all the data seen; with `QSpec.axis` or `group_size` one range for each.

    Empty tensors are passed over; where nothing else was seen the range is {0}. Raises CalibrationError for data with
    infinity or NaN, when the parameters are asked for.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Take note of `x` and return it unchanged."""
        self.calls += 1
        if x.numel():
            low, high = range_of(x.detach().to(torch.float32), self.spec)
            self.low, self.high = (low, high) if self.batches == 0 else self.merge(low, high)
            self.batches += 1
        return x

    def merge(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range after one more batch with the range from `low` to `high`."""
        return torch.minimum(self.low, low), torch.maximum(self.high, high)

    def qparams(self) -> QParams:
        """The parameters for all that was seen; raises CalibrationError where forward was never called."""
        if self.calls == 0 and self.batches == 0:  # calls are not part of a state_dict
            raise CalibrationError("was never called: run the prepared model on calibration data before converting it")
        return qparams_from_range(self.low, self.high, self.spec)


class MovingAverageMinMaxObserver(MinMaxObserver):
    """As min_max, but the range moves by a hundredth of the way towards each further batch's."""

    RATE = 0.01

    def merge(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """``range += rate * (batch range - range)``."""
        return self.low + self.RATE * (low - self.low), self.high + self.RATE * (high - self.high)


class LearnableObserver(MinMaxObserver):
    """As min_max; in quantization-aware training scale and zero point are parameters instead, which start there."""


class HistogramObserver(nn.Module):
    """The range whose quantization error over the histogram of the data is least; values outside it saturate.

    Keeps 2048 bins; the range is widened, and the counts moved to the new bins, when data falls outside. The search
    halves its steps around the best of a grid of ranges, first for both ends together and then for each. Error: the
    sum over the bins of ``count * (x - dequantize(quantize(x)))**2``. Per-tensor only: raises QConfigError for a spec
    with an axis.
    """

    low: Tensor
    high: Tensor
    counts: Tensor

    BINS = 2048
    CANDIDATES = 64

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        if spec.axis is not None or spec.group_size is not None:
            raise QConfigError(
                "expected a QSpec without axis and groups for the histogram observer: use min_max per channel"
            )
        self.spec = spec
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("counts", torch.zeros(self.BINS, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Add `x` to the histogram and return it unchanged."""
        self.calls += 1
        data = x.detach().to(torch.float32).flatten()
        if data.numel():
            low, high = torch.aminmax(data)
            if not bool(torch.isfinite(self.high - self.low)):
                return x
            if not bool(torch.isfinite(high - low)):
                self.low, self.high = low, high
                return x
            if self.counts.sum() > 0:
                self._widen(torch.minimum(self.low, low), torch.maximum(self.high, high))
            else:
                self.low, self.high = low, high
            self.counts += torch.bincount(self._bin(data), minlength=self.BINS)
        return x

    def _bin(self, data: Tensor) -> Tensor:
        width = (self.high.double() - self.low.double()) / self.BINS
        if width == 0:
            return torch.zeros(data.shape, dtype=torch.int64)
        return ((data.double() - self.low.double()) / width).to(torch.int64).clamp(0, self.BINS - 1)

    def _centres(self) -> Tensor:
        steps = (torch.arange(self.BINS, dtype=torch.float64) + 0.5) / self.BINS
        return self.low.double() + steps * (self.high.double() - self.low.double())

    def _widen(self, low: Tensor, high: Tensor) -> None:
        if torch.equal(low, self.low) and torch.equal(high, self.high):
            return
        centres, counts = self._centres(), self.counts
        self.low, self.high = low, high
        self.counts = torch.bincount(self._bin(centres), weights=counts, minlength=self.BINS)

    def _best(self, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """The pair of candidate ends with the least error; all candidates are evaluated at once."""
        params = qparams_from_range(lows, highs, self.spec)
        rows = QParams(params.scale, params.zero_point, params.qmin, params.qmax, params.dtype, axis=0)
        centres = self._centres().expand(lows.numel(), -1)
        wrong = (centres - dequantize(quantize(centres, rows), rows, torch.float64)) ** 2
        best = int((wrong * self.counts).sum(1).argmin())
        return lows[best], highs[best]

    def qparams(self) -> QParams:
        """The parameters with the least error; raises CalibrationError where forward was never called."""
        if self.calls == 0:
            raise CalibrationError("was never called: run the prepared model on calibration data before converting it")
        if self.counts.sum() == 0 or not bool(torch.isfinite(self.high - self.low)):
            return qparams_from_range(self.low, self.high, self.spec)
        low, high = self.low.double().clamp(max=0.0), self.high.double().clamp(min=0.0)
        share = torch.arange(1, self.CANDIDATES + 1, dtype=torch.float64) / self.CANDIDATES
        best_low, best_high = self._best(low * share, high * share)
        best_low, best_high = self._best(low * share, best_high.expand_as(share))
        best_low, best_high = self._best(best_low.expand_as(share), high * share)
        return qparams_from_range(best_low, best_high, self.spec)


class FixedObserver(nn.Module):
    """Parameters that are known beforehand: those of the QSpec, whatever the data."""

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` unchanged."""
        return x

    def qparams(self) -> QParams:
        """The scale and the zero point of the QSpec, or those of each index along its axis."""
        qmin, qmax = self.spec.range
        scale = torch.tensor(self.spec.scale, dtype=torch.float32)
        zero_point = torch.tensor(self.spec.zero_point or 0, dtype=torch.int32).expand(scale.shape).contiguous()
        return QParams(scale, zero_point, qmin, qmax, self.spec.dtype, self.spec.axis if scale.dim() else None)


class RuntimeObserver(nn.Module):
    """Marks a tensor that is quantized by the range that it has at run time; sees and keeps nothing."""

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` unchanged."""
        return x


class Follower(nn.Module):
    """Stands at a tensor that shares its parameters with another: watches nothing and answers as its leader does."""

    def __init__(self, leader: nn.Module) -> None:
        super().__init__()
        self.leader = leader

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` unchanged."""
        return x

    def qparams(self) -> QParams:
        """The leader's parameters."""
        # torch types every submodule as perhaps a tensor.
        params: QParams = self.leader.qparams()  # type: ignore[operator]
        return params


OBSERVERS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {
        "min_max": MinMaxObserver,
        "moving_average_min_max": MovingAverageMinMaxObserver,
        "histogram": HistogramObserver,
        "learnable": LearnableObserver,
        "fixed": FixedObserver,
        "runtime": RuntimeObserver,
    }
)


def observer_for(spec: QSpec) -> nn.Module:
    """A fresh observer for `spec`; raises QConfigError for a name that is not in `OBSERVERS`."""
    if spec.observer not in OBSERVERS:
        raise QConfigError(f"no observer is named {spec.observer!r}; expected one of {', '.join(OBSERVERS)}")
    return OBSERVERS[spec.observer](spec)
