"""What torch really executes in a call, as its profiler saw it, and the steps of what comes out.

An operator counts as quantized where it gets integers and no operator that it calls in turn makes real numbers of them:
some kernels for quantized tensors dequantize, call the operator in float and quantize what it gave. Of these the
operators within are listed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.backend import Program
from conformance.backends.torch_names import NAMED, NOTHING, in_float, on_integers, plain

# What only tensors of integers are asked for.
_MARKS = frozenset(f"aten::{name}" for name in ("q_scale", "q_zero_point", "qscheme", "q_per_channel_scales"))
_MAKES_REAL = frozenset({"aten::dequantize"})
_WITH_NUMBERS = ("add", "mul")


@dataclass(frozen=True)
class Call:
    """An operator that ran: its name, the types, shapes and values of its arguments, and what it called in turn.

    `dtypes` are the profiler's words, such as "float", "c10::quint8", "Scalar" and "TensorList".
    """

    name: str
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    values: tuple[Any, ...] = ()
    inner: tuple[Call, ...] = ()

    @property
    def integers(self) -> bool:
        """Whether the operator gets quantized tensors."""
        return any("c10::q" in dtype for dtype in self.dtypes) or any(call.name in _MARKS for call in self.inner)


def program(call: Callable[..., object], inputs: Sequence[Tensor], graph: str) -> Program:
    """A form of a model, with what it executes on `inputs`; `graph` is its text."""
    ran = calls(call, inputs)
    return Program(call, sequence(ran), Counter(native(ran)), steps(call, inputs), graph)


def counts(call: Callable[..., object], inputs: Sequence[Tensor]) -> dict[str, int]:
    """How often each operator is executed on `inputs`, by canonical name."""
    return dict(sorted(Counter(sequence(calls(call, inputs))).items()))


def calls(call: Callable[..., object], inputs: Sequence[Tensor]) -> tuple[Call, ...]:
    """The operators that are called on `inputs`, in order, each with those that it calls itself."""
    given = [x.clone() for x in inputs]
    # It would write two lines to standard error whenever it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.no_grad(), profile(use_kineto=True, record_shapes=True) as seen:
        call(*given)
    events = sorted(seen.kineto_results.events(), key=lambda event: (event.start_ns(), -event.duration_ns()))
    return _nested(iter([*events, None]))


def _nested(events: Iterator[Any]) -> tuple[Call, ...]:
    """Calls from events in the order of their beginnings: one that ends within another was called by it."""
    levels: list[tuple[float, Any, list[Call]]] = [(float("inf"), None, [])]
    for event in events:
        begin = float("inf") if event is None else event.start_ns()
        while len(levels) > 1 and begin >= levels[-1][0]:
            _, closed, inner = levels.pop()
            levels[-1][2].append(_call(closed, tuple(inner)))
        if event is not None:
            levels.append((begin + event.duration_ns(), event, []))
    return tuple(levels[0][2])


def _call(event: Any, inner: tuple[Call, ...]) -> Call:
    shapes = tuple(tuple(shape) if isinstance(shape, list) else () for shape in event.shapes())
    return Call(event.name(), tuple(event.dtypes()), shapes, tuple(event.concrete_inputs()), inner)


def sequence(ran: Sequence[Call]) -> tuple[str, ...]:
    """The operators that ran, in order, by canonical name."""
    return tuple(name for call in ran for name in canonical(call))


def native(ran: Sequence[Call]) -> tuple[str, ...]:
    """The operators that ran, in order, by torch's own names."""
    return tuple(name for call in ran for name in ((call.name,) if "::" in call.name else native(call.inner)))


def canonical(call: Call) -> tuple[str, ...]:
    """What an operator stands for by canonical names: one, none, or those that it calls."""
    if "::" not in call.name:  # the call of a module or a graph
        return sequence(call.inner)
    if call.name in NOTHING or (call.name in _MAKES_REAL and not call.integers):
        return ()
    if call.name in NAMED:
        return (NAMED[call.name],)
    if call.name.startswith("quantized::"):
        return sequence(call.inner) if _in_float_within(call) else (on_integers(_by_operands(call)),)
    if call.integers:
        return sequence(call.inner) if _in_float_within(call) else (on_integers(_by_bounds(call)),)
    return (in_float(_by_weight(call)),)


def _in_float_within(call: Call) -> bool:
    return call.integers and any(_calls_any(inner, _MAKES_REAL) for inner in call.inner)


def _calls_any(call: Call, names: frozenset[str]) -> bool:
    return call.name in names or any(_calls_any(inner, names) for inner in call.inner)


def _by_operands(call: Call) -> str:
    """Sums and products with a number have names of their own."""
    name, _, tail = plain(call.name).partition("_")
    if name in _WITH_NUMBERS and tail in ("", "relu") and call.dtypes[1:2] == ("Scalar",):
        return f"quantized::{name}_scalar{tail and '_relu'}"
    return call.name


def _by_bounds(call: Call) -> str:
    """Torch writes relu6 as the clamp that it is."""
    return "aten::relu6" if plain(call.name) == "hardtanh" and call.values[1:3] == (0, 6) else call.name


def _by_weight(call: Call) -> str:
    """Convolutions by the dimensions of their weights."""
    if plain(call.name) not in ("_convolution", "convolution"):
        return _by_bounds(call)
    transposed = "_transpose" if call.values[6:7] == (True,) else ""
    return f"aten::conv{transposed}{len(call.shapes[1]) - 2}d"


class Dequantized(TorchDispatchMode):
    """Notes, while it is active, the step of each tensor that is made real by one scale."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: dict[int, tuple[Tensor, float]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the operator run, and look at what it got; what is written to afterwards has no step any more."""
        result = func(*args, **(kwargs or {}))
        arguments = func._schema.arguments
        given = {**{of.name: value for of, value in zip(arguments, args, strict=False)}, **(kwargs or {})}
        for argument in arguments:
            if argument.is_write and isinstance(written := given.get(argument.name), Tensor):
                self._forget(written)
        if func is torch.ops.aten.dequantize.self and args[0].qscheme() in _ONE_SCALE:
            self._steps[id(result)] = (result, args[0].q_scale())
        elif str(func).startswith("quantized_decomposed.dequantize_per_tensor"):
            self._steps[id(result)] = (result, float(args[1]))
        return result

    def _forget(self, written: Tensor) -> None:
        storage = written.untyped_storage().data_ptr()
        kept = {key: each for key, each in self._steps.items() if each[0].untyped_storage().data_ptr() != storage}
        self._steps = kept

    def step(self, tensor: Tensor) -> float | None:
        """The step of a tensor; None for one that was not made so."""
        found = self._steps.get(id(tensor))
        return None if found is None else found[1]


_ONE_SCALE = frozenset({torch.per_tensor_affine, torch.per_tensor_symmetric})


def steps(call: Callable[..., object], inputs: Sequence[Tensor]) -> tuple[float | None, ...]:
    """The step of each tensor that a call gives, nesting flattened; None for one that is no dequantized tensor.

    Where Python can't be shown what runs none is known: a traced graph passes numbers as tensors, which the dispatcher
    takes and can't translate.
    """
    try:
        with torch.no_grad(), Dequantized() as noted:
            result = call(*(x.clone() for x in inputs))
    except RuntimeError:
        with torch.no_grad():
            result = call(*(x.clone() for x in inputs))
    return tuple(noted.step(x) for x in pytree.tree_leaves(result) if isinstance(x, Tensor))
