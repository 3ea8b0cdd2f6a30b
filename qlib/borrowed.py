"""Reading what other libraries say of a tensor's quantization, by names and attributes: none of them is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from qlib.errors import QConfigError
from qlib.qconfig import PRESETS, QConfig
from qlib.qparams import RANGES, DType, QSpec

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


# What our observers have of these attributes, by the attribute's name: one that has another value can't be read.
_FIXED_HERE: Mapping[str, float] = MappingProxyType({"averaging_constant": 0.01, "bins": 2048})
_IN_FLOAT = ("float32", "float")


def qconfig_of(qconfig: Any) -> QConfig | None:
    """Our QConfig for anything with an `activation` and a `weight` that make observers; ours and None as they are.

    Raises QConfigError, naming the attribute, for what has no counterpart here.
    """
    if qconfig is None or isinstance(qconfig, QConfig):
        return qconfig
    if isinstance(qconfig, str) and qconfig in PRESETS:
        return PRESETS[qconfig]
    make_activation, make_weight = getattr(qconfig, "activation", None), getattr(qconfig, "weight", None)
    if not callable(make_activation) or not callable(make_weight):
        raise QConfigError(
            "expected a QConfig, the name of a preset, or an object whose `activation` and `weight` make observers, "
            f"found {qconfig!r}; presets are {', '.join(PRESETS)}"
        )
    weight = _spec_made_by(make_weight)
    if weight is not None and weight.dtype is DType.FLOAT16:
        return PRESETS["fp16"]  # products of half-precision weights are taken in float, whatever the activation says
    activation = _spec_made_by(make_activation)
    if activation is not None and activation.axis is not None:
        raise QConfigError("expected an activation with one scale per tensor, found one scale per channel")
    return QConfig(activation, weight)


def _spec_made_by(maker: Callable[[], Any]) -> QSpec | None:
    made = maker()
    observer = getattr(made, "activation_post_process", made)  # inside a fake-quantize module
    if str(getattr(made, "dtype", None)).removeprefix("torch.") in _IN_FLOAT:
        return None
    name = observer_name(type(observer))
    for attribute, here in _FIXED_HERE.items():
        if getattr(observer, attribute, here) != here:
            raise QConfigError(
                f"expected {attribute}={here:g} of {type(observer).__name__}, which is what the observer {name!r} has, "
                f"found {getattr(observer, attribute)}"
            )
    dtype = dtype_of(made.dtype)
    if dtype is DType.FLOAT16:
        return PRESETS["fp16"].weight
    scheme = getattr(made, "qscheme", None)
    fixed = name == "fixed"
    return QSpec(
        dtype,
        *_range_of(made, observer, dtype),
        symmetric=is_symmetric(scheme),
        axis=int(getattr(made, "ch_axis", 0)) if is_per_channel(scheme) else None,
        observer="runtime" if getattr(made, "is_dynamic", False) else name,
        scale=float(observer.scale) if fixed else None,
        zero_point=int(observer.zero_point) if fixed else None,
    )


def _range_of(made: Any, observer: Any, dtype: DType) -> tuple[int, int]:
    """The range that is stated; else the type's, of which `reduce_range` leaves the lower 7 bits."""
    low, high = getattr(made, "quant_min", None), getattr(made, "quant_max", None)
    if low is not None and high is not None:
        return int(low), int(high)
    low, high = RANGES[dtype]
    return (low // 2, high // 2) if getattr(observer, "reduce_range", False) else (low, high)
