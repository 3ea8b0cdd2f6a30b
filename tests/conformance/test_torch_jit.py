"""Torch's flow over TorchScript as a backend: verdicts of real runs, refusals, engines."""

from __future__ import annotations

import pytest
import torch
from small_specs import cases_of

from conformance.backends import ENGINES, open_backend
from conformance.engine import Trial, run_case
from conformance.errors import UsageError
from conformance.record import Verdict

SPECS = """\
spec: 1
suite: engine
defaults: {inputs: {x: {shape: [4, 12]}}, capture: [trace, script]}
cases:
  - id: linear
    why: the pattern that every engine has
    module: ["nn.Linear(12, 8)", nn.ReLU(), "nn.Linear(8, 5)"]
    modes: [static, dynamic]
    expect:
      ops:
        static: {quantized::linear_relu: 1, quantized::linear: 1, quantized::quantize_per_tensor: 1}
        dynamic: {quantized::linear_dynamic: 2}
      absent: [aten::linear]
      accuracy: {sqnr_db: 25}
  - id: in_float
    why: an operator that it has no kernel for runs in float, which is right and no integer operator
    module: ["nn.Linear(12, 8)", nn.Softplus(), "nn.Linear(8, 5)"]
    expect: {ops: {quantized::linear: 2, quantized::softplus: 1}, accuracy: {sqnr_db: 20}, debug_equal: none}
  - id: other_types
    why: its kernels have one type of activations
    module: nn.Linear(12, 8)
    qconfig: int8
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 25}}
  - id: transposed
    why: its kernels refuse weights of transposed convolutions by channel
    module: nn.ConvTranspose2d(3, 4, 3)
    inputs: {x: {shape: [2, 3, 5, 5]}}
    expect: {ops: {quantized::conv_transpose2d: 1}, accuracy: {sqnr_db: 25}}
  - id: by_type
    why: a QConfig that it has no word for
    module: nn.Linear(12, 8)
    qconfig: {default: default, types: {nn.Linear: null}}
    expect: {ops: {quantized::linear: 0}, accuracy: {sqnr_db: 25}}
  - id: left_out
    why: a module whose rule is null stays in float, and the others do not
    module: ["nn.Linear(12, 8)", "nn.Linear(8, 5)"]
    qconfig: {default: default, modules: {"1": null}}
    expect: {ops: {quantized::linear: 1, aten::linear: 1}, accuracy: {sqnr_db: 25}}
"""


def trials(name: str = "torch-jit:x86") -> dict[str, Trial]:
    backend = open_backend(name)
    found = [run_case(case, backend, name) for case in cases_of(SPECS)]
    return {f"{t.record.subject.spec} {t.record.subject.mode} {t.record.subject.capture}": t for t in found}


@pytest.fixture(scope="module")
def found() -> dict[str, Trial]:
    return trials()


@pytest.mark.parametrize("capture", ["trace", "script"])
def test_verdicts(found: dict[str, Trial], capture: str) -> None:
    def record(of: str) -> tuple[Verdict, str]:
        told = found[f"{of} {capture}"].record
        return told.verdict, told.error or "; ".join(f.got for f in told.findings)

    assert record("linear static")[0] is Verdict.NATIVE, record("linear static")
    assert record("linear dynamic")[0] is Verdict.NATIVE, record("linear dynamic")
    assert record("left_out static")[0] is Verdict.NATIVE, record("left_out static")
    assert record("in_float static")[0] is Verdict.FALLBACK
    assert "aten::softplus: 1" in record("in_float static")[1]
    assert record("other_types static")[0] is Verdict.UNSUPPORTED and "uint8" in record("other_types static")[1]
    assert record("transposed static")[0] is Verdict.UNSUPPORTED and "channel" in record("transposed static")[1]
    assert record("by_type static")[0] is Verdict.UNSUPPORTED and "by type" in record("by_type static")[1]


def test_both_forms_are_there_and_agree(found: dict[str, Trial]) -> None:
    quantized = found["linear static trace"].quantized
    assert quantized is not None and quantized.debug is not None
    assert "aten::dequantize" in quantized.debug.graph and "quantized::linear_relu" in quantized.final.graph
    assert quantized.final.quanta[0] is not None
    assert found["linear static trace"].record.measures.debug_quanta == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_engines(engine: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        assert open_backend(f"torch-jit:{engine}").about().missing
        return
    before = torch.backends.quantized.engine
    case = next(iter(cases_of(SPECS)))
    assert run_case(case, open_backend(f"torch-jit:{engine}"), engine).record.verdict is Verdict.NATIVE
    assert torch.backends.quantized.engine == before


def test_targets() -> None:
    with pytest.raises(UsageError, match="no target 'arm'"):
        open_backend("torch-jit:arm")


def test_an_engine_that_torch_was_built_without_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.backends.torch_engine._absent", lambda engine: (f"torch's engine {engine}",))
    record = trials()["linear static trace"].record
    assert record.verdict is Verdict.UNSUPPORTED and record.error == "not installed: torch's engine x86"
