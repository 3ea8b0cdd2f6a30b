"""What a backend is: the protocol that one implements, and the data that crosses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from conformance.errors import Inexpressible
from conformance.record import Declared

if TYPE_CHECKING:
    from torch import Tensor, nn

    from conformance.compare import Rounding
    from conformance.spec import QConfigModel, TensorQParams

Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class About:
    """What a backend says of itself.

    `modes` and `captures` are those it supports. `lacks` are canonical operators, and other features by
    whatever name its refusals give them, that it declares it does not have.
    What is not declared here and refused all the same is a wrong result. `missing` names packages that are not
    installed, without which no case is run. `properties` are what it says of its arithmetic, such as
    ``{"rounding": "half_even"}``: what a case with the mode's own QConfig then shows must agree.
    """

    name: str
    versions: Mapping[str, str]
    modes: frozenset[str]
    captures: frozenset[str]
    lacks: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


def about_of(hello: Mapping[str, Any]) -> About:
    """What a backend says of itself, from a worker's hello. Raises ValueError for what is none."""
    listed = {key: hello.get(key, []) for key in ("modes", "captures", "lacks", "missing")}
    tables = {key: hello.get(key, {}) for key in ("versions", "properties")}
    wrong = [key for key, value in listed.items() if not isinstance(value, list) or not _texts(value)]
    wrong += [k for k, v in tables.items() if not isinstance(v, dict) or not _texts([*v, *v.values()])]
    if wrong or not isinstance(hello.get("name"), str):
        found = str(dict(hello))[:200]
        raise ValueError(f"expected a hello with texts as {', '.join(wrong) or 'name'}, found {found}")
    return About(
        name=hello["name"],
        modes=frozenset(listed["modes"]),
        captures=frozenset(listed["captures"]),
        lacks=frozenset(listed["lacks"]),
        missing=tuple(listed["missing"]),
        **tables,
    )


def _texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def declared(about: About) -> Declared:
    """What a backend says of itself, as the head of a results file keeps it."""
    return Declared(
        versions=dict(about.versions),
        modes=tuple(sorted(about.modes)),
        captures=tuple(sorted(about.captures)),
        lacks=tuple(sorted(about.lacks)),
        missing=about.missing,
        properties=dict(about.properties),
    )


@dataclass(frozen=True)
class Task:
    """What a backend is asked to quantize.

    `module` is a float module in evaluation mode and the backend's own to change. `inputs` are one example call's
    tensors, `calibration` further calls'. `qconfig` is None for the mode's default. `qparams` are not empty where a
    quantized graph is given in which the parameters of inputs, constants and results are known, by name as
    `conformance.case.Case` has them: module and inputs hold floats that are exactly what the integers mean.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    calibration: tuple[tuple[Tensor, ...], ...]
    mode: str
    capture: str
    qconfig: QConfigModel | None = None
    qparams: Mapping[str, TensorQParams | None] = field(default_factory=dict)


def demand_one_size(task: Task, made: str = "the model that it gets is written") -> None:
    """Raise Inexpressible for calibration data of other shapes than the example's, where `made` is for these alone."""
    shapes = {tuple(tuple(x.shape) for x in batch) for batch in (task.inputs, *task.calibration)}
    if len(shapes) > 1:
        raise Inexpressible(f"{made} for one size of batch")


@dataclass(frozen=True)
class Program:
    """A form of a model that can be run.

    `call` takes a task's inputs and returns what the module returns. `ops` are the executed operators by canonical
    name, in order, `native_ops` counts them by the backend's own names. `quanta` holds the step of each output
    tensor, None for one that is not quantized. `graph` is its text for a person.
    """

    call: Callable[..., object]
    ops: tuple[str, ...]
    native_ops: Mapping[str, int] = field(default_factory=dict)
    quanta: tuple[float | None, ...] = ()
    graph: str = ""


@dataclass(frozen=True)
class Explanation:
    """Each rounding that a form made beside the exact number that it rounded; the outputs that follow, in float64."""

    roundings: tuple[Rounding, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class LayerValues:
    """One tensor of a model, in real units, as the float model, the debug form and the final form have it.

    `name` is what the roundings of an `Explanation` know it by, `tensor` its name in the float graph, `operator` what
    made it in the final form, and `made_of` names the layers it was computed from. `group` names the tensor whose
    parameters it shares. `final` is None where the final form has no such tensor. One that is stored as integers has
    the other fields: its parameters, with an entry for each row where each has its own, and in `unrounded` what the
    debug form rounded.
    """

    name: str
    tensor: str
    operator: str
    module_path: str
    source: str
    group: str
    made_of: tuple[str, ...]
    real: Tensor
    debug: Tensor
    final: Tensor | None
    unrounded: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    qmin: int | None = None
    qmax: int | None = None


@dataclass(frozen=True)
class Quantized:
    """What a backend made of a task.

    `debug` is the readable form, None where the backend has none. `explain` takes the name of a form, "debug" or
    "final", and inputs; None where the backend can't tell ties from errors, so that every difference counts. `layers`
    takes inputs and tells the model's tensors in order of execution; None where the backend can't.
    """

    float_ops: Mapping[str, int]
    final: Program
    debug: Program | None = None
    explain: Callable[[str, Sequence[Tensor]], Explanation] | None = None
    layers: Callable[[Sequence[Tensor]], tuple[LayerValues, ...]] | None = None
    float_graph: str = ""
    notes: tuple[str, ...] = ()


class Backend(Protocol):
    """One file implements this; see docs/backend.md."""

    def about(self) -> About:
        """Name, versions and declared capabilities; must not raise and must be quick."""

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Quantize a float module by the backend's own means.

        Each step runs inside ``with stage("name")``, so that times and errors are known by step. Raises
        `conformance.errors.Unsupported` for what the backend can't do; any other exception is a wrong result.
        """
