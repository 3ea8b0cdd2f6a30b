"""A deadline for work in this process, for specs whose own loops never end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
