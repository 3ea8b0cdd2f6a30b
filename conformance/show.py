"""`conformance show`: one case in full, with its graphs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.backend import Backend
from conformance.backends import REFERENCE, open_backend
from conformance.case import Case
from conformance.engine import Limits, Trial, layers_of, run_case
from conformance.inputs import inputs_of
from conformance.record import Layer
from conformance.report.layers import decibels, number, step, story, where
from conformance.report.text import explain

# Of the table of layers: the two lines of each heading, and the side that the cells stand on.
COLUMNS: Final[tuple[tuple[str, str, Literal["left", "right"]], ...]] = (
    ("", "", "left"),
    ("tensor", "made by", "left"),
    ("in", "as", "left"),
    ("float range", "scale, zero", "left"),
    ("elements", "saturated", "right"),
    ("debug dB", "final dB", "right"),
    ("differ", "", "right"),
)
# More columns of text than this would only put the cells of a row far from each other.
WIDEST: Final = 110


def show(case: Case, backend: Backend, name: str, console: Console, allow_python: bool = False) -> Trial:
    """Run a case and print the spec, the module, the float, debug and final graphs, and the findings."""
    from conformance.modules import build

    console.rule(Text(case.id))
    console.print(Text(f"{case.path}:{case.line}   seed {case.seed}   backend {name}\n"))
    console.print(Text(case.yaml.rstrip() + "\n"))
    trial = run_case(case, backend, name, Limits(allow_python=allow_python, reference=open_backend(REFERENCE)))
    if trial.quantized is not None:
        console.print(Text(str(build(case, allow_python)) + "\n"))
        console.print(graph_table(trial, console.width))
    console.print(Text(explain(trial.record)))
    for note in trial.record.notes:
        console.print(Text(note))
    seconds = "  ".join(f"{stage} {1000 * spent:.1f}" for stage, spent in trial.record.seconds.items())
    console.print(Text(f"\nmilliseconds: {seconds}"))
    return trial


def show_layers(case: Case, trial: Trial, console: Console) -> None:
    """Print each tensor of a case that was run, in order of execution, and say in words where the error came from."""
    if trial.quantized is None or trial.evidence is None:
        console.print(Text("\nlayers: the case did not get as far as having any"))
        return
    layers = layers_of(trial.quantized, inputs_of(case), trial.evidence)
    if not layers:
        told = "this backend can't tell its layers" if layers is None else "nothing was quantized"
        console.print(Text(f"\nlayers: {told}"))
        return
    console.print()
    console.print(layer_table(layers, console.width))
    for sentence in story(layers).words:
        console.print(Text(sentence))


def layer_table(layers: Sequence[Layer], width: int) -> Table:
    """Two lines for each layer; the first where debug and final part and the largest drop of SQNR are marked."""
    found = story(layers)
    table = Table(width=min(width, WIDEST), box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for above, below, justify in COLUMNS:
        table.add_column(f"{above}\n{below}", justify=justify, overflow="fold", no_wrap=justify == "right")
    for place, layer in enumerate(layers):
        marks = ["≠"] * (place == found.parted) + ["▼"] * (place == found.dropped)
        cells = (
            (" ".join(marks), ""),
            (layer.tensor, layer.operator.removeprefix("quantized::")),
            (where(layer), "" if layer.group == layer.tensor else layer.group),
            (f"{layer.low:.4g} … {layer.high:.4g}", step(layer)),
            (str(layer.elements), number(layer.saturated)),
            (decibels(layer.sqnr_debug_db), decibels(layer.sqnr_final_db)),
            (number(layer.differing), ""),
        )
        table.add_row(*(Text("\n".join(cell)) for cell in cells), style="bold" if marks else "")
    return table


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
    table = Table(width=width, expand=True, show_lines=False)
    for name in found:
        table.add_column(name, overflow="fold")
    for row in zip_longest(*(text.splitlines() for text in found.values()), fillvalue=""):
        table.add_row(*(Text(cell.strip()) for cell in row))
    return table


def graphs_of(trial: Trial) -> str:
    """The debug and the final graph as text, for the report of a failing test."""
    found = forms(trial)
    return "".join(f"\n\n{name} graph:\n{found[name]}" for name in ("debug", "final") if name in found)
