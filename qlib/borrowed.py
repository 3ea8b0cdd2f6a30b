"""Reading what other libraries say of a tensor's quantization, by names and attributes: none of them is imported."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qlib.errors import QConfigError
from qlib.qparams import DType

# Our observer for each class of observer or fake-quantize module, by the class's name.
OBSERVER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "MinMaxObserver": "min_max",
        "PerChannelMinMaxObserver": "min_max",
        "MovingAverageMinMaxObserver": "moving_average_min_max",
        "MovingAveragePerChannelMinMaxObserver": "moving_average_min_max",
        "HistogramObserver": "histogram",
        "FixedQParamsObserver": "fixed",
        "FixedQParamsFakeQuantize": "fixed",
        "PlaceholderObserver": "runtime",
    }
)


def observer_name(constructor: Any) -> str:
    """Our name for what makes an observer: a class, or a partial call of one, however deeply it is wrapped.

    A fake-quantize class counts as the observer that it is given. Raises QConfigError for a class without counterpart.
    """
    keywords: dict[str, Any] = {}
    kind = constructor
    while not isinstance(kind, type):
        inner = getattr(kind, "p", None) or kind  # torch wraps a functools.partial once more
        keywords = {**getattr(inner, "keywords", {}), **keywords}
        kind = getattr(inner, "func", None)
        if kind is None:
            raise QConfigError(f"expected a class of observers or a partial call of one, found {constructor!r}")
    if "observer" in keywords and kind.__name__ not in OBSERVER_NAMES:
        return observer_name(keywords["observer"])
    if kind.__name__ in OBSERVER_NAMES:
        return OBSERVER_NAMES[kind.__name__]
    if "FakeQuantize" in kind.__name__:
        return "moving_average_min_max"
    raise QConfigError(
        f"no observer here is the counterpart of {kind.__name__!r}; expected one of {', '.join(OBSERVER_NAMES)}"
    )


def dtype_of(dtype: Any) -> DType:
    """Our name for a type of integers, plain or quantized (`torch.quint8` is uint8); raises QConfigError for others."""
    name = str(dtype).removeprefix("torch.")
    name = {"quint8": "uint8", "qint8": "int8", "qint32": "int32", "quint4x2": "uint4"}.get(name, name)
    if name not in set(DType):
        raise QConfigError(f"expected a type that is quantized to ({', '.join(DType)}), found {dtype}")
    return DType(name)


def is_symmetric(qscheme: Any) -> bool:
    """Whether a scheme, such as `torch.per_channel_symmetric`, has its zero point in the middle."""
    return "symmetric" in str(qscheme)


def is_per_channel(qscheme: Any) -> bool:
    """Whether a scheme, such as `torch.per_channel_affine`, has one scale for each channel."""
    return "per_channel" in str(qscheme)
