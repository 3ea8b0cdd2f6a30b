"""Which quantization each module gets: presets by name, and rules by module path and module type. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from qlib.qparams import ROW, DType, QSpec

RUNTIME = "runtime"

_PER_CHANNEL = QSpec(DType.INT8, symmetric=True, axis=0)
_PER_TENSOR = QSpec(DType.INT8, symmetric=True)
_UINT8 = QSpec(DType.UINT8)
_INT8 = QSpec(DType.INT8)


@dataclass(frozen=True)
class QConfig:
    """How one module's tensors are quantized.

    Without an activation only weights are stored in few bits, and all else stays in float.
    `activation` describes its inputs, `weight` its weights, `output` its results. A missing `output` is the same as
    `activation`, unless the activation is quantized at run time: then results stay in float.
    """

    activation: QSpec | None = _UINT8
    weight: QSpec | None = _PER_CHANNEL
    output: QSpec | None = None

    @property
    def result(self) -> QSpec | None:
        """The description of the module's results, None where they stay in float."""
        if self.output is not None or self.activation is None:
            return self.output
        return None if self.activation.observer == RUNTIME else self.activation


PRESETS: Mapping[str, QConfig] = MappingProxyType(
    {
        "default": QConfig(_UINT8, _PER_CHANNEL),
        "per_tensor": QConfig(_UINT8, _PER_TENSOR),
        "histogram": QConfig(replace(_UINT8, observer="histogram"), _PER_CHANNEL),
        "moving_average": QConfig(replace(_UINT8, observer="moving_average_min_max"), _PER_CHANNEL),
        "qat": QConfig(
            replace(_UINT8, observer="moving_average_min_max"),
            replace(_PER_CHANNEL, observer="moving_average_min_max"),
        ),
        "qat_learnable": QConfig(replace(_UINT8, observer="learnable"), replace(_PER_CHANNEL, observer="learnable")),
        "int8": QConfig(_INT8, _PER_CHANNEL),
        "symmetric": QConfig(QSpec(DType.INT8, symmetric=True), _PER_CHANNEL),
        "asymmetric_weight": QConfig(_UINT8, QSpec(DType.UINT8, axis=0)),
        "reduced_range": QConfig(QSpec(DType.UINT8, qmin=0, qmax=127), _PER_CHANNEL),
        "int4_weight": QConfig(_UINT8, QSpec(DType.INT4, symmetric=True, axis=0)),
        "int16": QConfig(QSpec(DType.INT16, symmetric=True), _PER_CHANNEL),
        "per_token": QConfig(QSpec(DType.UINT8, group_size=ROW, observer=RUNTIME), _PER_CHANNEL),
        "per_token_symmetric": QConfig(
            QSpec(DType.INT8, symmetric=True, group_size=ROW, observer=RUNTIME), _PER_CHANNEL
        ),
        "weight_only_int8": QConfig(None, _PER_CHANNEL),
        "weight_only_int4": QConfig(None, QSpec(DType.INT4, symmetric=True, group_size=32)),
        "embedding_byte": QConfig(None, QSpec(DType.UINT8, axis=0)),
        "embedding_4bit": QConfig(None, QSpec(DType.UINT4, axis=0)),
        "fp16": QConfig(None, QSpec(DType.FLOAT16, observer="fixed", scale=1.0)),
    }
)


def at_run_time(qconfig: QConfig) -> QConfig:
    """The dynamic form of a QConfig: activations quantized by their range at run time, results left in float."""
    if qconfig.activation is None:
        return qconfig
    return replace(qconfig, activation=replace(qconfig.activation, observer=RUNTIME), output=None)


@dataclass(frozen=True)
class QConfigMapping:
    """QConfigs for a whole model: by module path (the longest prefix wins), else by module type, else `default`.

    A value of None leaves the module in float. Paths are dotted (`"encoder.fc"`), types are written `"nn.Linear"`.
    """

    default: QConfig | None = None
    modules: Mapping[str, QConfig | None] = field(default_factory=dict)
    types: Mapping[str, QConfig | None] = field(default_factory=dict)

    def resolve(self, path: str, module_type: str) -> QConfig | None:
        """The QConfig of the module at `path` with the type `module_type`."""
        rule = self.path_rule(path)
        if rule is not None:
            return self.modules[rule]
        return self.types.get(module_type, self.default)

    def path_rule(self, path: str) -> str | None:
        """The longest key of `modules` that is `path` or one of its parents, None where there is none."""
        parts = path.split(".") if path else []
        prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in self.modules), None)

    def unused(self, modules: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """The rules that no module of ``(path, type)`` falls under, in the order in which they were written."""
        seen = list(modules)
        paths = {self.path_rule(path) for path, _ in seen}
        types = {kind for path, kind in seen if self.path_rule(path) is None}
        return tuple(
            [f"modules: {path}" for path in self.modules if path not in paths]
            + [f"types: {kind}" for kind in self.types if kind not in types]
        )


def as_mapping(qconfig: QConfigMapping | QConfig | str | None) -> QConfigMapping:
    """Accept what users write: a mapping as it is, one QConfig or preset name for the whole model.

    Raises KeyError, naming the valid presets, for a name that does not exist.
    """
    if isinstance(qconfig, QConfigMapping):
        return qconfig
    if isinstance(qconfig, str):
        if qconfig not in PRESETS:
            raise KeyError(f"no preset is named {qconfig!r}; expected one of {', '.join(PRESETS)}")
        qconfig = PRESETS[qconfig]
    return QConfigMapping(default=qconfig)


def transform(mapping: QConfigMapping, change: Callable[[QConfig], QConfig]) -> QConfigMapping:
    """The mapping with `change` applied to every QConfig in it, the ones that are None left alone."""

    def apply(qconfig: QConfig | None) -> QConfig | None:
        return None if qconfig is None else change(qconfig)

    return QConfigMapping(
        apply(mapping.default),
        {path: apply(qconfig) for path, qconfig in mapping.modules.items()},
        {kind: apply(qconfig) for kind, qconfig in mapping.types.items()},
    )
