"""`conformance show`: one case in full, with its graphs side by side."""

from __future__ import annotations

from itertools import zip_longest

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.backend import Backend
from conformance.case import Case
from conformance.engine import Limits, Trial, run_case
from conformance.report.text import explain


def show(case: Case, backend: Backend, name: str, console: Console, allow_python: bool = False) -> Trial:
    """Run a case and print the spec, the module, the float, debug and final graphs, and the findings."""
    from conformance.modules import build

    console.rule(Text(case.id))
    console.print(Text(f"{case.path}:{case.line}   seed {case.seed}   backend {name}\n"))
    console.print(Text(case.yaml.rstrip() + "\n"))
    trial = run_case(case, backend, name, Limits(allow_python=allow_python))
    if trial.quantized is not None:
        console.print(Text(str(build(case, allow_python)) + "\n"))
        console.print(graph_table(trial, console.width))
    console.print(Text(explain(trial.record)))
    for note in trial.record.notes:
        console.print(Text(note))
    seconds = "  ".join(f"{stage} {1000 * spent:.1f}" for stage, spent in trial.record.seconds.items())
    console.print(Text(f"\nmilliseconds: {seconds}"))
    return trial


def forms(trial: Trial) -> dict[str, str]:
    """The texts of the graphs that there are: float, debug, final."""
    if trial.quantized is None:
        return {}
    programs = {"debug": trial.quantized.debug, "final": trial.quantized.final}
    graphs = {name: program.graph for name, program in programs.items() if program is not None}
    return {name: text for name, text in {"float": trial.quantized.float_graph, **graphs}.items() if text}


def graph_table(trial: Trial, width: int) -> Table:
    """The graphs side by side, one column each, long lines folded."""
    found = forms(trial)
    table = Table(*found, width=width, expand=True, show_lines=False)
    for row in zip_longest(*(text.splitlines() for text in found.values()), fillvalue=""):
        table.add_row(*(Text(cell.strip()) for cell in row))
    return table


def graphs_of(trial: Trial) -> str:
    """The debug and the final graph as text, for the report of a failing test."""
    found = forms(trial)
    return "".join(f"\n\n{name} graph:\n{found[name]}" for name in ("debug", "final") if name in found)
