"""Running cases in worker processes: each has a deadline, and one that dies or hangs costs its own case only."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from conformance.case import Case
from conformance.errors import EnvironmentTrouble
from conformance.record import Record, Verdict, subject_of

# Importing torch on a busy machine, and then a backend's own packages.
HELLO_SECONDS = 120.0
# From the end of a process's output to its own.
GRACE_SECONDS = 2.0
TAIL = 4000


@dataclass(frozen=True)
class Job:
    """One case to be run on one backend."""

    case: Case
    backend: str


@dataclass
class Worker:
    """A worker process and what it has said that was not read yet."""

    backend: str
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    unread: bytes = field(default=b"")

    def ask(self, case: Case, seconds: float) -> Record:
        """Have the worker run `case`; a crash or a missed deadline is a record too. Afterwards `alive` may be False."""
        start = time.monotonic()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            request = json.dumps({"path": case.path, "case": case.id}) + "\n"
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
        try:
            answer = self._read(start + seconds)
            if answer is not None and "record" in answer:
                return Record.from_json(answer["record"])
        except TimeoutError:
            self.stop()
            return self._lost(case, Verdict.TIMEOUT, f"no answer within {seconds:g} s", time.monotonic() - start)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # What it says next may belong to any case, so that it can't be asked again.
            self.stop()
            what = f"the worker did not keep to its protocol ({type(error).__name__}: {error})"
            return self._lost(case, Verdict.ERROR, what, time.monotonic() - start)
        if answer is None:
            return self._lost(case, Verdict.CRASH, self._death(), time.monotonic() - start)
        return self._lost(case, Verdict.ERROR, str(answer.get("trouble", answer)), time.monotonic() - start)

    def greet(self) -> None:
        """Wait for the hello; raises EnvironmentTrouble where the backend can't be opened."""
        try:
            answer = self._read(time.monotonic() + HELLO_SECONDS)
        except TimeoutError:
            answer = {"trouble": f"no hello within {HELLO_SECONDS:g} s"}
        except ValueError as error:
            answer = {"trouble": f"the worker did not keep to its protocol ({error})"}
        if answer is None:
            answer = {"trouble": f"the worker ended before its hello: {self._death()}\n{self._tail()}"}
        if "hello" not in answer:
            self.stop()
            raise EnvironmentTrouble(f"backend {self.backend!r}: {answer.get('trouble', answer)}")

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Kill the process, and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _read(self, deadline: float) -> dict[str, Any] | None:
        """The next message, None where output ended; raises TimeoutError at the deadline, ValueError for garbage."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return None
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        raise ValueError(f"expected a message in JSON, found {line[:TAIL]!r}")

    def _death(self) -> str:
        try:
            code = self.process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            return "closed its output and did not end"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _tail(self) -> str:
        self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, self.stderr.tell() - TAIL))
        return self.stderr.read().decode(errors="replace").strip()

    def _lost(self, case: Case, verdict: Verdict, what: str, seconds: float) -> Record:
        said = self._tail()
        return Record(
            subject=subject_of(case),
            backend=self.backend,
            verdict=verdict,
            stage="run",
            error=f"{what}\n{said}".strip(),
            expected_ops=dict(case.expect.ops),
            seconds={"total": seconds},
        )


def launch(backend: str, options: Sequence[str] = ()) -> Worker:
    """Start a worker for `backend`, which has still to greet."""
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "conformance.worker", backend, *options],
        # What this process imports from, and nothing else: not whatever lies in the folder that it was started in.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )
    return Worker(backend, process, stderr)


def start(backend: str, options: Sequence[str] = ()) -> Worker:
    """Start a worker for `backend` and wait for its hello; raises EnvironmentTrouble where that does not come."""
    worker = launch(backend, options)
    worker.greet()
    return worker


@dataclass
class Seat:
    """The place of one thread, and the worker that it has at the moment."""

    worker: Worker | None = None

    def clear(self) -> None:
        """Stop the worker, if there is one."""
        if self.worker is not None:
            self.worker.stop()


@dataclass(frozen=True)
class Shift:
    """What the threads of one run share: the jobs that wait, the results, and the sign to stop."""

    seconds: float
    options: tuple[str, ...]
    waiting: queue.Queue[Job] = field(default_factory=queue.Queue)
    done: queue.Queue[Record | BaseException] = field(default_factory=queue.Queue)
    stopping: threading.Event = field(default_factory=threading.Event)


def run_jobs(
    jobs: Sequence[Job], workers: int, seconds: float, options: Sequence[str] = ()
) -> Generator[Record, None, None]:
    """Run the jobs on so many workers at once and yield the records as they come; `seconds` is each case's deadline.

    A case's own `timeout` goes before `seconds`. Raises EnvironmentTrouble where a backend can't be opened. No worker
    outlives the iteration, be it left early.
    """
    shift = Shift(seconds, tuple(options))
    for job in jobs:
        shift.waiting.put(job)
    seats = [Seat() for _ in range(max(1, min(workers, len(jobs))))]
    threads = [threading.Thread(target=_work, args=(shift, seat), daemon=True) for seat in seats]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            result = shift.done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        shift.stopping.set()
        for thread, seat in zip(threads, seats, strict=True):
            seat.clear()
            thread.join(timeout=5.0)


def _work(shift: Shift, seat: Seat) -> None:
    """One thread, one worker process at a time: take jobs until there are none."""
    try:
        while not shift.stopping.is_set():
            job = shift.waiting.get_nowait()
            if seat.worker is None or seat.worker.backend != job.backend or not seat.worker.alive:
                seat.clear()
                seat.worker = launch(job.backend, shift.options)
                seat.worker.greet()
            shift.done.put(seat.worker.ask(job.case, job.case.timeout or shift.seconds))
    except queue.Empty:
        pass
    except BaseException as error:
        shift.done.put(error)
    finally:
        seat.clear()
