"""Running one case on one backend: build, quantize, run, judge; every way that it can end is a record."""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from conformance.backend import About, Backend, Quantized, Task
from conformance.bounds import bounded
from conformance.case import Case
from conformance.checks import correctness, judge, undecided, verdict
from conformance.compare import Rounding, sqnr_db
from conformance.deadline import DeadlinePassed, deadline
from conformance.errors import ConformanceError, Crashed, Inexpressible, ReferenceFailed, Unsupported
from conformance.inputs import calibration_of, inputs_of
from conformance.layers import measure_layer
from conformance.measures import measure
from conformance.modules import build
from conformance.observation import Evidence
from conformance.properties import histogram, properties_of, said_of, scheme_of
from conformance.record import Layer, Record, Verdict, subject_of
from conformance.rounding import identify
from conformance.vocabulary import Mode

# Steps that the harness makes; an exception in any other one is the backend's.
OURS = frozenset({"build", "reference", "judge"})
CASE_SECONDS = 60.0
Announce = Callable[[str], None]
_ENDS = {Crashed: (Verdict.CRASH, "{}"), Inexpressible: (Verdict.UNSUPPORTED, "can't be put to this backend: {}")}


def _silent(step: str) -> None:
    """Tell nobody."""


@dataclass
class Stages:
    """Seconds spent in each step, and the step that was under way last; `announce` hears of each as it begins."""

    announce: Announce = _silent
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = "build"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a step; where it raises, `current` keeps its name."""
        self.current = name
        self.announce(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def rest(self, name: str) -> Iterator[None]:
        """Count as one step what passes outside of the steps within, and what is raised before the first of them."""
        self.current = name
        start, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            told = sum(self.seconds.values()) - before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - told


@dataclass(frozen=True)
class Trial:
    """A case that ran to its end: the record, and what it was concluded from."""

    record: Record
    quantized: Quantized | None = None
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Limits:
    """What a case may do: how long it may take in this process (None: for ever), and whether it may bring Python.

    `reference` is what a backend's accuracy is compared with, where a spec asks for that; None for no comparison.
    """

    seconds: float | None = CASE_SECONDS
    allow_python: bool = False
    reference: Backend | None = None


def run_case(
    case: Case, backend: Backend, name: str, limits: Limits | None = None, announce: Announce = _silent
) -> Trial:
    """Run `case` on `backend`, called `name` in the record; never raises for what the case or the backend does.

    `announce` is told the name of each step as it begins.
    """
    trial = _tried(case, backend, name, Stages(announce), limits or Limits())
    return replace(trial, record=bounded(trial.record))


def _tried(case: Case, backend: Backend, name: str, stages: Stages, limits: Limits) -> Trial:
    lacks: frozenset[str] = frozenset()
    try:
        about = backend.about()
        lacks = about.lacks
        if (gap := _gap(about, case)) is not None:
            return Trial(_record(case, name, stages, Verdict.UNSUPPORTED, error=gap))
        with _one_thread(), _seeded(case.seed), deadline(limits.seconds and (case.timeout or limits.seconds)):
            return _run(case, backend, name, stages, limits)
    except DeadlinePassed as passed:
        return Trial(_record(case, name, stages, Verdict.TIMEOUT, error=str(passed)))
    except Unsupported as refusal:
        declared = bool(lacks & {*case.expect.ops, refusal.feature})
        found = Verdict.UNSUPPORTED if declared else Verdict.WRONG
        text = f"{refusal}" if declared else f"refused without having declared it: {refusal}"
        return Trial(_record(case, name, stages, found, error=text))
    except (Crashed, Inexpressible) as end:
        found, text = _ENDS[type(end)]
        return Trial(_record(case, name, stages, found, error=text.format(end)))
    except Exception as error:
        ours = stages.current in OURS
        text = str(error) if isinstance(error, ConformanceError) else traceback.format_exc()
        return Trial(_record(case, name, stages, Verdict.ERROR if ours else Verdict.WRONG, error=text))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Cases are too small to gain from threads, and other cases run beside this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Dropout in training and whatever else a backend draws by torch's generator is the same in each run of a case."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _gap(about: About, case: Case) -> str | None:
    """What the backend declares that it lacks for this case."""
    if about.missing:
        return f"not installed: {', '.join(about.missing)}"
    if str(case.mode) not in about.modes:
        return f"declares no mode {case.mode}"
    if str(case.capture) not in about.captures and case.mode is not Mode.NUMERICS:
        return f"declares no capture {case.capture}"
    return None


def _record(case: Case, name: str, stages: Stages, found: Verdict, error: str | None = None) -> Record:
    return Record(
        subject=subject_of(case),
        backend=name,
        verdict=found,
        stage=stages.current,
        error=error,
        expected_ops=dict(case.expect.ops),
        seconds=dict(stages.seconds),
    )


def task_of(case: Case, allow_python: bool = False) -> Task:
    """What a backend is asked for `case`."""
    module, inputs = build(case, allow_python), inputs_of(case)
    # The calibration's tensors are their own: a module that changes its inputs does so during calibration too.
    batches = calibration_of(case, fresh(inputs))
    return Task(module, inputs, batches, str(case.mode), str(case.capture), case.qconfig, case.qparams)


def _run(case: Case, backend: Backend, name: str, stages: Stages, limits: Limits) -> Trial:
    with stages("build"):
        task = task_of(case, limits.allow_python)
        module, inputs = copy.deepcopy(task.module), fresh(task.inputs)
    with stages.rest("quantize"):
        quantized = backend.quantize(task, stages)
    with stages("run"):
        evidence = observe(module, inputs, quantized)
        if case.expect.layers is not None:
            evidence = replace(evidence, layers=layers_of(quantized, inputs, evidence))
        if case.mode is Mode.NUMERICS and evidence.explained is not None:
            evidence = replace(evidence, rule=identify(evidence.explained.roundings))
    evidence = _beside_the_reference(evidence, case, backend, stages, limits)
    with stages("judge"):
        evidence = replace(evidence, declared=said_of(backend.about(), case.qconfig))
        if case.mode is Mode.DYNAMIC:
            evidence = replace(evidence, scheme=scheme_of(evidence))
        findings = judge(evidence, case.expect)
        measures = measure(evidence)
    found = verdict(findings, correctness(evidence))
    record = Record(
        subject=subject_of(case),
        backend=name,
        verdict=found,
        stage=None if found is Verdict.NATIVE else "judge",
        findings=findings,
        expected_ops=dict(case.expect.ops),
        float_ops=dict(evidence.float_ops),
        executed_ops=dict(evidence.ops),
        native_ops=dict(quantized.final.native_ops),
        measures=measures,
        seconds=dict(stages.seconds),
        notes=quantized.notes,
        layers=evidence.layers or (),
        properties=properties_of(evidence),
        histogram=histogram(evidence),
    )
    return Trial(record, quantized, evidence)


def observe(module: torch.nn.Module, inputs: Sequence[Tensor], quantized: Quantized) -> Evidence:
    """Call the float module, the debug form and twice the final form, each on its own copy of `inputs`."""
    with torch.no_grad():
        after_float, after, final = fresh(inputs), fresh(inputs), quantized.final
        float_outputs = tensors(module(*after_float))
        outputs = tensors(final.call(*after))
        repeated = tensors(final.call(*fresh(inputs)))
        debug = None if quantized.debug is None else tensors(quantized.debug.call(*fresh(inputs)))
        explain = quantized.explain
        return Evidence(
            float_outputs=float_outputs,
            outputs=outputs,
            repeated=repeated,
            debug_outputs=debug,
            quanta=final.quanta or (None,) * len(outputs),
            float_ops=quantized.float_ops,
            ops=count(final.ops),
            sequence=final.ops,
            native_ops=final.native_ops,
            explained=explain("final", fresh(inputs)) if explain else None,
            debug_explained=explain("debug", fresh(inputs)) if explain and debug is not None else None,
            inputs_after_float=after_float,
            inputs_after=after,
        )


def _beside_the_reference(evidence: Evidence, case: Case, backend: Backend, stages: Stages, limits: Limits) -> Evidence:
    """The evidence with what the reference has, where the spec compares with it or it alone tells if 8 bits ran.

    Raises ReferenceFailed where the spec asks for the comparison and the reference fails.
    """
    bounds, reference = case.expect.accuracy, limits.reference
    compared = bounds is not None and bounds.below_reference_db is not None
    if reference is None or reference == backend or not (compared or undecided(evidence)):
        return evidence
    with stages("reference"), nullcontext() if compared else suppress(ReferenceFailed):
        return _with_reference(evidence, reference, task_of(case, limits.allow_python))
    return evidence


def _with_reference(evidence: Evidence, reference: Backend, task: Task) -> Evidence:
    """The evidence with the operators and the signal to noise in dB of the reference, its steps not told apart.

    Raises ReferenceFailed where it fails, or gives no number.
    """
    module, inputs = copy.deepcopy(task.module), task.inputs
    try:
        quantized = reference.quantize(replace(task, inputs=fresh(inputs)), lambda step: nullcontext())
        with torch.no_grad():
            expected, got = tensors(module(*fresh(inputs))), tensors(quantized.final.call(*fresh(inputs)))
        found = sqnr_db(expected, got)
    except DeadlinePassed:
        raise
    except Exception as error:
        raise ReferenceFailed(f"the reference failed on this case ({type(error).__name__}: {error})") from error
    if math.isnan(found) and any(x.numel() for x in expected):
        raise ReferenceFailed("the reference gives no finite output on this case")
    return replace(evidence, reference_sqnr_db=found, reference_ops=count(quantized.final.ops))


def layers_of(quantized: Quantized, inputs: Sequence[Tensor], evidence: Evidence) -> tuple[Layer, ...] | None:
    """Measure a model's tensors one by one on the inputs of `evidence`; None where the backend can't tell them."""
    if quantized.layers is None:
        return None
    roundings: dict[str, list[Rounding]] = {}
    for explained in (evidence.explained, evidence.debug_explained):
        for rounding in explained.roundings if explained is not None else ():
            roundings.setdefault(rounding.name, []).append(rounding)
    return tuple(
        measure_layer(values, roundings.get(values.name, ()))
        for values in quantized.layers(inputs)
        if values.real.numel()
    )


def fresh(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of the tensors of a call."""
    return tuple(x.clone() for x in inputs)


def tensors(result: object) -> tuple[Tensor, ...]:
    """The tensors in what a module returned, nesting flattened, in order."""
    return tuple(x.detach() for x in pytree.tree_leaves(result) if isinstance(x, Tensor))


def count(names: Sequence[str]) -> dict[str, int]:
    """How often each name occurs, sorted by name."""
    return dict(sorted(Counter(names).items()))
