"""Backends that lie, one way each: the suite's own tests show that every lie gets its verdict.

All of them have the bundled library quantize the model and then change what it says or does. Those that misbehave as
processes are in `misbehaving.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import qlib as bundled
from conformance.errors import Unsupported

Lie = Callable[[Task, Quantized], Quantized]


@dataclass(frozen=True)
class Miniature:
    """The bundled library under another name, with a lie told about its result, or by `properties` about itself."""

    name: str
    lie: Lie
    properties: Mapping[str, str] = field(default_factory=dict)

    def about(self) -> About:
        """The bundled library's answer under this name."""
        honest = bundled.backend("fast").about()
        return replace(honest, name=self.name, properties={**honest.properties, **self.properties})

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Quantize honestly, then lie."""
        quantized = bundled.backend("fast").quantize(task, stage)
        with stage("lower"):
            return self.lie(task, quantized)


def _change_outputs(quantized: Quantized, change: Callable[[Any, float | None], Any]) -> Quantized:
    """The same programs, the final one's output tensors changed; `change` gets each with its step."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    final = quantized.final

    def call(*inputs: Tensor) -> object:
        leaves, spec = pytree.tree_flatten(final.call(*inputs))
        steps = iter(final.quanta)
        changed = [change(leaf, next(steps, None)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return pytree.tree_unflatten(changed, spec)

    return replace(quantized, final=replace(final, call=call))


def always_wrong(target: str) -> Backend:
    """Gives the negative of every output, less one."""
    return Miniature("always-wrong", lambda task, quantized: _change_outputs(quantized, lambda x, step: -x - 1))


def off_by_one(target: str) -> Backend:
    """Gives every output one step too high."""

    def shift(x: Any, step: float | None) -> Any:
        return x + (step if step is not None else float(x.abs().amax()) / 127 if x.numel() else 0.0)

    return Miniature("off-by-one", lambda task, quantized: _change_outputs(quantized, shift))


def _in_float(task: Task, quantized: Quantized) -> Quantized:
    program = Program(task.module, _spread(quantized.float_ops))
    return Quantized(quantized.float_ops, program, float_graph=quantized.float_graph)


def _spread(counts: Any) -> tuple[str, ...]:
    return tuple(name for name, count in counts.items() for _ in range(count))


def float_only(target: str) -> Backend:
    """Quantizes nothing, and says so."""
    return Miniature("float-only", _in_float)


def claims_everything(target: str) -> Backend:
    """Quantizes nothing, and says that every operator ran in 8 bits."""

    def lie(task: Task, quantized: Quantized) -> Quantized:
        honest = _in_float(task, quantized)
        return replace(honest, final=replace(honest.final, ops=quantized.final.ops))

    return Miniature("claims-everything", lie)


def undeclared_refusal(target: str) -> Backend:
    """Declares to support everything, and refuses every case."""

    def refuse(task: Task, quantized: Quantized) -> Quantized:
        raise Unsupported("this operator is not implemented")

    return Miniature("undeclared-refusal", refuse)


def first_call_only(target: str) -> Backend:
    """Is right when it is called for the first time, and gives ones from then on."""

    def forget(task: Task, quantized: Quantized) -> Quantized:
        final, calls = quantized.final, iter((True,))

        def call(*inputs: Any) -> object:
            from torch.utils import _pytree as pytree

            outputs = final.call(*inputs)
            return outputs if next(calls, False) else pytree.tree_map(lambda x: x * 0 + 1, outputs)

        return replace(quantized, final=replace(final, call=call))

    return Miniature("first-call-only", forget)


def _nan(x: Any, step: float | None) -> Any:
    return x * float("nan") if x.dtype.is_floating_point else x


# What becomes of every output tensor.
OUTPUTS: Mapping[str, Callable[[Any, float | None], Any]] = MappingProxyType(
    {
        "shape": lambda x, step: x.unsqueeze(0),
        "dtype": lambda x, step: x.double(),
        "integers": lambda x, step: x.round().int(),
        "more": lambda x, step: (x, x),
        "none": lambda x, step: "a tensor",
        "nan": _nan,
    }
)


def bad_output(target: str) -> Backend:
    """Gives outputs of a wrong shape, type or number, no tensors, or NaN."""
    change = OUTPUTS[target]
    return Miniature("bad-output", lambda task, quantized: _change_outputs(quantized, change))


def declares_another_scheme(target: str) -> Backend:
    """Says that it takes the range of each row at run time, and takes that of the whole tensor."""
    said = {"activation_scheme": "per_row_symmetric"}
    return Miniature("declares-another-scheme", lambda task, quantized: quantized, properties=said)
