"""JSON lines to and from a process of its own, which may be silent, talk nonsense, die, or leave children behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

# How often a process that is silent is looked at: its end may not be the end of its output, which children share.
GLANCE = 0.2
# From the end of a process's output to its own.
GRACE_SECONDS = 2.0
# Of what a process prints, the end is kept.
TAIL = 4000
# Longer than any message of use; what is longer would fill the memory of this process.
LONGEST = 1 << 24
_CHUNK = 1 << 16
# Reads of what was printed after a process's last word: a child that prints for ever must not hold us.
_READS = 64
# A text for people: lines and tabs are kept, other signs that steer a terminal are shown.
_SHOWN = {**{code: f"\\x{code:02x}" for code in (*range(32), 127)}, 9: "\t", 10: "\n", 13: "\n"}


@dataclass
class Channel:
    """A process whose standard input and output carry messages, and what it has said that was not taken yet.

    What it prints to standard error is read along, so that it never waits for us, and its end is kept.
    """

    process: subprocess.Popen[bytes]
    _lines: list[bytes] = field(default_factory=list)
    _begun: bytearray = field(default_factory=bytearray)
    _printed: bytearray = field(default_factory=bytearray)
    _dropped: int = 0

    def send(self, message: Mapping[str, Any]) -> bool:
        """Write a message; False where the process does not read any more."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps(message, separators=(",", ":")) + "\n").encode())
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):  # a closed file is a ValueError
            return False
        return True

    def receive(self, until: float) -> dict[str, Any] | None:
        """The next message, None where there will be none.

        Raises TimeoutError when the monotonic clock says `until`, ValueError for what is no message.
        """
        while not self._lines:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ended = self.ended
            if not self._listen(min(left, GLANCE)) or (ended and not self._lines):
                return None
        line = self._lines.pop(0)
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        raise ValueError(f"expected a message in JSON, found {line[:TAIL]!r}")

    @property
    def ended(self) -> bool:
        """Whether the process has ended; it is not reaped, so that its group can still be killed by its number."""
        if self.process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # another thread has stopped and reaped it
            return True

    def death(self) -> str:
        """How the process ended, whose output has; one that closed its output alone is stopped."""
        end = time.monotonic() + GRACE_SECONDS
        while not self.ended:
            if time.monotonic() > end:
                self.stop()
                return "closed its output and did not end"
            time.sleep(0.01)
        self.stop()
        code = self.process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def stop(self) -> None:
        """Kill the process, and where it leads a group, all that it started."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                own = os.getpgid(self.process.pid) == self.process.pid
                (os.killpg if own else os.kill)(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """Stop the process, and close our ends of its pipes."""
        self.stop()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def printed(self) -> str:
        """The end of what was printed since this was last asked, as text without signs that steer a terminal."""
        assert self.process.stderr is not None
        for _ in range(_READS):
            if not select.select([self.process.stderr], [], [], 0)[0] or not self._read_printed():
                break
        text = bytes(self._printed).decode(errors="backslashreplace").replace("\r\n", "\n").translate(_SHOWN).strip()
        dropped, self._dropped = self._dropped, 0
        self._printed.clear()
        return f"[{dropped} bytes before this are left out]\n{text}" if dropped else text

    def _listen(self, seconds: float) -> bool:
        """Read what comes within so many seconds; False where the output has ended."""
        assert self.process.stdout is not None and self.process.stderr is not None
        ready, _, _ = select.select([self.process.stdout, self.process.stderr], [], [], seconds)
        if self.process.stderr in ready and not self._read_printed() and ready == [self.process.stderr]:
            time.sleep(min(seconds, 0.01))  # standard error was closed, and is ready for ever
        return self.process.stdout not in ready or self._read_said()

    def _read_said(self) -> bool:
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), _CHUNK)
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            self._lines.append(bytes(self._begun) + part)
            self._begun.clear()
        self._begun += rest
        if len(self._begun) > LONGEST:
            raise ValueError(f"expected a message of at most {LONGEST} bytes, found {bytes(self._begun[:80])!r}...")
        return bool(chunk)

    def _read_printed(self) -> bool:
        assert self.process.stderr is not None
        chunk = os.read(self.process.stderr.fileno(), _CHUNK)
        self._printed += chunk
        if (more := len(self._printed) - TAIL) > 0:
            self._dropped += more
            del self._printed[:more]
        return bool(chunk)


def opened(command: Sequence[str], environment: Mapping[str, str]) -> Channel:
    """Start a process in a group of its own, that is killed with all that it starts; raises OSError where it can't."""
    process = subprocess.Popen(
        list(command),
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return Channel(process)
