"""Whether two results files are parts of one run: the same plan, asked of the same software."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from conformance.record import Run

MOST = 3


NO_PLAN = "it holds no plan: expected a file of 'conformance run' of this version"


def obstacles(one: Run, other: Run) -> list[str]:
    """Say why a run can't go on in a file of another one, whose records would be lost or not be alike; empty if it can.

    Cases that are new, or whose spec has changed, are none: they are run.
    """
    backends = [f"backends: {', '.join(one.backends)}; now {', '.join(other.backends)}"]
    shards = [f"shard: {one.shard or 'all'}, now {other.shard or 'all'}"]
    return [
        *([] if one.cases else [NO_PLAN]),
        *(backends if one.backends != other.backends else []),
        *_gone(one, other),
        *software_differences(one, other),
        *machine_differences(one, other),
        *(shards if one.shard != other.shard else []),
    ]


def case_differences(one: Run, other: Run) -> list[str]:
    """Say in what the cases of two plans differ, by id and fingerprint."""
    if not one.cases:
        return [NO_PLAN]
    changed = [case for case in one.cases if other.cases.get(case, one.cases[case]) != one.cases[case]]
    return [
        *_gone(one, other),
        *_some("cases that are new", [case for case in other.cases if case not in one.cases]),
        *_some("cases whose spec has changed", changed),
    ]


def _gone(one: Run, other: Run) -> list[str]:
    return _some("cases that are gone", [case for case in one.cases if case not in other.cases])


def software_differences(one: Run, other: Run) -> list[str]:
    """Say which packages, and which of the backends that both have, have other versions."""
    before, after = one.environment, other.environment
    found = list(_changed("package", before.packages, after.packages))
    found += _changed("version", _own(one), _own(other))
    for backend in [name for name in one.backends if name in other.backends]:
        found += _changed(f"backend {backend}", one.versions.get(backend, {}), other.versions.get(backend, {}))
    return found


def machine_differences(one: Run, other: Run) -> list[str]:
    """Say in what the machines differ."""
    return list(_changed("machine", _machine(one), _machine(other)))


def _own(run: Run) -> dict[str, str]:
    return {"suite": run.environment.suite, "Python": run.environment.python}


def _machine(run: Run) -> dict[str, str]:
    environment = run.environment
    return {"CPU": environment.cpu, "instruction set": environment.isa, "platform": environment.platform}


def _changed(what: str, one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            yield f"{what}: {name} {one.get(name, 'not there')}, now {other.get(name, 'not there')}"


def _some(what: str, cases: Collection[str]) -> list[str]:
    more = ", ..." if len(cases) > MOST else ""
    return [f"{what}: {len(cases)} ({', '.join(list(cases)[:MOST])}{more})"] if cases else []
