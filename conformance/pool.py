"""Running cases in worker processes: each step has a deadline, and one that dies or hangs costs its own case only."""

from __future__ import annotations

import functools
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conformance.backend import About, about_of
from conformance.bounds import bounded
from conformance.case import Case
from conformance.channel import Channel, opened
from conformance.deadline import LOAD, Clock
from conformance.errors import EnvironmentTrouble
from conformance.record import Record, Verdict, subject_of

# Starting an interpreter on a busy machine, and looking up the versions of packages.
HELLO_SECONDS = 120.0
# The step of a record whose backend could not be opened.
HELLO = "hello"
# What a worker imports of ours.
SHIPPED = ("conformance", "qlib")


@dataclass(frozen=True)
class Job:
    """One case to be run on one backend."""

    case: Case
    backend: str


@dataclass(frozen=True)
class Terms:
    """How workers are started: their options, and the interpreters of backends that live in other environments."""

    options: tuple[str, ...] = ()
    pythons: Mapping[str, str] = field(default_factory=dict)

    def python_of(self, backend: str) -> str | None:
        """The interpreter that was named for a backend, by what stands before its colon."""
        return self.pythons.get(backend.partition(":")[0])


@dataclass
class Worker:
    """A worker process for one backend."""

    backend: str
    channel: Channel

    def ask(self, case: Case, seconds: float) -> Record | None:
        """Have the worker run `case`; a crash or a missed deadline is a record too. Afterwards `alive` may be False.

        None where the worker was gone before the case began, so that another may be asked.
        """
        clock = Clock(seconds)
        self.channel.printed()  # what a case before it left behind
        if not self.channel.send({"path": case.path, "case": case.id}):
            self.stop()
            return None
        try:
            while (message := self.channel.receive(clock.until)) is not None:
                if "stage" not in message:
                    return self._answer(message, case, clock)
                clock.enter(str(message["stage"]))
        except TimeoutError:
            self.stop()
            return self._lost(case, Verdict.TIMEOUT, clock.overdue, clock)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # What it says next may belong to any case, so that it can't be asked again.
            self.stop()
            what = f"the worker did not keep to its protocol ({type(error).__name__}: {error})"
            return self._lost(case, Verdict.ERROR, what, clock)
        death = self.channel.death()
        return self._lost(case, Verdict.CRASH, death, clock) if clock.begun else None

    def greet(self) -> About:
        """Wait for the hello; raises EnvironmentTrouble where the backend can't be opened."""
        try:
            answer = self.channel.receive(time.monotonic() + HELLO_SECONDS)
            if answer is None:
                answer = {"trouble": f"the worker ended before its hello: {self.channel.death()}"}
            if "hello" in answer:
                return self._about(answer["hello"])
        except TimeoutError:
            answer = {"trouble": f"no hello within {HELLO_SECONDS:g} s"}
        except (ValueError, AttributeError) as error:
            answer = {"trouble": f"the worker did not keep to its protocol ({error})"}
        self.stop()
        said = f"{answer.get('trouble', answer)}\n{self.channel.printed()}".strip()
        raise EnvironmentTrouble(f"backend {self.backend!r}: {said}")

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return not self.channel.ended

    def stop(self) -> None:
        """Kill the process, and all that it started."""
        self.channel.stop()

    def _about(self, hello: Mapping[str, Any]) -> About:
        about = about_of(hello)
        if (python := hello.get("python", own := sys.version.split()[0])) != own:
            about = replace(about, versions={**about.versions, "python": str(python)})
        return about

    def _answer(self, message: Mapping[str, Any], case: Case, clock: Clock) -> Record:
        if "record" not in message:
            return self._lost(case, Verdict.ERROR, str(message.get("trouble", message)), clock)
        record = Record.from_json(message["record"])
        if record.subject.case != case.id:
            raise ValueError(f"expected a record of {case.id}, found one of {record.subject.case!r:.200}")
        return replace(record, stderr=self.channel.printed())

    def _lost(self, case: Case, verdict: Verdict, what: str, clock: Clock) -> Record:
        record = Record(
            subject=subject_of(case),
            backend=self.backend,
            verdict=verdict,
            stage=clock.step,
            error=what,
            expected_ops=dict(case.expect.ops),
            seconds=clock.stop(),
            stderr=self.channel.printed(),
        )
        return bounded(record)


@functools.cache
def _shipped() -> tempfile.TemporaryDirectory[str]:
    """A folder with links to the packages of ours and nothing else; removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="conformance-")
    for name in SHIPPED:
        spec = find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        (Path(folder.name) / name).symlink_to(Path(next(iter(spec.submodule_search_locations))).resolve())
    return folder


def launch(backend: str, terms: Terms) -> Worker:
    """Start a worker for `backend`, which has still to greet; raises EnvironmentTrouble where that can't be done.

    It imports from where this process does, and not from the folder that it was started in. Under another interpreter
    it has the suite's own packages from here, and all else from the environment of that interpreter.
    """
    python = terms.python_of(backend)
    roots = [path or os.getcwd() for path in sys.path] if python is None else [_shipped().name]
    kept = {key: value for key, value in os.environ.items() if python is None or key != "PYTHONHOME"}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(roots), "PYTHONSAFEPATH": "1"}
    command = [python or sys.executable, "-m", "conformance.worker", backend, *terms.options]
    try:
        return Worker(backend, opened(command, environment))
    except OSError as error:
        raise EnvironmentTrouble(f"backend {backend!r}: {command[0]} can't be started ({error})") from error


@dataclass
class Acquaintances:
    """What each backend said in its first hello, or the trouble there was; later hellos must say the same."""

    terms: Terms = field(default_factory=Terms)
    said: dict[str, About | EnvironmentTrouble] = field(default_factory=dict)

    def greet(self, worker: Worker) -> None:
        """Wait for a worker's hello. Raises EnvironmentTrouble where there is none or it contradicts an earlier one."""
        before = self.said.get(worker.backend)
        try:
            about = worker.greet()
            if before not in (None, about):
                raise EnvironmentTrouble(f"backend {worker.backend!r}: said {before} at first, and now {about}")
        except EnvironmentTrouble as error:
            worker.stop()
            self.said[worker.backend] = error
            raise
        self.said[worker.backend] = about

    def launch(self, backend: str) -> Worker:
        """Start a worker, which has still to greet; raises EnvironmentTrouble, at once where there was any before."""
        if isinstance(before := self.said.get(backend), EnvironmentTrouble):
            raise before
        try:
            return launch(backend, self.terms)
        except EnvironmentTrouble as error:
            self.said[backend] = error
            raise

    def ask(self, backend: str) -> About | EnvironmentTrouble:
        """What a backend says of itself in a process of its own; asked once."""
        if backend not in self.said:
            seat = Seat(self)
            with suppress(EnvironmentTrouble), closing(seat):
                seat.worker_of(backend)
        return self.said[backend]


@dataclass
class Seat:
    """The place of one worker at a time, of whichever backend is asked for; none is started once it is `over`."""

    acquaintances: Acquaintances
    over: threading.Event = field(default_factory=threading.Event)
    worker: Worker | None = None

    def ask(self, job: Job, seconds: float) -> Record:
        """Run a job on the worker that is there or on a new one; a case's own `timeout` goes before `seconds`.

        A worker that is gone before the case begins is replaced once. A backend that can't be opened gives a record
        of the verdict `error` and the step `hello`.
        """
        for _ in range(2):
            try:
                record = self.worker_of(job.backend).ask(job.case, job.case.timeout or seconds)
            except EnvironmentTrouble as error:
                return _without_worker(job, Verdict.ERROR, HELLO, str(error))
            if record is not None:
                return record
        return _without_worker(job, Verdict.CRASH, LOAD, "the worker ended twice before the case began")

    def worker_of(self, backend: str) -> Worker:
        """A worker that has greeted. Raises EnvironmentTrouble where the backend can't be opened."""
        if self.worker is None or self.worker.backend != backend or not self.worker.alive:
            self.close()
            self.worker = self.acquaintances.launch(backend)
            if self.over.is_set():  # stopped before it could be seen from outside
                self.worker.stop()
            self.acquaintances.greet(self.worker)
        return self.worker

    def close(self) -> None:
        """Stop the worker, if there is one."""
        if self.worker is not None:
            self.worker.channel.close()
            self.worker = None


def _without_worker(job: Job, verdict: Verdict, step: str, why: str) -> Record:
    return Record(
        subject=subject_of(job.case),
        backend=job.backend,
        verdict=verdict,
        stage=step,
        error=why,
        expected_ops=dict(job.case.expect.ops),
    )


@dataclass(frozen=True)
class Shift:
    """What the threads of one run share: the jobs that wait, the results, and the sign to stop."""

    seconds: float
    waiting: queue.Queue[Job] = field(default_factory=queue.Queue)
    done: queue.Queue[Record | BaseException] = field(default_factory=queue.Queue)
    stopping: threading.Event = field(default_factory=threading.Event)


def run_jobs(
    jobs: Sequence[Job], workers: int, seconds: float, acquaintances: Acquaintances | None = None
) -> Generator[Record, None, None]:
    """Run the jobs on so many workers at once and yield the records as they come; `seconds` is each case's deadline.

    A case's own `timeout` goes before `seconds`. The cases of a backend that can't be opened are records of it. No
    worker outlives the iteration, be it left early.
    """
    shift, known = Shift(seconds), acquaintances or Acquaintances()
    for job in jobs:
        shift.waiting.put(job)
    seats = [Seat(known, shift.stopping) for _ in range(max(1, min(workers, len(jobs))))]
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
            if seat.worker is not None:
                seat.worker.stop()
            thread.join(timeout=5.0)


def _work(shift: Shift, seat: Seat) -> None:
    """One thread, one worker process at a time: take jobs until there are none."""
    try:
        while not shift.stopping.is_set():
            shift.done.put(seat.ask(shift.waiting.get_nowait(), shift.seconds))
    except queue.Empty:
        pass
    except BaseException as error:
        shift.done.put(error)
    finally:
        seat.close()
