"""Deadlines: of a case in another process and of each of its steps, and one for work in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, MappingProxyType

# Importing torch on a busy machine, and reading a spec file; no part of a case.
LOAD = "load"
LOAD_SECONDS = 120.0
# The share of a case's seconds that one step may take.
SHARES: Mapping[str, float] = MappingProxyType({"build": 0.5, "capture": 0.5, "compile": 0.8, "run": 0.5, "judge": 0.5})
# Of a backend's own steps on the way to a quantized model: `quantize`, or calibrate, train, convert and whatever more.
QUANTIZE = 0.8


def step_seconds(step: str, seconds: float) -> float:
    """How long one step may take of a case that may take so many seconds; `load` is no part of it."""
    return LOAD_SECONDS if step == LOAD else seconds * SHARES.get(step, QUANTIZE)


@dataclass
class Clock:
    """The deadlines of a case that runs elsewhere, which announces its steps. The case begins with its first one."""

    seconds: float
    step: str = LOAD
    spent: dict[str, float] = field(default_factory=dict)
    _entered: float = field(default_factory=time.monotonic)
    _begun: float | None = None

    def enter(self, step: str) -> None:
        """Begin the next step; raises TimeoutError where the case has no time left for it."""
        now = time.monotonic()
        self._note(now)
        self.step, self._entered = step, now
        self._begun = now if self._begun is None else self._begun
        if now > self.until:
            raise TimeoutError

    @property
    def begun(self) -> bool:
        """Whether the case has had a step."""
        return self._begun is not None

    @property
    def until(self) -> float:
        """When the step or the whole case must be done, on the monotonic clock."""
        step = self._entered + step_seconds(self.step, self.seconds)
        return step if self._begun is None else min(step, self._begun + self.seconds)

    @property
    def overdue(self) -> str:
        """Say which deadline it is that comes first."""
        limit = step_seconds(self.step, self.seconds)
        if self._begun is not None and self._begun + self.seconds < self._entered + limit:
            return f"no answer within {self.seconds:g} s"
        return f"no answer within {limit:g} s of the step {self.step!r}"

    def stop(self) -> dict[str, float]:
        """The seconds spent in each step until now, and in all of them."""
        self._note(time.monotonic())
        return {**self.spent, "total": sum(self.spent.values())}

    def _note(self, now: float) -> None:
        self.spent[self.step] = self.spent.get(self.step, 0.0) + now - self._entered


class DeadlinePassed(BaseException):
    """Raised inside the work; derives from BaseException so that no handler on the way takes it for the work's own."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise DeadlinePassed in the block after so many seconds; None sets no deadline.

    Uses the process timer, so that it interrupts Python code in the main thread and nothing else: code that may hang
    in a native library belongs into a process of its own. A timer that was set before stands still meanwhile.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def passed(number: int, frame: FrameType | None) -> None:
        raise DeadlinePassed(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, passed)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)
