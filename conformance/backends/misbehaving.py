"""Backends that misbehave as processes, and ones whose `about()` does: each costs its own cases and no other's."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from conformance.backend import About, Backend, Quantized, Stage, Task
from conformance.backends import qlib as bundled
from conformance.backends.miniatures import Miniature


def _called(quantized: Quantized, act: Callable[[], object]) -> Quantized:
    """The same model, which acts when its final form is called."""
    final = quantized.final

    def call(*inputs: Any) -> object:
        act()
        return final.call(*inputs)

    return replace(quantized, final=replace(final, call=call))


def crashes(target: str) -> Backend:
    """Dies of a segmentation fault when it is called."""
    return Miniature("crashes", lambda task, quantized: _called(quantized, lambda: _kill(signal.SIGSEGV)))


def hangs(target: str) -> Backend:
    """Never comes back when it is called."""
    return Miniature("hangs", lambda task, quantized: _called(quantized, _hang))


def _kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _hang() -> None:
    while True:
        time.sleep(1.0)


def _fork() -> None:
    """Leave a child behind that keeps every pipe open."""
    if os.fork() == 0:
        _hang()


def _orphan() -> None:
    _fork()
    os._exit(0)


def _print() -> None:
    print("python says hello")
    os.write(1, b"native code says \xff\n")


def _talk_over() -> None:
    """Write into every pipe that this process has, but for the three that every process has."""
    for descriptor in range(3, 64):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"Initialising...\n")


def _allocate() -> None:
    import numpy as np

    kept = []
    while True:
        kept.append(np.empty(1 << 28, np.uint8))  # asked for and not touched, which would take its time


def _deafen() -> None:
    with suppress(OSError):  # the second call finds it closed
        os.close(0)


# What a process does when its model is called.
ACTS: Mapping[str, Callable[[], object]] = MappingProxyType(
    {
        "kill": lambda: _kill(signal.SIGKILL),
        "exit": lambda: os._exit(0),
        "fork": _fork,
        "twin": os.fork,
        "orphan": _orphan,
        "print": _print,
        "print-much": lambda: os.write(2, b"much\n" * 2_000_000),
        "talk-over": _talk_over,
        "deaf": _deafen,
        "allocate": _allocate,
    }
)


def bad_process(target: str) -> Backend:
    """Is killed, exits, forks, prints, writes into the protocol, closes its input, or fills the memory when called."""
    act = ACTS[target]
    return Miniature("bad-process", lambda task, quantized: _called(quantized, act))


def _gigabytes(quantized: Quantized) -> Quantized:
    def call(*inputs: Any) -> object:
        import torch

        return torch.zeros(1 << 29)

    return replace(quantized, final=replace(quantized.final, call=call))


def _wordy(quantized: Quantized) -> Quantized:
    names = tuple(f"unmapped:operator_{number}" for number in range(1_000_000))
    final = replace(quantized.final, ops=names, native_ops=dict.fromkeys(names, 1), graph="x" * 100_000_000)
    return replace(quantized, final=final, notes=("n" * 10_000_000,))


SIZES: Mapping[str, Callable[[Quantized], Quantized]] = MappingProxyType({"tensor": _gigabytes, "words": _wordy})


def too_much(target: str) -> Backend:
    """Gives a tensor of gigabytes, or a million operators and a graph of a hundred megabytes."""
    grow = SIZES[target]
    return Miniature("too-much", lambda task, quantized: grow(quantized))


@dataclass(frozen=True)
class Liar:
    """The bundled library with an `about()` that lies, and a `quantize` that shows it."""

    change: Callable[[About], About]
    quantizes: frozenset[str]

    def about(self) -> About:
        """The bundled library's answer, changed."""
        return self.change(replace(bundled.backend("fast").about(), name="bad-about"))

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Quantize in the modes that it really has."""
        if task.mode not in self.quantizes:
            raise NotImplementedError(f"mode {task.mode}")
        return bundled.backend("fast").quantize(task, stage)


def _raising(about: About) -> About:
    raise OSError("libodd.so: cannot open shared object file")


def _leaving(about: About) -> About:
    os._exit(5)


def _fickle(about: About) -> About:
    return replace(about, versions={"odd": f"1.{os.getpid()}"})


def _formless(about: About) -> About:
    return replace(about, modes=frozenset({"static", 8}))  # type: ignore[arg-type]


def _boasting(about: About) -> About:
    return about


ABOUTS: Mapping[str, Callable[[About], About]] = MappingProxyType(
    {"raises": _raising, "exits": _leaving, "fickle": _fickle, "formless": _formless, "boasts": _boasting}
)


def bad_about(target: str) -> Backend:
    """Says nothing of itself, or something else each time, or a mode that it does not have."""
    return Liar(ABOUTS[target], frozenset({"static"}))
