"""The checks: one function per key of `expect:`, and those that are always made. Evidence in, findings out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from conformance.compare import Rounding, max_abs, off_grid, tally
from conformance.identified import contradicts
from conformance.measures import bounds_of, distances
from conformance.observation import Evidence
from conformance.properties import properties_of
from conformance.record import Finding, Outcome, Verdict
from conformance.spec import ModeExpect

# A float32 step from an exact multiple: outputs are dequantized in float32.
GRID = 2.0**-7
# From the least 8-bit integer to the largest.
STEPS = 255
# Far above what float32 loses in the sums of one layer, relative to the largest result, and far below what one step of
# 8 bits in one of the terms makes.
FLOAT_SUMS = 2.0**-14

Check = Callable[[Evidence, ModeExpect], Finding | None]


def _finding(check: str, held: bool, expected: str, got: str) -> Finding:
    return Finding(check, Outcome.HELD if held else Outcome.FAILED, expected, got)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"


def structure(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """As many outputs as the float model has, each of the same shape and type, and a step told of each or of none."""
    want, got = _forms(evidence.float_outputs), _forms(evidence.outputs)
    steps = len(evidence.quanta)
    if want == got and steps != len(got):
        return _finding("structure", False, f"steps of {len(got)} outputs", f"steps of {steps}")
    return _finding("structure", want == got, f"outputs {_listed(want)}", f"outputs {_listed(got)}")


def _forms(outputs: Sequence[torch.Tensor]) -> list[str]:
    return [f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in outputs]


def _listed(forms: Sequence[str]) -> str:
    return ", ".join(forms) or "none"


def repeatable(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """A second call on the same inputs gives the same outputs."""
    pairs = list(zip(evidence.outputs, evidence.repeated, strict=False))
    same = len(evidence.outputs) == len(evidence.repeated) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs
    )
    distance = max((max_abs([a], [b]) for a, b in pairs if a.shape == b.shape), default=math.inf)
    return _finding(
        "repeatable", same, "equal outputs from a second call", "equal" if same else f"off by {distance:.3g}"
    )


def inputs(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """The inputs are changed where the module changes them, and nowhere else."""
    pairs = zip(evidence.inputs_after_float, evidence.inputs_after, strict=True)
    changed = [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    return _finding(
        "inputs",
        not changed,
        "inputs left as the float model leaves them",
        f"differ: arguments {changed}" if changed else "same",
    )


def really_ran(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Outputs can have come from the 8-bit operators that are claimed: on the grid, and not the float model's own.

    Float's own they may be where 8 bits give just these numbers, see `_unseen`.
    """
    if not _claimed(evidence) or not any(x.numel() for x in evidence.outputs):
        return None
    distance = off_grid(evidence.outputs, evidence.quanta)
    if distance > GRID:
        return _finding(
            "really_ran", False, "outputs that are multiples of their step", f"{distance:.3g} quanta off the grid"
        )
    same = _equal(evidence.float_outputs, evidence.outputs)
    got = "bit for bit the float model's outputs" if same else "outputs of their own"
    return _finding("really_ran", not same or _unseen(evidence), "outputs that differ from float as 8 bits must", got)


def undecided(evidence: Evidence) -> bool:
    """Whether the outputs are float's own and only the reference can tell if 8 bits give the same."""
    same = bool(_claimed(evidence)) and _equal(evidence.float_outputs, evidence.outputs)
    return same and bool(evidence.native_ops) and not _unseen(evidence)


def _claimed(evidence: Evidence) -> list[str]:
    return [name for name in evidence.ops if name.startswith("quantized::")]


def _equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return [x.shape for x in one] == [x.shape for x in other] and max_abs(one, other) == 0.0


def _unseen(evidence: Evidence) -> bool:
    """Whether 8 bits give float's own numbers here, so that numbers can't tell which of the two ran.

    The backend's debug form shows that. So do outputs that 256 multiples of their steps hold, and the reference where
    its own 8 bits give these numbers by an operator that is claimed; but since they show nothing of this backend, it
    must then name the operators that it executed by its own names.
    """
    if evidence.debug_outputs is not None and _equal(evidence.float_outputs, evidence.debug_outputs):
        return True
    alike = any(name in evidence.reference_ops for name in _claimed(evidence))
    reference = alike and evidence.reference_sqnr_db == math.inf
    return bool(evidence.native_ops) and (reference or _fit(evidence.outputs, evidence.quanta))


def _fit(outputs: Sequence[torch.Tensor], quanta: Sequence[float | None]) -> bool:
    """Whether 8 bits can hold every output, which are multiples of their steps: zero is always one of them."""
    spans = [
        math.inf if step is None else float(x.amax().clamp(min=0) - x.amin().clamp(max=0)) / step
        for x, step in zip(outputs, quanta, strict=True)
        if x.numel()
    ]
    return all(span <= STEPS + GRID for span in spans)


def ops(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Exact counts of operators, by canonical name."""
    if not expect.ops:
        return None
    got = {name: evidence.ops.get(name, 0) for name in expect.ops}
    return _finding("ops", got == dict(expect.ops), _counts(expect.ops), _counts(evidence.ops))


def absent(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Operators that the float graph has and the quantized one must not."""
    if not expect.absent:
        return None
    names = ", ".join(expect.absent)
    never = [name for name in expect.absent if name not in evidence.float_ops]
    if never:
        return Finding("absent", Outcome.VACUOUS, f"no {names}", f"{', '.join(never)} is not in the float graph either")
    left = {name: evidence.ops[name] for name in expect.absent if name in evidence.ops}
    return _finding("absent", not left, f"no {names}", _counts(left))


def order(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Operators that are executed one after the other, others between them allowed."""
    if not expect.order:
        return None
    sequence = iter(evidence.sequence)
    held = all(name in sequence for name in expect.order)
    return _finding("order", held, " → ".join(expect.order), " → ".join(evidence.sequence) or "none")


def debug_equal(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """The final form computes the debug form's integers, ties told apart."""
    if expect.debug_equal is None or evidence.debug_outputs is None:
        return None
    wanted = f"{expect.debug_equal:g} quanta but for ties"
    if evidence.explained is None:
        return _debug_unexplained(evidence, expect.debug_equal, evidence.debug_outputs)
    forms = [("final", evidence.explained, evidence.outputs)]
    if evidence.debug_explained is not None:
        forms.append(("debug", evidence.debug_explained, evidence.debug_outputs))
    for form, explained, outputs in forms:
        counts = tally(_unruled(evidence, form, explained.roundings))
        if counts.wrong and counts.worst > expect.debug_equal:
            got = f"{form} form: {counts.wrong} of {counts.all} values wrong, "
            return _finding("debug_equal", False, wanted, got + f"by up to {counts.worst:.3g} at {counts.where}")
        distance = _unexplained(outputs, explained.outputs, evidence.quanta)
        if distance > expect.debug_equal + GRID:
            got = f"{form} form: outputs {distance:.3g} quanta from what its own integers say"
            return _finding("debug_equal", False, wanted, got)
    final = tally(evidence.explained.roundings)
    if final.all == 0:
        return Finding("debug_equal", Outcome.VACUOUS, wanted, "no value was rounded: there was nothing to compare")
    return _finding("debug_equal", True, wanted, f"{final.exact} exact, {final.tie} ties, {final.wrong} wrong")


def _debug_unexplained(evidence: Evidence, allowed: float, debug: tuple[torch.Tensor, ...]) -> Finding:
    """Without an explanation every difference counts, but for what two ways to add up the same in float may part by."""
    apart: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
    for x, y, step in zip(evidence.outputs, debug, evidence.quanta, strict=False):
        apart[step is None].append(_unexplained((x,), (y,), (step,)))
    stored, real = max(apart[False]), max(apart[True])
    got = [f"{stored:g} quanta, ties not told apart"] if any(step is not None for step in evidence.quanta) else []
    got += [f"results in float {real:.3g} of their largest apart"] if None in evidence.quanta else []
    held = len(debug) == len(evidence.outputs) and stored <= allowed + GRID and real <= FLOAT_SUMS
    return _finding("debug_equal", held, f"{allowed:g} quanta, results in float as near as sums are", "; ".join(got))


def _unruled(evidence: Evidence, form: str, roundings: Sequence[Rounding]) -> list[Rounding]:
    """The roundings to be judged by this suite's own rule: not those that the backend's rule was found to explain."""
    ruled = form == "final" and evidence.rule is not None and bool(evidence.rule.names)
    return [rounding for rounding in roundings if not (ruled and rounding.zero_point is not None)]


def rounding(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """One rule of rounding explains every integer of the outputs, where a given graph is run."""
    rule = evidence.rule
    if rule is None or evidence.explained is None or not rule.tells:
        return None
    counts = tally(evidence.explained.roundings)
    got = f"{rule.name}: {counts.exact} exact by half_even, {counts.tie} ties, {counts.wrong} wrong"
    worst = f", by up to {counts.worst:.3g} at {counts.where}" if counts.wrong else ""
    return _finding("rounding", bool(rule.names), "one rule of rounding for every integer", got + worst)


def _unexplained(
    outputs: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...], quanta: tuple[float | None, ...]
) -> float:
    """How far outputs are from those that the roundings lead to: in quanta, else relative to the largest finite one."""
    worst = 0.0
    for x, y, step in zip(outputs, exact, quanta, strict=True):
        if x.numel() and x.shape == y.shape:
            largest = float(y.abs().where(y.isfinite(), 0.0).amax())
            unit = step if step is not None else max(largest, torch.finfo(torch.float32).tiny)
            distance = max_abs([y], [x]) / unit
            worst = max(worst, math.inf if math.isnan(distance) else distance)
        elif x.shape != y.shape:
            worst = math.inf
    return worst


def accuracy(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Close to the float model: by signal to noise, by absolute difference, by quanta, beside the reference."""
    if expect.accuracy is None:
        return None
    bounds = bounds_of(expect.accuracy, evidence.reference_sqnr_db)
    wanted = bounds.text(evidence.reference_sqnr_db)
    if not bounds.any:
        return Finding("accuracy", Outcome.VACUOUS, wanted, "this is the reference itself, or there is none")
    if evidence.empty:
        return Finding("accuracy", Outcome.VACUOUS, wanted, "the outputs are empty: there was nothing to compare")
    zeros = tuple(torch.zeros_like(x) for x in evidence.float_outputs)
    anything = any(bool(x.any()) for x in evidence.float_outputs)
    if anything and bounds.hold(distances(evidence, zeros)):
        return Finding(
            "accuracy", Outcome.VACUOUS, wanted, "a model that always gives zero would pass: tighten the bound"
        )
    got = distances(evidence, evidence.outputs)
    return _finding("accuracy", bounds.hold(got), wanted, got.text)


def output(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Type and shape of the outputs, as stated."""
    if not expect.output:
        return None
    stated = [(o.dtype and str(o.dtype), o.shape and tuple(o.shape)) for o in expect.output]
    got = [(str(x.dtype).removeprefix("torch."), tuple(x.shape)) for x in evidence.outputs]
    held = len(stated) == len(got) and all(
        dtype in (None, have[0]) and shape in (None, have[1]) for (dtype, shape), have in zip(stated, got, strict=False)
    )
    return _finding("output", held, str(stated), str(got))


def layers(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """Every tensor within the model close to the float model's, by signal to noise."""
    if expect.layers is None or evidence.layers is None:
        return None
    wanted = f"sqnr_db >= {expect.layers.sqnr_db:g} at every layer"
    if not any(layer.low or layer.high for layer in evidence.layers):
        return Finding("layers", Outcome.VACUOUS, wanted, "no layer holds anything but zeros")
    # NaN compares false with everything, so that it is never within a bound; and it comes first among the worst.
    worst = min(evidence.layers, key=lambda layer: -math.inf if math.isnan(layer.sqnr_db) else layer.sqnr_db)
    got = f"lowest of {len(evidence.layers)}: {worst.sqnr_db:.4g} dB at {worst.tensor} ({worst.operator})"
    return _finding("layers", worst.sqnr_db >= expect.layers.sqnr_db, wanted, got)


def declared(evidence: Evidence, expect: ModeExpect) -> Finding | None:
    """What the case shows of the backend's arithmetic is what the backend declares of it."""
    all_shown = properties_of(evidence)
    said = {name: text for name, text in evidence.declared.items() if name in all_shown}
    if not said:
        return None
    shown = {name: all_shown[name] for name in said}
    held = not any(contradicts(shown[name], said[name]) for name in said)
    return _finding("declared", held, f"{_texts(said)} as declared", _texts(shown))


def _texts(properties: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in properties.items())


@dataclass(frozen=True)
class Kind:
    """A check, and what a failure of it says: that values are wrong, or only that other operators ran."""

    run: Check
    about_values: bool


CHECKS: Mapping[str, Kind] = MappingProxyType(
    {
        "structure": Kind(structure, True),
        "repeatable": Kind(repeatable, True),
        "inputs": Kind(inputs, True),
        "really_ran": Kind(really_ran, False),
        "ops": Kind(ops, False),
        "absent": Kind(absent, False),
        "order": Kind(order, False),
        "debug_equal": Kind(debug_equal, True),
        "rounding": Kind(rounding, True),
        "accuracy": Kind(accuracy, True),
        "output": Kind(output, True),
        "layers": Kind(layers, True),
        "declared": Kind(declared, False),
    }
)

# Checks that a spec has to state, or that state something only where a spec means it to: without one of these held,
# nothing was shown.
STATED = frozenset({"ops", "absent", "order", "debug_equal", "accuracy", "output", "layers"})
# Checks that show the values to be right.
CORRECTNESS = frozenset({"debug_equal", "accuracy"})


def judge(evidence: Evidence, expect: ModeExpect) -> tuple[Finding, ...]:
    """Make every check that applies; where the outputs' structure is wrong the numbers are not compared.

    A check that nobody asked for and that had nothing to compare makes no finding.
    """
    findings = []
    for name, kind in CHECKS.items():
        finding = kind.run(evidence, expect)
        if finding is None or (finding.outcome is Outcome.VACUOUS and name in expect.unstated):
            continue
        findings.append(finding)
        if name == "structure" and finding.outcome is Outcome.FAILED:
            break
    return tuple(findings)


def correctness(evidence: Evidence) -> frozenset[str]:
    """The checks that show the values to be right; empty outputs have no values, and are right by their structure."""
    return CORRECTNESS | {"structure"} if evidence.empty else CORRECTNESS


def verdict(findings: tuple[Finding, ...], showing: frozenset[str] = CORRECTNESS) -> Verdict:
    """The verdict that follows from the findings of a case that ran to its end.

    `showing` are the checks that show the values to be right, see `correctness`.
    """
    failed = {f.check for f in findings if f.outcome is Outcome.FAILED}
    held = {f.check for f in findings if f.outcome is Outcome.HELD}
    if any(CHECKS[check].about_values for check in failed):
        return Verdict.WRONG
    if failed:
        return Verdict.FALLBACK if held & showing else Verdict.WRONG
    if any(f.outcome is Outcome.VACUOUS for f in findings) or not held & STATED:
        return Verdict.VACUOUS
    return Verdict.NATIVE
