"""`check_graph_mode_op`: one module checked in one call, with the arguments of the helper it takes over from."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from conformance.backend import Task
from conformance.backends import qlib as bundled
from conformance.checks import judge
from conformance.engine import count, fresh, observe
from conformance.errors import UsageError
from conformance.record import Finding, Outcome
from conformance.spec import Accuracy, ModeExpect

# What eight bits give any single layer with room to spare, and a wrong scale does not.
LEAST_SQNR_DB = 15.0


def check_graph_mode_op(  # noqa: PLR0913, PLR0917  (the signature of the helper that it takes over from)
    module: nn.Module,
    inputs: Any,
    quantized_op: str | Mapping[str, int] | None,
    tracing: bool = False,
    debug: bool = False,
    check: bool = True,
    eval_mode: bool = True,
    dynamic: bool = False,
    qconfig: Any = None,
) -> fx.GraphModule:
    """Quantize `module`, check what came out, and return the final model.

    `inputs` is a list of argument tuples, the first being the example and all of them the calibration data; with
    `dynamic` it is one tensor. `quantized_op` names an operator that must have run, exactly, or gives exact counts by
    name; canonical names and the spellings of `torch.ao`'s tests are accepted. `tracing` captures by
    `torch.jit.trace`, else by `torch.jit.script`, or by `torch.export` where TorchScript can't compile the module.
    `qconfig` is a `qlib.QConfig`, a `qlib.QConfigMapping` or a preset's name.
    `eval_mode` is there for old calls: a model is always checked in evaluation mode, as it was by that helper.
    `debug` prints the module and its graphs. The caller's module and data are never changed.

    Raises AssertionError, listing every finding, where an operator is missing, the debug and the final form part, a
    second call differs from the first, or the result has less than 15 dB of signal to noise against the float model.
    With ``check=False`` nothing is compared, and the model must still be captured, converted and run.
    """
    module = copy.deepcopy(module).eval()
    calls = [(inputs,)] if isinstance(inputs, Tensor) else [tuple(call) for call in inputs]
    if not calls:
        raise UsageError("inputs: expected one call or more, found none: give a list of tuples of tensors")
    batches = tuple(fresh(call) for call in calls)
    mode, method = "dynamic" if dynamic else "static", "trace" if tracing else _untraced(module)
    task = Task(copy.deepcopy(module), fresh(batches[0]), batches, mode, method)
    quantized, forms = bundled.quantize_as(task, qconfig, lambda name: contextlib.nullcontext())
    if debug:
        _print(module, quantized.float_graph, quantized.debug, quantized.final)
    evidence = observe(module, calls[0], quantized)
    if check:
        expect = ModeExpect(debug_equal=0.0, accuracy=Accuracy(sqnr_db=LEAST_SQNR_DB))
        findings = [*judge(evidence, expect), _operators(quantized_op, evidence.ops)]
        failed = [f for f in findings if f is not None and f.outcome is Outcome.FAILED]
        if failed:
            raise AssertionError("\n".join(f"{f.check}: expected {f.expected}; got {f.got}" for f in failed))
    return forms.final


def _untraced(module: nn.Module) -> str:
    """How a module is captured without a trace: by script where TorchScript compiles it."""
    try:
        torch.jit.script(module)
    except (RuntimeError, OSError, TypeError, NotImplementedError, torch.jit.frontend.FrontendError):
        return "export"
    return "script"


def _print(module: nn.Module, float_graph: str, *programs: Any) -> None:
    print(f"module:\n{module}\n\nfloat graph:\n{float_graph}")
    for name, program in zip(("debug", "final"), programs, strict=True):
        print(f"\n{name} graph:\n{program.graph}")


def _operators(wanted: str | Mapping[str, int] | None, got: Mapping[str, int]) -> Finding | None:
    """The finding about operators: one that must be there, or exact counts."""
    if wanted is None:
        return None
    if isinstance(wanted, str):
        name = bundled.canonical(wanted)
        held, expected = got.get(name, 0) > 0, f"{name}: 1 or more"
    else:
        counts = {bundled.canonical(name): n for name, n in wanted.items()}
        held, expected = all(got.get(name, 0) == n for name, n in counts.items()), str(counts)
    return Finding("ops", Outcome.HELD if held else Outcome.FAILED, expected, str(dict(got)))


def executed_ops(model: fx.GraphModule) -> dict[str, int]:
    """Exact counts of the operators that a quantized model executes, by canonical name."""
    return count(bundled.sequence(model))


checkGraphModeOp = check_graph_mode_op  # noqa: N816  (the name that test suites import)
