"""The commands `expect lint` and `expect update`, which keep the files of known failures true."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import click

from conformance.backends import offered
from conformance.command import cases_of, write
from conformance.errors import Mistake, SpecError, UsageError, nearest
from conformance.known import apply, expected
from conformance.known_file import FOLDER, load_known, path_of
from conformance.known_lint import Evidence, mistakes_in
from conformance.known_update import appended, entry_text, groups
from conformance.places import bundled_specs
from conformance.record import Subject, Verdict, subject_of
from conformance.store import Results, meant, read

RESULTS = click.Path(path_type=Path, dir_okay=False)
SPECS = click.option(
    "--specs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Spec files or folders that entries may name; repeatable. Without any, the bundled specs.",
)
HEADER = """\
# Known failures of {name}: each entry needs a case, the verdict that it ends in, and a reason.
# `conformance expect lint` finds those that are not true any more.
"""
MODELINE = "# yaml-language-server: $schema=schema.json\n"


@click.group()
def expect() -> None:
    """Maintain the files of known failures.

    A backend's file is expected/NAME.yaml: in the suite's specs for a backend that the suite brings, and beside the
    module that the entry point names for one that another distribution offers.
    """


@expect.command()
@click.argument("results", required=False, type=RESULTS)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this backend's file; repeatable.")
@SPECS
def lint(results: Path | None, backends: tuple[str, ...], specs: tuple[Path, ...]) -> None:
    """Check files of known failures without running anything.

    Entries that name no case and those that have expired are mistakes, printed as file:line:column with the line.
    With RESULTS, those whose cases pass now or fail in another way are too. Exit status 2 where there is a mistake.
    """
    subjects = [subject_of(case) for case in cases_of(specs)]
    found = read(results) if results else None
    today = datetime.date.today()
    stems = {backend.partition(":")[0] for backend in backends}
    if unknown := sorted(stems - offered().keys()):
        raise UsageError(f"no backend is named {unknown[0]!r}.{nearest(unknown[0], offered())}")
    mistakes: list[Mistake] = [] if backends else _ownerless()
    entries = files = 0
    for name in sorted(stems) or offered():
        path = path_of(name)
        if path is None or not path.exists():
            continue
        try:
            file = load_known(path)
        except SpecError as error:
            mistakes += error.mistakes
            continue
        files, entries = files + 1, entries + len(file.entries)
        mistakes += mistakes_in(file, _evidence(name, subjects, found, today))
    if mistakes:
        raise SpecError(mistakes)
    held = "" if found else "; give RESULTS to find the stale"
    click.echo(f"{files} files, {entries} known failures: no mistakes{held}")


def _ownerless() -> list[Mistake]:
    """Files among the suite's own that belong to no backend."""
    paths = sorted((bundled_specs() / FOLDER).glob("*.yaml"))
    return [
        Mistake(str(path), 1, 1, f"no backend is named {path.stem!r}, so that this is never read.")
        for path in paths
        if path_of(path.stem) != path or path.stem not in offered()
    ]


def _evidence(name: str, subjects: Sequence[Subject], found: Results | None, today: datetime.date) -> Evidence:
    if found is None:
        return Evidence(subjects, today)
    records = [record for record in found.records if record.backend.partition(":")[0] == name]
    versions = {each: said for each, said in found.run.versions.items() if each.partition(":")[0] == name}
    return Evidence(subjects, today, records, versions)


@expect.command()
@click.argument("results", type=RESULTS)
@click.option("--backend", "backends", multiple=True, metavar="NAME[:TARGET]", help="Only this one's; repeatable.")
@click.option("--reason", metavar="TEXT", help="Why they fail; without it, the first failed finding of each.")
@SPECS
def update(results: Path, backends: tuple[str, ...], reason: str | None, specs: tuple[Path, ...]) -> None:
    """Add an entry for every unexpected failure in RESULTS.

    Failures of a spec that end alike become one entry, which names no case that has not failed so. What stands in the
    files stays as it is; entries that are stale are for `expect lint` to find and for you to remove. Records with the
    verdict `error` are the harness's trouble and are not written.
    """
    found = read(results)
    chosen = meant(found.run.backends, backends)
    subjects = [subject_of(case) for case in cases_of(specs)]
    for backend in chosen:
        click.echo(_updated(backend, found, subjects, reason))


def _updated(backend: str, found: Results, subjects: Sequence[Subject], reason: str | None) -> str:
    """Add one backend's entries to its file and say so."""
    path, today = path_of(backend), datetime.date.today()
    if path is None:
        raise UsageError(f"backend {backend!r} has no place for its file: its module can't be found")
    file = load_known(path)
    known = expected([entry.known for entry in file.entries], backend, found.run.versions.get(backend, {}), today)
    own = [record for record in found.records if record.backend == backend]
    # By the file as it is now, so that doing this twice adds nothing.
    judged = [apply(record, known) for record in own]
    failed = [record for record in judged if record.failed and not record.unexpected_pass]
    harness = [record for record in failed if record.verdict is Verdict.ERROR]
    gathered = groups([record for record in failed if record.verdict is not Verdict.ERROR], subjects)
    left = f"; {len(harness)} of verdict error are not written" if harness else ""
    if not gathered:
        return f"{backend}: nothing to add{left}"
    if path.exists():
        text = path.read_bytes().decode("utf-8")
    else:
        text = (MODELINE if (path.parent / "schema.json").exists() else "") + HEADER.format(name=path.stem)
    write(path, appended(text, file, [entry_text(group, reason, today) for group in gathered]))
    cases = sum(group.count for group in gathered)
    return f"{backend}: {len(gathered)} entries for {cases} cases added to {path}{left}"
