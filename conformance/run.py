"""Running a plan: which cases on which backends, in this process or in workers, and each record kept at once."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from conformance import pool
from conformance.backend import About, declared
from conformance.backends import BUILTIN, REFERENCE, Process, open_backend, process_of
from conformance.case import Case
from conformance.environment import environment
from conformance.errors import EnvironmentTrouble, UsageError
from conformance.fingerprint import fingerprint
from conformance.known import Expected, Known, apply, expected
from conformance.record import Declared, Record, Run, Verdict
from conformance.sameness import obstacles
from conformance.shard import Shard
from conformance.store import Writer, appending, as_planned, read, writing

CASE_SECONDS = 60.0
Entries = Callable[[str], Sequence[Known]]
Show = Callable[[Record], None]
Records = Generator[Record, None, None]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    `workers` counts processes; with one, backends that can't take us down run in this process. `terms` say how worker
    processes are started. `shard` is the share of the cases that is run, None for all. `today` decides which known
    failures have expired.
    """

    cases: tuple[Case, ...]
    backends: tuple[str, ...]
    workers: int = 1
    seconds: float = CASE_SECONDS
    terms: pool.Terms = field(default_factory=pool.Terms)
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
    """A plan, what its backends say of themselves, and their known failures."""

    plan: Plan
    acquaintances: pool.Acquaintances
    said: Mapping[str, About | EnvironmentTrouble]
    known: Mapping[str, Expected]


def open_plan(plan: Plan, known: Entries) -> Opened:
    """Have the plan's backends introduce themselves, and read what `known` gives of each; raises what that does.

    Raises UsageError for a backend or a target that does not exist. One that can't be opened is kept as its trouble.
    """
    acquaintances = pool.Acquaintances(plan.terms)
    said = {name: introduced(name, acquaintances) for name in plan.backends}
    sorted_out = {name: expected(known(name), name, versions_of(each), plan.today) for name, each in said.items()}
    return Opened(plan, acquaintances, said, sorted_out)


def introduced(name: str, acquaintances: pool.Acquaintances) -> About | EnvironmentTrouble:
    """What a backend says of itself: here where it may share this process, else in one of its own.

    Raises UsageError for a backend or a target that does not exist.
    """
    if acquaintances.terms.python_of(name) is not None:
        return acquaintances.ask(name)
    process = process_of(name)
    try:
        backend = open_backend(name) if name.partition(":")[0] in BUILTIN else None
        return backend.about() if backend and process is Process.SHARED else acquaintances.ask(name)
    except EnvironmentTrouble as error:
        return error


def versions_of(said: About | EnvironmentTrouble) -> Mapping[str, str]:
    """The versions that a backend says of itself; none where it could not be opened."""
    return {} if isinstance(said, EnvironmentTrouble) else said.versions


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
        declared={name: declared_as(said) for name, said in opened.said.items()},
        debt=tuple(known.debt for known in opened.known.values()),
    )


def declared_as(said: About | EnvironmentTrouble) -> Declared:
    """What the head of a results file keeps of a backend."""
    return Declared() if isinstance(said, EnvironmentTrouble) else declared(said)


def execute(plan: Plan, path: Path, known: Entries, show: Show) -> list[Record]:
    """Run the plan, append each record to the results file at `path` and hand it to `show`; returns all of them.

    `known` gives a backend's known failures. The cases of a backend that can't be opened are recorded as errors in the
    step `hello`. Raises EnvironmentTrouble where the file can't be written; what was recorded until then stays in it.
    """
    opened = open_plan(plan, known)  # before the file is touched: a slip must not cost the last run's results
    coming = _records(opened, plan.jobs)
    with writing(path) as writer:
        writer.head(head_of(opened))
        return list(_kept(coming, opened, writer, show))


def resume(plan: Plan, path: Path, known: Entries, show: Show) -> list[Record]:
    """Run what the results file at `path` still lacks of the plan, and append it; returns old and new records.

    Cases whose backend could not be opened, and those whose spec has changed, are run again; the others are marked by
    the known failures as they are now. Raises UsageError where the file has cases that the plan has not, or is of other
    backends or another environment.
    """
    opened = open_plan(plan, known)
    before, now = read(path), head_of(opened)
    head = _with_newly_opened(before.run, now)
    if found := obstacles(head, now):
        listed = "\n  ".join(found)
        raise UsageError(f"{path}: can't be resumed, since it was made otherwise:\n  {listed}\nrun without --resume")
    head = replace(head, cases=now.cases, planned=now.planned, debt=now.debt)
    kept = [record for record in before.records if as_planned(record, head) and not _unopened(record)]
    finished = [apply(record, opened.known[record.backend]) for record in kept]
    done = {(record.backend, record.subject.case) for record in finished}
    left = [job for job in plan.jobs if (job.backend, job.case.id) not in done]
    for record in finished:
        show(record)
    with appending(path) as writer:
        if head != before.run:
            writer.head(head)
        for record, earlier in zip(finished, kept, strict=True):
            if record != earlier:
                writer.append(record)
        return [*finished, *_kept(_records(opened, left), opened, writer, show)]


def _unopened(record: Record) -> bool:
    """Whether a record says no more than that its backend could not be opened."""
    return record.verdict is Verdict.ERROR and record.stage == pool.HELLO


def _with_newly_opened(before: Run, now: Run) -> Run:
    """The earlier head, with what backends that could not be opened then say of themselves now."""
    late = {name for name, said in before.declared.items() if said == Declared()}
    heard = {name: said for name, said in now.declared.items() if name in late}
    return replace(before, declared={**before.declared, **heard})


def _kept(coming: Records, opened: Opened, writer: Writer, show: Show) -> Records:
    with closing(coming):  # an interrupt anywhere in here stops the workers too
        for found in coming:
            record = apply(found, opened.known[found.backend])
            writer.append(record)
            show(record)
            yield record


def _records(opened: Opened, jobs: list[pool.Job]) -> Records:
    plan = opened.plan
    if plan.workers > 1 or any(apart(name, plan.terms) for name in plan.backends):
        return pool.run_jobs(jobs, plan.workers, plan.seconds, opened.acquaintances)
    return _here(plan, jobs)


def apart(name: str, terms: pool.Terms) -> bool:
    """Whether a backend's cases need a process of their own."""
    return terms.python_of(name) is not None or process_of(name) is Process.OWN


def _here(plan: Plan, jobs: list[pool.Job]) -> Records:
    from conformance.engine import Limits, run_case

    limits = Limits(plan.seconds, "--allow-python" in plan.terms.options, open_backend(REFERENCE))
    backends = {name: open_backend(name) for name in plan.backends}
    for job in jobs:
        yield run_case(job.case, backends[job.backend], job.backend, limits).record
