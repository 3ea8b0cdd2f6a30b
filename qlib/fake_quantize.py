"""Fake quantization: modules that let a model train on the values that its quantized form will have.

Each computes ``dequantize(quantize(x))`` as the converted model does, to the bit, and passes gradients straight
through. Ranges are watched in training only, so that a model in evaluation mode is the one that `convert` makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from qlib.arith import MIN_SCALE, qparams_from_range, qparams_of_rows, qparams_of_tensor, round_half_even
from qlib.errors import CalibrationError, QConfigError
from qlib.observers import Follower, observer_for, range_of
from qlib.qparams import ROW, QParams, QSpec
from qlib.straight_through import fake_quantize, fake_quantize_learned


class FakeQuantize(nn.Module):
    """Fake-quantizes by the range that the observer named in the QSpec has seen.

    `observer_enabled` and `fake_quant_enabled` say what a call does; `disable_observer` and its like set them. Raises
    CalibrationError where nothing was observed yet.
    """

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observer = observer_for(spec)
        self.observer_enabled = True
        self.fake_quant_enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` in training, and return the values that its integers stand for, or `x` if that is disabled."""
        self.observe(x)
        return self.fake_quantize(x)

    def observe(self, x: Tensor) -> None:
        """Take note of the range of `x`, in training and while enabled."""
        if self.training and self.observer_enabled:
            self.observer(x)

    def fake_quantize(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """`x` through integers and back while enabled; `scale` takes the place of the observed one."""
        if not self.fake_quant_enabled:
            return x
        params = self.qparams()
        return fake_quantize(x, params if scale is None else replace(params, scale=scale))

    def qparams(self) -> QParams:
        """What the observer says; raises CalibrationError where it was never called."""
        params: QParams = self.observer.qparams()  # type: ignore[operator]
        return params


class LearnableFakeQuantize(nn.Module):
    """Fake-quantizes by a scale and a zero point that are trained as parameters (LSQ, Esser et al. 2020).

    Both start at the range of the first data seen in training. A symmetric QSpec keeps its zero point. The zero point
    is used rounded and within ``[qmin, qmax]``, the scale no less than 2**-60; see `fake_quantize_learned` for the
    gradients. Raises QConfigError for a QSpec with groups or without positive integers.
    """

    started: Tensor

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        qmin, qmax = spec.range
        if spec.group_size is not None or qmax <= 0:
            raise QConfigError(
                f"expected a QSpec without groups and with qmax > 0 for a learnable scale, found group size "
                f"{spec.group_size} and qmax {qmax}: use the observer min_max"
            )
        self.spec = spec
        self.scale = nn.Parameter(torch.ones(()))
        zero_point = torch.full((), float((qmin + qmax + 1) // 2 if spec.symmetric else qmin))
        self.zero_point = nn.Parameter(zero_point, requires_grad=not spec.symmetric)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.observer_enabled = True
        self.fake_quant_enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Start at the range of `x` where there was none yet, and return the values that its integers stand for."""
        self.observe(x)
        return self.fake_quantize(x)

    def observe(self, x: Tensor) -> None:
        """Set scale and zero point from the range of the first `x`, in training and while enabled."""
        if not self.training or not self.observer_enabled or self.started or not x.numel():
            return
        params = qparams_from_range(*range_of(x.detach(), self.spec), self.spec)
        self.scale.data, self.zero_point.data = params.scale, params.zero_point.to(torch.float32)
        self.started.fill_(True)

    def fake_quantize(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """`x` through integers and back while enabled; `scale` takes the place of the trained one where it differs."""
        if not self.fake_quant_enabled:
            return x
        params = self.qparams()
        if scale is None:
            return fake_quantize_learned(x, self.scale, self.zero_point, params)
        trained = torch.where(scale == params.scale, self.scale, scale)
        return fake_quantize_learned(x, trained, self.zero_point, replace(params, scale=scale))

    def qparams(self) -> QParams:
        """The trained scale and zero point as they are used; raises CalibrationError where no data was seen."""
        if not self.started:
            raise CalibrationError("was never called in training: train the prepared model before converting it")
        qmin, qmax = self.spec.range
        scale = self.scale.detach().clamp(MIN_SCALE)
        zero_point = round_half_even(self.zero_point.detach()).clamp(qmin, qmax).to(torch.int32)
        return QParams(scale, zero_point, qmin, qmax, self.spec.dtype, self.spec.axis)


class RuntimeFakeQuantize(nn.Module):
    """Fake-quantizes each tensor, or each row of it, by the range that it has itself, as dynamic quantization does."""

    def __init__(self, spec: QSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observer_enabled = True
        self.fake_quant_enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """The values that the integers of `x` stand for, or `x` if that is disabled."""
        if not self.fake_quant_enabled:
            return x
        choose = qparams_of_rows if self.spec.group_size == ROW else qparams_of_tensor
        return fake_quantize(x, choose(x, self.spec))


class FakeQuantizeFollower(nn.Module):
    """Fake-quantizes a tensor by the parameters of another one, its leader's, which it shares; watches nothing."""

    def __init__(self, leader: FakeQuantize | LearnableFakeQuantize) -> None:
        super().__init__()
        self.leader = leader

    def forward(self, x: Tensor) -> Tensor:
        """`x` through integers and back, as its leader does while that is enabled."""
        return self.leader.fake_quantize(x)

    def qparams(self) -> QParams:
        """The leader's parameters."""
        return self.leader.qparams()


FAKE_QUANTIZES = (FakeQuantize, LearnableFakeQuantize, RuntimeFakeQuantize, FakeQuantizeFollower)

# The module for an observer's name, where it is not FakeQuantize with that observer.
_BY_OBSERVER: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"learnable": LearnableFakeQuantize, "runtime": RuntimeFakeQuantize}
)


def fake_quantize_for(spec: QSpec) -> nn.Module:
    """A fresh fake-quantize module for `spec`; raises QConfigError for an observer that does not exist."""
    return _BY_OBSERVER.get(spec.observer, FakeQuantize)(spec)


def follower_of(leader: nn.Module) -> nn.Module:
    """What stands at a tensor that shares its parameters with the one where `leader`, an observer or alike, stands."""
    if isinstance(leader, FakeQuantize | LearnableFakeQuantize):
        return FakeQuantizeFollower(leader)
    return Follower(leader)


_SWITCHED = (FakeQuantize, LearnableFakeQuantize, RuntimeFakeQuantize)


def enable_observer(module: nn.Module) -> None:
    """For ``model.apply``: ranges are watched in training again, after `disable_observer`."""
    if isinstance(module, _SWITCHED):
        module.observer_enabled = True


def disable_observer(module: nn.Module) -> None:
    """For ``model.apply``: ranges stay as they are. A learnable scale is a parameter and goes on being trained."""
    if isinstance(module, _SWITCHED):
        module.observer_enabled = False


def enable_fake_quant(module: nn.Module) -> None:
    """For ``model.apply``: values go through integers again, after `disable_fake_quant`."""
    if isinstance(module, _SWITCHED):
        module.fake_quant_enabled = True


def disable_fake_quant(module: nn.Module) -> None:
    """For ``model.apply``: values pass unchanged; ranges are still watched in training."""
    if isinstance(module, _SWITCHED):
        module.fake_quant_enabled = False
