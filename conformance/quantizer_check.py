"""`check_quantizer`: what a quantizer of the export flow leads to, its places, its order and its numbers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from conformance.backend import Program
from conformance.backends import qlib as bundled
from conformance.checks import judge
from conformance.compare import max_abs, sqnr_db
from conformance.engine import fresh, observe, tensors
from conformance.errors import UsageError
from conformance.observation import Evidence
from conformance.record import Finding, Outcome
from conformance.spec import ModeExpect

# What eight bits give any single layer with room to spare, and a wrong scale does not.
LEAST_SQNR_DB = 15.0


def check_quantizer(  # noqa: PLR0913  (the arguments that such checks are known to take)
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    quantizer: object,
    expected_node_occurrence: Mapping[object, int],
    expected_node_list: Sequence[object] = (),
    is_debug_mode: bool = False,
    *,
    is_qat: bool = False,
    calibration: Sequence[Sequence[Tensor]] = (),
    least_sqnr_db: float = LEAST_SQNR_DB,
) -> fx.GraphModule:
    """Quantize `model` as `quantizer` says, check what came out, and return the converted graph.

    `quantizer` has the methods of `qlib.Quantizer`, as those written for torchao do. `expected_node_occurrence` has
    exact counts of operators in the converted graph, `expected_node_list` operators that occur there in this order,
    others between them allowed; both name them by entries of `torch.ops` (those of `quantized_decomposed` too) or by
    names such as `aten::linear`, and without an overload mean all. `example_inputs` are one call's tensors; the model
    is calibrated on them unless `calibration` has other calls. It is checked in evaluation mode. `is_debug_mode` prints
    the graphs. With `is_qat` the model is captured in training mode and trained on that data for a few steps, always
    the same, towards the float model's results. The caller's module and data are never changed.

    Raises AssertionError, listing every finding, where counts or order differ, the converted graph has less than
    `least_sqnr_db` of signal to noise against the float model, the final form parts from it by more than ties, the
    reference form differs from the final form's plain kernels in any number, or a second call differs from the first;
    with `is_qat` also where the converted graph differs from the trained one, in evaluation mode, in any number.
    """
    model = copy.deepcopy(model).eval()
    mode = "qat" if is_qat else "static"
    inputs = fresh(example_inputs)
    batches = [fresh(batch) for batch in calibration] or [fresh(inputs)]
    found = bundled.quantize_by(copy.deepcopy(model).train(is_qat), fresh(inputs), batches, quantizer, mode)
    if is_debug_mode:
        _print(found)
    evidence = observe(model, inputs, found.quantized)
    names = bundled.node_names(found.converted)
    findings = [
        _occurrence(expected_node_occurrence, names),
        _order(expected_node_list, names),
        *judge(evidence, ModeExpect(debug_equal=0.0)),
        _accuracy(evidence, least_sqnr_db),
        _same("reference", found.spelled, found.plain, inputs),
        *([_same("trained", found.quantized.debug, found.prepared, inputs)] if is_qat else []),
    ]
    failed = [finding for finding in findings if finding.outcome is Outcome.FAILED]
    if failed:
        raise AssertionError("\n".join(f"{f.check}: expected {f.expected}; got {f.got}" for f in failed))
    return found.converted


def _print(found: bundled.ByQuantizer) -> None:
    print(f"float graph:\n{found.quantized.float_graph}")
    debug, final = found.quantized.debug, found.quantized.final
    for name, program in (("converted", debug), ("final", final), ("reference", found.spelled)):
        print(f"\n{name} graph:\n{program.graph if program else ''}")


def _finding(check: str, held: bool, expected: str, got: str) -> Finding:
    return Finding(check, Outcome.HELD if held else Outcome.FAILED, expected, got)


def _is(name: str, wanted: str) -> bool:
    """Whether an operator is the one that is wanted; without an overload any will do."""
    return name == wanted or ("." not in wanted and name.partition(".")[0] == wanted)


def _occurrence(expected: Mapping[object, int], names: Sequence[str]) -> Finding:
    wanted: dict[str, int] = {}
    for operator, count in expected.items():
        name = bundled.node_name(operator)
        if wanted.setdefault(name, count) != count:
            raise UsageError(f"expected_node_occurrence: {name} is meant twice, {wanted[name]} and {count} times")
    got = {name: sum(_is(other, name) for other in names) for name in wanted}
    return _finding("occurrence", got == wanted, str(wanted), f"{got} in {dict(sorted(Counter(names).items()))}")


def _order(expected: Sequence[object], names: Sequence[str]) -> Finding:
    wanted = [bundled.node_name(operator) for operator in expected]
    sequence = iter(names)
    held = all(any(_is(name, each) for name in sequence) for each in wanted)
    return _finding("order", held, " → ".join(wanted), " → ".join(names) or "none")


def _accuracy(evidence: Evidence, least: float) -> Finding:
    """The converted graph against the float model."""
    outputs = evidence.debug_outputs or ()
    got = sqnr_db(evidence.float_outputs, outputs) if len(outputs) == len(evidence.float_outputs) else float("nan")
    return _finding("accuracy", got >= least, f"sqnr_db >= {least:g}", f"sqnr_db {got:.4g}")


# What a form must give the same numbers as, by the name of the check.
_MODELS = {
    "reference": "the numbers of the final form",
    "trained": "the numbers of the trained graph in evaluation mode",
}


def _same(check: str, form: Program | None, model: Program, inputs: Sequence[Tensor]) -> Finding:
    """One form against another that it must agree with in every number."""
    assert form is not None
    with torch.no_grad():
        found, wanted = (tensors(program.call(*fresh(inputs))) for program in (form, model))
    held = len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    got = "the same" if held else f"off by {max_abs(wanted, found) if len(found) == len(wanted) else 'outputs'}"
    return _finding(check, held, _MODELS[check], got)
