"""The commands `diff`, `merge` and `publish`, which read results files and run nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from conformance.catalog import renderer
from conformance.command import FAILED, OK, USAGE, write
from conformance.diff import Change, Difference, Kind, compare
from conformance.errors import UsageError
from conformance.merge import merge
from conformance.placeless import placeless
from conformance.report.difference import FORMATS
from conformance.store import COMPRESSED, Results, of_backends, read, write_all, write_compressed

MOST = 20
# Formats of badges and the suffixes of their files.
BADGES: Final = {"badge-svg": ".svg", "badge-json": ".json"}
RESULTS = click.Path(path_type=Path, dir_okay=False)


def read_whole(path: Path) -> Results:
    """Read a results file; lines that can't be read are said to be left out."""
    found = read(path)
    if found.damaged:
        click.echo(f"{path}: {found.damaged} line(s) could not be read and are left out", err=True)
    return found


def changes_since(earlier: Path, found: Results) -> tuple[Change, ...]:
    """What changed from an earlier results file; raises UsageError where no case is in both."""
    return compare(read_whole(earlier), found).changes


def rendered(name: str, found: Results, changes: tuple[Change, ...] | None) -> str:
    """A report in one format; raises UsageError where there are changes and the format can't show them."""
    if changes is None:
        return renderer(name)(found.run, found.records)
    if name != "html":
        raise UsageError(f"--against goes with --format html, found {name!r}: use `conformance diff` for other formats")
    from conformance.report import html

    return html.render(found.run, found.records, changes)


@click.command("diff")
@click.argument("before", type=RESULTS)
@click.argument("after", type=RESULTS)
@click.option("--format", "name", default="terminal", show_default=True, type=click.Choice(list(FORMATS)))
@click.option("-o", "--output", type=RESULTS, help="Write to this file instead of the terminal.")
def diff_command(before: Path, after: Path, name: str, output: Path | None) -> int:
    """Compare two results files, case by case.

    A case regressed or improved where its verdict did (native, fallback, unsupported, vacuous, wrong, timeout, crash,
    error); it changed where its operators, failed checks, distance in quanta, or signal to noise by more than 1 dB did.
    Versions and machines may differ and are listed. Seconds are not compared.

    A case can only be compared where both files ask the same: its spec with the matrix's values put in, and its
    seed. Others are incomparable, and so are all cases of files of older versions of the suite, which did not say.

    \b
    Exit status:
      0  no case regressed, or only such as the second file knows to fail; changed, added
         and removed cases are listed and are no failure
      1  a case regressed, or the second file's run is incomplete
      2  a case is incomparable, whatever else was found; or the files have no case in common
    """
    difference = compare(read_whole(before), read_whole(after))
    text = FORMATS[name](difference)
    if output is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"written: {write(output, text)}")
    return _status(difference)


def _status(difference: Difference) -> int:
    if difference.of(Kind.INCOMPARABLE):
        return USAGE
    return FAILED if difference.missing or any(change.counts for change in difference.changes) else OK


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=RESULTS)
@click.option("-o", "--output", required=True, type=RESULTS, help="The results file to write.")
def merge_command(parts: tuple[Path, ...], output: Path) -> int:
    """Join results files of the same cases into one, from which `report`, `diff` and `expect` go on.

    They are shards, as `run --shard i/n` makes them, or runs of different backends, or both. They must be of the same
    specs, options and package versions; machines may differ.

    \b
    Exit status:
      0  every planned case is there once
      1  planned cases are missing; those that are there are written
      2  the files are not of the same cases, or a case is in two of them
    """
    merged = merge([(path, read_whole(path)) for path in parts])
    write_all(output, merged.results)
    click.echo(f"written: {output} ({len(merged.results.records)} of {merged.results.run.planned} records)")
    if not merged.missing:
        return OK
    lines = [f"  {case} on {backend}" for backend, case in merged.missing[:MOST]]
    more = [f"  and {len(merged.missing) - MOST} more"] if len(merged.missing) > MOST else []
    click.echo("\n".join([f"{len(merged.missing)} planned record(s) are missing:", *lines, *more]), err=True)
    return FAILED


@click.command("publish")
@click.argument("results", type=RESULTS)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def publish_command(results: Path, folder: Path) -> int:
    """Write a folder that stands on its own: README.md, report.html, badges and the RESULTS, compressed.

    Files are named in it from this folder or from their package on, whatever folders the results were made in. A file
    FINDINGS.md in the folder is kept as it is, and its headings are listed in README.md. Every command that reads
    results reads the compressed ones too.
    """
    from conformance.report import html, index

    found, findings = placeless(read_whole(results), Path.cwd()), folder / "FINDINGS.md"
    links = {"the report as a page": "report.html", "every record": f"results.jsonl{COMPRESSED}"}
    if findings.is_file():
        links["the findings"] = findings.name
    text = findings.read_text(encoding="utf-8") if findings.is_file() else ""
    write(folder / "README.md", index.render(found.run, found.records, links, text))
    write(folder / "report.html", html.render(found.run, found.records))
    _write_badges(folder / "badges", found)
    write_compressed(folder / f"results.jsonl{COMPRESSED}", found)
    click.echo(f"written: {folder} ({len(found.records)} of {found.run.planned} records)")
    return OK


def _write_badges(folder: Path, found: Results) -> None:
    """A picture and the JSON for shields of each backend, in files of its name."""
    for backend in found.run.backends:
        alone = of_backends(found, (backend,))
        for name, suffix in BADGES.items():
            path = folder / f"{re.sub(r'[^a-zA-Z0-9_-]+', '-', backend)}{suffix}"
            write(path, renderer(name)(alone.run, alone.records))
