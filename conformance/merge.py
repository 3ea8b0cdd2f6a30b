"""Joining the results of shards, and of backends that were run apart, into those of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.errors import UsageError
from conformance.record import Run
from conformance.sameness import case_differences, software_differences
from conformance.store import Results


@dataclass(frozen=True)
class Merged:
    """The whole run; `missing` are the planned records that no shard holds, as backend and case."""

    results: Results
    missing: tuple[tuple[str, str], ...]


def merge(files: Sequence[tuple[Path, Results]]) -> Merged:
    """Join results files of the same cases: shards of them, or different backends.

    They may come from different machines, but must be of the same specs, options and packages. Raises UsageError
    where they are not, or where two hold a record of the same case on the same backend.
    """
    (first, whole), *others = files
    differing = [text for path, each in others for text in _differing(first, whole, path, each)]
    if mistakes := [*_unplanned(files), *differing]:
        raise UsageError("\n".join(["expected parts of one run, found", *(f"  {text}" for text in mistakes)]))
    owners: dict[tuple[str, str], list[Path]] = {}
    for path, each in files:
        for record in each.records:
            owners.setdefault((record.backend, record.subject.case), []).append(path)
    if doubled := {key: paths for key, paths in owners.items() if len(paths) > 1}:
        (backend, case), paths = next(iter(doubled.items()))
        raise UsageError(
            f"expected each case once, found {len(doubled)} twice, such as {case} on {backend} in "
            f"{' and '.join(map(str, paths))}: give each shard's file once"
        )
    head = _head([each.run for _, each in files])
    planned = [(backend, case) for backend in head.backends for case in head.cases]
    records = tuple(record for _, each in files for record in each.records)
    missing = tuple(key for key in planned if key not in owners)
    return Merged(Results(head, records), missing)


def _unplanned(files: Sequence[tuple[Path, Results]]) -> list[str]:
    return [f"{path}: holds no plan, as files of `conformance run` do" for path, each in files if not each.run.cases]


def _differing(first: Path, whole: Results, path: Path, each: Results) -> list[str]:
    found = [*case_differences(whole.run, each.run), *software_differences(whole.run, each.run)]
    return [f"{path}: differs from {first} in {text}" for text in found]


def _head(runs: Sequence[Run]) -> Run:
    """The head of the whole: backends in the order of the files; what differs from machine to machine is listed."""
    backends = tuple(dict.fromkeys(name for run in runs for name in run.backends))
    every = [run.environment for run in runs]
    environment = replace(
        every[0],
        platform=_joined([each.platform for each in every]),
        cpu=_joined([each.cpu for each in every]),
        isa=_joined([each.isa for each in every]),
    )
    return replace(
        runs[0],
        environment=environment,
        backends=backends,
        planned=len(backends) * len(runs[0].cases),
        declared={name: said for run in runs for name, said in run.declared.items()},
        debt=tuple({debt.backend: debt for run in runs for debt in run.debt}.values()),
        command=_joined([run.command for run in runs]),
        started=min(run.started for run in runs),
        shard=None,
    )


def _joined(texts: Sequence[str]) -> str:
    return "; ".join(Counter(texts))
