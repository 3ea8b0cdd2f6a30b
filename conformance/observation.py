"""What happened when a case was run: tensors and counts, no opinion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from conformance.backend import Explanation
from conformance.record import Layer
from conformance.rounding import Rule
from conformance.scheme import Scheme


@dataclass(frozen=True)
class Evidence:
    """Everything that the checks judge.

    Output tuples hold the tensors of a call in order, nesting flattened. `repeated` is a second call of the final
    form on the same inputs. `explained` and `debug_explained` are None where the backend can't explain its roundings,
    `layers` where nobody asked for them or the backend can't tell them. `rule` is what its integers say of their
    rounding, None where that is not the question. `scheme` is how a dynamic layer quantizes its input, None likewise.
    `native_ops` counts the operators by the backend's own names. `reference_sqnr_db` is what the reference has on the
    same case and `reference_ops` what it executed, None and empty where it was not asked.
    `declared` is what the backend says of its arithmetic for a case of this kind.
    """

    float_outputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    repeated: tuple[Tensor, ...]
    debug_outputs: tuple[Tensor, ...] | None
    quanta: tuple[float | None, ...]
    float_ops: Mapping[str, int]
    ops: Mapping[str, int]
    sequence: tuple[str, ...] = ()
    explained: Explanation | None = None
    debug_explained: Explanation | None = None
    inputs_after_float: tuple[Tensor, ...] = ()
    inputs_after: tuple[Tensor, ...] = ()
    layers: tuple[Layer, ...] | None = None
    rule: Rule | None = None
    scheme: Scheme | None = None
    declared: Mapping[str, str] = field(default_factory=dict)
    native_ops: Mapping[str, int] = field(default_factory=dict)
    reference_sqnr_db: float | None = None
    reference_ops: Mapping[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether the float model's outputs hold no number, so that there is nothing to compare."""
        return not any(x.numel() for x in self.float_outputs)
