"""ONNX Runtime as a backend: verdicts of real runs, refusals, and what happens where it is not installed."""

from __future__ import annotations

from importlib import metadata

import pytest
from small_specs import cases_of

from conformance.backends import open_backend
from conformance.backends.onnxruntime import LACKS, TARGETS
from conformance.engine import run_case
from conformance.errors import UsageError
from conformance.record import Verdict

SPECS = """\
spec: 1
suite: engine
defaults: {inputs: {x: {shape: [4, 12]}}, capture: [export]}
cases:
  - id: linear
    why: the pattern that every engine has
    module: ["nn.Linear(12, 8)", nn.ReLU(), "nn.Linear(8, 5)"]
    modes: [static, dynamic]
    expect:
      ops: {static: {quantized::linear_relu: 1, quantized::linear: 1}, dynamic: {quantized::linear_dynamic: 2}}
      absent: [aten::linear]
      accuracy: {sqnr_db: 25}
  - id: transposed
    why: a kernel that it does not have runs in float, which is right and no integer operator
    module: nn.ConvTranspose2d(3, 4, 3)
    inputs: {x: {shape: [1, 3, 5, 5]}}
    expect: {ops: {quantized::conv_transpose2d: 1}, accuracy: {sqnr_db: 25}}
  - id: by_module
    why: a QConfig that its tools have no word for
    module: {layers: {fc: "nn.Linear(12, 8)"}, forward: "def forward(self, x): return self.fc(x)"}
    qconfig: {default: default, modules: {fc: int8}}
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 25}}
  - id: inexpressible
    why: an operator that the exchange format has no word for says nothing of the engine
    module: {forward: "def forward(self, x): return torch.div(x, 0.5, rounding_mode='floor')"}
    expect: {ops: {quantized::div: 0, aten::div: 1}, accuracy: {sqnr_db: 25}}
"""


def verdicts(name: str = "onnxruntime") -> dict[str, tuple[Verdict, str]]:
    backend = open_backend(name)
    records = [run_case(case, backend, name).record for case in cases_of(SPECS)]
    return {
        f"{r.subject.spec} {r.subject.mode}": (r.verdict, r.error or "; ".join(f.got for f in r.findings))
        for r in records
    }


@pytest.fixture
def installed() -> None:
    pytest.importorskip("onnx", minversion="1.20")
    pytest.importorskip("onnxruntime")


@pytest.mark.usefixtures("installed")
def test_verdicts() -> None:
    found = verdicts()
    assert found["linear static"][0] is Verdict.NATIVE, found["linear static"]
    assert found["linear dynamic"][0] is Verdict.NATIVE, found["linear dynamic"]
    assert found["transposed static"][0] is Verdict.FALLBACK
    assert "aten::conv_transpose2d: 1" in found["transposed static"][1]
    assert found["by_module static"][0] is Verdict.UNSUPPORTED and "QConfigs by module" in found["by_module static"][1]
    assert found["inexpressible static"][0] is Verdict.UNSUPPORTED
    assert "rounding mode" in found["inexpressible static"][1]


@pytest.mark.usefixtures("installed")
def test_without_optimizations_nothing_computes_on_integers() -> None:
    found = verdicts("onnxruntime:none")
    assert found["linear static"][0] is Verdict.FALLBACK
    assert "aten::linear: 2" in found["linear static"][1]


def test_where_it_is_not_installed_no_case_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("conformance.environment.metadata.version", missing)
    assert set(verdicts().values()) == {(Verdict.UNSUPPORTED, "not installed: onnxruntime, onnx, torch")}


def test_targets() -> None:
    assert [open_backend(f"onnxruntime:{target}").about().name for target in TARGETS] == ["onnxruntime"] * 2
    with pytest.raises(UsageError, match="no target 'some'"):
        open_backend("onnxruntime:some")


def test_what_it_lacks_is_declared() -> None:
    assert open_backend("onnxruntime").about().lacks == LACKS
