"""Running a plan: which cases on which backends, in this process or in workers, and each record kept at once."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance import pool
from conformance.backend import Backend, Process
from conformance.backends import open_backend
from conformance.case import Case
from conformance.environment import environment
from conformance.known import Known, apply
from conformance.record import Record, Run
from conformance.store import writing

CASE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What is to be run. `workers` counts processes; with one, backends that can't take us down run in this process."""

    cases: tuple[Case, ...]
    backends: tuple[str, ...]
    workers: int = 1
    seconds: float = CASE_SECONDS
    options: tuple[str, ...] = ()
    command: str = ""

    @property
    def jobs(self) -> list[pool.Job]:
        """Every case on every backend, one backend after the other."""
        return [pool.Job(case, backend) for backend in self.backends for case in self.cases]


def execute(
    plan: Plan, path: Path, known: Callable[[str], Sequence[Known]], show: Callable[[Record], None]
) -> list[Record]:
    """Run the plan, append each record to the results file at `path` and hand it to `show`; returns all of them.

    `known` gives a backend's known failures. Raises EnvironmentTrouble where a backend can't be opened or the file
    can't be written; what was recorded until then stays in the file.
    """
    run = Run(
        environment=environment(),
        backends=plan.backends,
        planned=len(plan.jobs),
        command=plan.command,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    expected = {backend: known(backend) for backend in plan.backends}
    coming = _records(plan)  # before the file is touched: a misspelt backend must not cost the last run's results
    records = []
    with writing(path) as writer:
        writer.head(run)
        for found in coming:
            record = apply(found, expected[found.backend])
            writer.append(record)
            records.append(record)
            show(record)
    return records


def _records(plan: Plan) -> Iterator[Record]:
    opened = {name: open_backend(name) for name in plan.backends}
    if plan.workers > 1 or any(backend.about().process is Process.OWN for backend in opened.values()):
        return pool.run_jobs(plan.jobs, plan.workers, plan.seconds, plan.options)
    return _here(plan, opened)


def _here(plan: Plan, opened: dict[str, Backend]) -> Iterator[Record]:
    from conformance.engine import Limits, run_case

    limits = Limits(plan.seconds, "--allow-python" in plan.options)
    for job in plan.jobs:
        yield run_case(job.case, opened[job.backend], job.backend, limits).record
