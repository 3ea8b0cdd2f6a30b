"""The command line: `conformance run | list | show | lint | schema | report | diff | merge | publish | expect`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from conformance.case import find_case
from conformance.command import ENVIRONMENT, FAILED, INTERRUPTED, OK, USAGE, cases_of, write
from conformance.errors import ConformanceError, EnvironmentTrouble, SpecError, UsageError
from conformance.expect_commands import expect
from conformance.results_commands import diff_command, merge_command, publish_command
from conformance.script import script as script_of
from conformance.spec import Capture, Mode, json_schema

if TYPE_CHECKING:
    from conformance.record import Record
    from conformance.run import Plan

SPECS = click.argument("specs", nargs=-1, type=click.Path(path_type=Path))
MODES = click.option(
    "--mode", "modes", multiple=True, type=click.Choice([str(m) for m in Mode]), help="Only this mode; repeatable."
)
CAPTURES = click.option(
    "--capture",
    "captures",
    multiple=True,
    type=click.Choice([str(c) for c in Capture]),
    help="Only this capture; repeatable.",
)
TEXT = click.option("-k", "text", default="", metavar="TEXT", help="Only cases whose id contains TEXT.")
PYTHONS = click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="NAME=PATH",
    help="Run the backend NAME under this interpreter, of another environment; repeatable.",
)
PYTHON = click.option(
    "--allow-python", is_flag=True, help="Let specs import modules by 'python: package.module:factory'."
)


def main() -> None:
    """Run the command line; exit with 0 as expected, 1 failure, 2 mistake in a command or file, 3 environment."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except SpecError as error:
        _fail(f"{error}\n{len(error.mistakes)} mistake(s)", USAGE)
    except EnvironmentTrouble as error:
        _fail(str(error), ENVIRONMENT)
    except ConformanceError as error:
        _fail(str(error), USAGE)


def _fail(text: str, code: int) -> None:
    click.echo(text, err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="quant-conformance", prog_name="conformance")
def cli() -> None:
    """Check quantized PyTorch against declarative specs.

    A spec (*.qspec.yaml) describes a module, its inputs, and what must hold after quantization: which operators run
    in 8 bits, how exactly, and how close to float. Each case ends with one verdict:

    \b
      native       right, and the expected integer operators ran
      fallback     right, but in float or by other operators
      wrong        a check failed, or the backend refused without having declared it
      unsupported  the backend had declared that it can't
      crash, timeout, error, vacuous

    Exit status: 0 as expected (`unsupported` included), 1 a conformance failure or a regression, 2 a mistake in a
    command or a file, 3 trouble with the environment, 130 interrupted.
    """


@cli.command()
@SPECS
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("qlib",),
    metavar="NAME[:TARGET]",
    show_default=True,
    help="Run on this backend; repeatable. `all`: every usual one that `list backends` prints, with all its targets.",
)
@MODES
@CAPTURES
@TEXT
@click.option("-n", "workers", default=1, show_default=True, type=click.IntRange(1), help="How many worker processes.")
@click.option(
    "--timeout",
    "seconds",
    default=60.0,
    show_default=True,
    help="Deadline of a case in a worker, in seconds; its steps have shares of it.",
)
@click.option(
    "-o",
    "--output",
    default=Path("results"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for results.jsonl, report.md and report.html.",
)
@click.option("--shard", metavar="I/N", help="Run one of N shares of the cases; `merge` joins their results.")
@click.option(
    "--resume",
    "resumed",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="RESULTS",
    help="Run what this results file of the same command lacks, or asked otherwise, and append to it.",
)
@PYTHON
@PYTHONS
def run(  # noqa: PLR0913, PLR0917  (one parameter for each option)
    specs: tuple[Path, ...],
    backends: tuple[str, ...],
    modes: tuple[str, ...],
    captures: tuple[str, ...],
    text: str,
    workers: int,
    seconds: float,
    output: Path,
    shard: str | None,
    resumed: Path | None,
    allow_python: bool,
    pythons: tuple[str, ...],
) -> int:
    """Run specs and write the results and reports.

    SPECS are files or folders; without any, the bundled specs are run. A run that was interrupted (exit status 130)
    or killed goes on with the same command and --resume; its reports are written beside its results.
    """
    from conformance.backends import named
    from conformance.interpreters import interpreters
    from conformance.pool import Terms
    from conformance.run import Plan, execute, resume
    from conformance.shard import parse_shard

    elsewhere = interpreters(pythons, backends)
    plan = Plan(
        cases=cases_of(specs, modes, captures, text),
        backends=named(backends, elsewhere),
        workers=workers,
        seconds=seconds,
        terms=Terms(("--allow-python",) if allow_python else (), elsewhere),
        command=shlex.join(["conformance", *sys.argv[1:]]),
        shard=parse_shard(shard) if shard else None,
    )
    if resumed:
        return _run(plan, resume, resumed, plan.command)
    results = output / "results.jsonl"
    return _run(plan, execute, results, f"{plan.command} --resume {shlex.quote(str(results))}")


def _run(plan: Plan, act: Callable[..., list[Record]], results: Path, again: str) -> int:
    """Run the plan by `execute` or `resume` and show what came out; `again` is the command that goes on with it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from conformance.known_file import known_for
    from conformance.pool import HELLO

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console()
    recorded: list[Record] = []
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        bar = progress.add_task("cases", total=len(plan.jobs))

        def show(record: Record) -> None:
            recorded.append(record)
            progress.advance(bar)

        try:
            act(plan, results, known_for, show)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        return _interrupted(recorded, results, again, console)
    written = _write_reports(results, results.parent, console)
    console.print(f"written: {', '.join(map(str, [results, *written]))}", soft_wrap=True)
    if unopened := {record.backend: record.error for record in recorded if record.stage == HELLO}:
        raise EnvironmentTrouble("\n".join(map(str, unopened.values())))
    return FAILED if any(record.failed for record in recorded) else OK


def _interrupted(recorded: Sequence[Record], results: Path, again: str, console: Console) -> int:
    """Show what was recorded and how to go on. Before the first record, the file may still be an earlier run's."""
    from conformance.report import terminal
    from conformance.store import read

    if not recorded:
        click.echo("interrupted; nothing was recorded yet", err=True)
        return INTERRUPTED
    found = read(results)
    terminal.print_to(console, found.run, found.records)
    click.echo(f"interrupted; what was recorded until now is kept in {results}; go on with\n  {again}", err=True)
    return INTERRUPTED


def _write_reports(results: Path, output: Path, console: Console | None) -> list[Path]:
    from conformance.report import html, markdown, terminal
    from conformance.store import read

    found = read(results)
    if console is not None:
        terminal.print_to(console, found.run, found.records)
    written = []
    for name, module in (("report.md", markdown), ("report.html", html)):
        written.append(write(output / name, module.render(found.run, found.records)))
    return written


@cli.command("list")
@click.argument(
    "what", type=click.Choice(["cases", "ops", "observers", "modes", "backends", "checks", "formats", "qconfigs"])
)
@SPECS
@MODES
@CAPTURES
@TEXT
def list_command(
    what: str, specs: tuple[Path, ...], modes: tuple[str, ...], captures: tuple[str, ...], text: str
) -> None:
    """Print what there is: cases (of SPECS or the bundled ones), or the suite's own tables."""
    from conformance.catalog import catalog

    cases = cases_of(specs, modes, captures, text) if what == "cases" else ()
    lines = {case.id: case.why for case in cases} or catalog(what)
    width = min(72, max(map(len, lines), default=0))
    for name, doc in lines.items():
        click.echo(f"{name:<{width}}  {doc}".rstrip())


@cli.command()
@click.argument("case")
@SPECS
@click.option("--backend", default="qlib", show_default=True, metavar="NAME[:TARGET]", help="Run on this backend.")
@click.option("--layers", is_flag=True, help="Also print each tensor of the model: where did the error come from?")
@click.option("--script", is_flag=True, help="Run nothing; print the case as a Python script that stands alone.")
@PYTHON
def show(case: str, specs: tuple[Path, ...], backend: str, layers: bool, script: bool, allow_python: bool) -> int:
    """Run one CASE and print all about it.

    The spec, the module, the float, debug and final graphs side by side, and every finding. CASE is an id as `list
    cases` prints it, as pytest prints it, or the unambiguous beginning of one. With --layers follows a table of the
    model's tensors: range, scale and zero point, share of saturated elements, SQNR of the debug and the final form
    against float, and in how many elements the two differ. With --script only a script is printed, which makes the
    module and the tensors in plain PyTorch, and then runs them on the backend.
    """
    from conformance.backends import open_backend
    from conformance.known_file import marked
    from conformance.show import show as print_case
    from conformance.show import show_layers

    found = find_case(cases_of(specs, (), (), ""), case)
    if script:
        click.echo(script_of(found, backend), nl=False)
        return OK
    opened, console = open_backend(backend), Console()
    trial = print_case(found, opened, backend, console, allow_python)
    if layers:
        show_layers(found, trial, console)
    return FAILED if marked(trial.record, opened.about().versions).failed else OK


@cli.command()
@click.argument("case")
@SPECS
@click.option("--onnx", "target", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file.")
@PYTHON
def export(case: str, specs: tuple[Path, ...], target: Path, allow_python: bool) -> None:
    """Write the debug form of one CASE as an ONNX model.

    The bundled library quantizes the case's module; what it makes is written with QuantizeLinear and DequantizeLinear
    around float operators, checked by ONNX's checker. Needs the package onnx.
    """
    from conformance.backends.qlib import debug_of
    from conformance.engine import Stages, task_of
    from conformance.errors import Inexpressible

    found = find_case(cases_of(specs, (), (), ""), case)
    try:
        model, _ = debug_of(task_of(found, allow_python), Stages(), found.id)
    except Inexpressible as error:
        raise UsageError(str(error)) from error
    try:
        target.write_bytes(model.SerializeToString())
    except OSError as error:
        raise EnvironmentTrouble(f"{target}: can't be written ({error})") from error
    click.echo(f"written: {target}")


@cli.command()
@SPECS
def lint(specs: tuple[Path, ...]) -> None:
    """Check spec files without running them; needs no torch.

    Every mistake is printed as file:line:column with the line.
    """
    cases = cases_of(specs, (), (), "")
    files = {case.path for case in cases}
    click.echo(
        f"{len(files)} files, {len({(c.suite, c.spec_id) for c in cases})} specs, {len(cases)} cases: no mistakes"
    )


@cli.command()
@click.argument("what", default="specs", type=click.Choice(["specs", "expected"]))
def schema(what: str) -> None:
    """Print the JSON Schema of spec files, or of files of known failures, for editors."""
    from conformance.known import known_schema

    click.echo(json.dumps({"specs": json_schema, "expected": known_schema}[what](), indent=2))


@cli.command()
@click.argument("results", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--format", "name", default="terminal", show_default=True, help="One of those that `list formats` prints."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file instead of the terminal.",
)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this backend's records; repeatable.")
@click.option(
    "--against",
    "earlier",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="EARLIER",
    help="Mark in the HTML page what changed since this earlier results file.",
)
def report(results: Path, name: str, output: Path | None, backends: tuple[str, ...], earlier: Path | None) -> None:
    """Render a results file of `conformance run`; runs nothing.

    With --backend the report is about that backend alone: a badge for each is made so. With --against the HTML page
    filters and marks what regressed; `conformance diff` says it in the other formats.
    """
    from conformance.results_commands import changes_since, read_whole, rendered
    from conformance.store import of_backends

    found = of_backends(read_whole(results), backends)
    text = rendered(name, found, changes_since(earlier, found) if earlier else None)
    if output is None:
        click.echo(text)
    else:
        click.echo(f"written: {write(output, text)}")


for command in (diff_command, merge_command, publish_command, expect):
    cli.add_command(command)

if __name__ == "__main__":
    main()
