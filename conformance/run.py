"""Running a plan: which cases on which backends, in this process or in workers, and each record kept at once."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from conformance import pool
from conformance.backend import Backend, Process, declared
from conformance.backends import open_backend
from conformance.case import Case
from conformance.environment import environment
from conformance.errors import UsageError
from conformance.fingerprint import fingerprint
from conformance.known import Expected, Known, apply, expected
from conformance.record import Record, Run
from conformance.sameness import differences
from conformance.shard import Shard
from conformance.store import Writer, appending, read, writing

CASE_SECONDS = 60.0
Entries = Callable[[str], Sequence[Known]]
Show = Callable[[Record], None]
Records = Generator[Record, None, None]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    `workers` counts processes; with one, backends that can't take us down run in this process. `shard` is the share of
    the cases that is run, None for all. `today` decides which known failures have expired.
    """

    cases: tuple[Case, ...]
    backends: tuple[str, ...]
    workers: int = 1
    seconds: float = CASE_SECONDS
    options: tuple[str, ...] = ()
    command: str = ""
    shard: Shard | None = None
    today: datetime.date = field(default_factory=datetime.date.today)

    @property
    def jobs(self) -> list[pool.Job]:
        """Every case of the share on every backend, one backend after the other."""
        cases = [case for case in self.cases if self.shard is None or self.shard.holds(case.id)]
        return [pool.Job(case, backend) for backend in self.backends for case in cases]


@dataclass(frozen=True)
class Opened:
    """A plan with its backends made and their known failures read."""

    plan: Plan
    backends: Mapping[str, Backend]
    known: Mapping[str, Expected]


def open_plan(plan: Plan, known: Entries) -> Opened:
    """Make the plan's backends and read what `known` gives of each; raises what either does."""
    backends = {name: open_backend(name) for name in plan.backends}
    sorted_out = {
        name: expected(known(name), name, backend.about().versions, plan.today) for name, backend in backends.items()
    }
    return Opened(plan, backends, sorted_out)


def head_of(opened: Opened) -> Run:
    """The head of the plan's results file."""
    plan = opened.plan
    return Run(
        environment=environment(),
        backends=plan.backends,
        planned=len(plan.jobs),
        command=plan.command,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cases={case.id: fingerprint(case) for case in plan.cases},
        shard=str(plan.shard) if plan.shard else None,
        declared={name: declared(backend.about()) for name, backend in opened.backends.items()},
        debt=tuple(known.debt for known in opened.known.values()),
    )


def execute(plan: Plan, path: Path, known: Entries, show: Show) -> list[Record]:
    """Run the plan, append each record to the results file at `path` and hand it to `show`; returns all of them.

    `known` gives a backend's known failures. Raises EnvironmentTrouble where a backend can't be opened or the file
    can't be written; what was recorded until then stays in the file.
    """
    opened = open_plan(plan, known)  # before the file is touched: a slip must not cost the last run's results
    coming = _records(opened, plan.jobs)
    with writing(path) as writer:
        writer.head(head_of(opened))
        return list(_kept(coming, opened, writer, show))


def resume(plan: Plan, path: Path, known: Entries, show: Show) -> list[Record]:
    """Run what the results file at `path` still lacks of the plan, and append it; returns old and new records.

    Raises UsageError where the file is not of this plan, or of another environment.
    """
    opened = open_plan(plan, known)
    before = read(path)
    if found := differences(before.run, head_of(opened)):
        listed = "\n  ".join(found)
        raise UsageError(f"{path}: can't be resumed, since it was made otherwise:\n  {listed}\nrun without --resume")
    done = {(record.backend, record.subject.case) for record in before.records}
    left = [job for job in plan.jobs if (job.backend, job.case.id) not in done]
    for record in before.records:
        show(record)
    with appending(path) as writer:
        return [*before.records, *_kept(_records(opened, left), opened, writer, show)]


def _kept(coming: Records, opened: Opened, writer: Writer, show: Show) -> Records:
    with closing(coming):  # an interrupt anywhere in here stops the workers too
        for found in coming:
            record = apply(found, opened.known[found.backend])
            writer.append(record)
            show(record)
            yield record


def _records(opened: Opened, jobs: list[pool.Job]) -> Records:
    plan = opened.plan
    if plan.workers > 1 or any(backend.about().process is Process.OWN for backend in opened.backends.values()):
        return pool.run_jobs(jobs, plan.workers, plan.seconds, plan.options)
    return _here(opened, jobs)


def _here(opened: Opened, jobs: list[pool.Job]) -> Records:
    from conformance.engine import Limits, run_case

    limits = Limits(opened.plan.seconds, "--allow-python" in opened.plan.options)
    for job in jobs:
        yield run_case(job.case, opened.backends[job.backend], job.backend, limits).record
