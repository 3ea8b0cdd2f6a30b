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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from conformance.case import Case
from conformance.errors import EnvironmentTrouble
from conformance.record import Record, Verdict, subject_of

# Importing torch on a busy machine, and then a backend's own packages.
HELLO_SECONDS = 120.0
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
        except TimeoutError:
            self.stop()
            return self._lost(case, Verdict.TIMEOUT, f"no answer within {seconds:g} s", time.monotonic() - start)
        if answer is None:
            return self._lost(case, Verdict.CRASH, self._death(), time.monotonic() - start)
        if "record" in answer:
            return Record.from_json(answer["record"])
        return self._lost(case, Verdict.ERROR, str(answer.get("trouble", answer)), time.monotonic() - start)

    def greet(self) -> None:
        """Wait for the hello; raises EnvironmentTrouble where the backend can't be opened."""
        try:
            answer = self._read(time.monotonic() + HELLO_SECONDS)
        except TimeoutError:
            self.stop()
            answer = {"trouble": f"no hello within {HELLO_SECONDS:g} s"}
        if answer is None or "hello" not in answer:
            said = (
                answer["trouble"] if answer else f"the worker ended before its hello: {self._death()}\n{self._tail()}"
            )
            raise EnvironmentTrouble(f"backend {self.backend!r}: {said}")

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
        """The next message; None where the process ended. Raises TimeoutError at the deadline."""
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
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def _death(self) -> str:
        code = self.process.wait()
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


def start(backend: str, options: Sequence[str] = ()) -> Worker:
    """Start a worker for `backend` and wait for its hello; raises EnvironmentTrouble where that does not come."""
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
    process = subprocess.Popen(
        [sys.executable, "-m", "conformance.worker", backend, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )
    worker = Worker(backend, process, stderr)
    worker.greet()
    return worker


def run_jobs(jobs: Sequence[Job], workers: int, seconds: float, options: Sequence[str] = ()) -> Iterator[Record]:
    """Run the jobs on so many workers at once and yield the records as they come; `seconds` is each case's deadline.

    A case's own `timeout` goes before `seconds`. Raises EnvironmentTrouble where a backend can't be opened.
    """
    waiting: queue.Queue[Job] = queue.Queue()
    for job in jobs:
        waiting.put(job)
    done: queue.Queue[Record | BaseException] = queue.Queue()
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_work, args=(waiting, done, stopping, seconds, tuple(options)), daemon=True)
        for _ in range(max(1, min(workers, len(jobs))))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout=5.0)


def _work(
    waiting: queue.Queue[Job],
    done: queue.Queue[Record | BaseException],
    stopping: threading.Event,
    seconds: float,
    options: tuple[str, ...],
) -> None:
    """One thread, one worker process at a time: take jobs until there are none."""
    worker: Worker | None = None
    try:
        while not stopping.is_set():
            job = waiting.get_nowait()
            if worker is None or worker.backend != job.backend or not worker.alive:
                if worker is not None:
                    worker.stop()
                worker = start(job.backend, options)
            done.put(worker.ask(job.case, job.case.timeout or seconds))
    except queue.Empty:
        pass
    except BaseException as error:
        done.put(error)
    finally:
        if worker is not None:
            worker.stop()
