"""torchao's export flow as a backend: names of its kernels without it, verdicts of real runs where it is installed."""

from __future__ import annotations

from importlib import metadata

import pytest
from small_specs import cases_of

from conformance.backends import BUILTIN, Tier, open_backend
from conformance.backends.torchao_names import Kernel, of_code, of_kernel
from conformance.engine import run_case
from conformance.errors import UsageError
from conformance.record import Verdict

NAMES = ("torchao-pt2e", "torchao-x86", "torchao-inductor")

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
      ops:
        static: {quantized::linear_relu: 1, quantized::linear: 1}
        dynamic: {quantized::linear_relu_dynamic: 1, quantized::linear_dynamic: 1}
      absent: [aten::linear]
      accuracy: {sqnr_db: 25}
  - id: trained
    why: a mode that is not declared
    module: nn.Linear(12, 8)
    modes: [qat]
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 25}}
"""


def verdicts(name: str) -> dict[str, tuple[Verdict, str]]:
    backend = open_backend(name)
    records = [run_case(case, backend, name).record for case in cases_of(SPECS)]
    return {
        f"{r.subject.spec} {r.subject.mode}": (r.verdict, r.error or "; ".join(f.got for f in r.findings))
        for r in records
    }


def test_lowered() -> None:
    pytest.importorskip("torchao")
    found = verdicts("torchao-x86")
    assert found["linear static"][0] is Verdict.NATIVE, found
    assert found["linear dynamic"][0] is Verdict.NATIVE, found
    assert found["trained qat"] == (Verdict.UNSUPPORTED, "declares no mode qat")


def test_the_reference_graph_runs_in_float_and_says_so() -> None:
    pytest.importorskip("torchao")
    found = verdicts("torchao-pt2e")
    for mode in ("static", "dynamic"):
        verdict, text = found[f"linear {mode}"]
        assert verdict is Verdict.FALLBACK and "aten::linear: 2" in text


@pytest.mark.parametrize("name", NAMES)
def test_where_it_is_not_installed_no_case_is_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("conformance.environment.metadata.version", missing)
    assert open_backend(name).about().name == name
    assert verdicts(name)["linear static"] == (Verdict.UNSUPPORTED, "not installed: torchao, torch")


def test_inductor_is_slow_and_no_backend_has_targets() -> None:
    assert [BUILTIN[name].tier for name in NAMES] == [Tier.USUAL, Tier.USUAL, Tier.SLOW]
    with pytest.raises(UsageError, match="has no targets"):
        open_backend("torchao-x86:arm")


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (Kernel("onednn::qlinear_pointwise", "default", ("none", ""), (), True), ("quantized::linear",)),
        (Kernel("onednn::qlinear_pointwise", "tensor", ("relu", ""), (), False), ("quantized::linear_relu_dynamic",)),
        (Kernel("onednn::qconv_pointwise", "default", ("relu",), ((1.0,),), True), ("quantized::conv1d_relu",)),
        (
            Kernel("onednn::qconv_pointwise", "default", ("hardswish",), ((1, 1), (0, 0)), True),
            ("quantized::conv2d", "quantized::hardswish"),
        ),
        (
            Kernel("onednn::qconv2d_pointwise", "binary", ("sum", "relu"), ((1, 1),), True),
            ("quantized::conv2d", "quantized::add_relu"),
        ),
        (
            Kernel("onednn::qlinear_pointwise", "binary", ("add", "relu"), (), False),
            ("quantized::linear", "aten::add", "aten::relu"),
        ),
    ],
)
def test_kernels_stand_for_what_they_fuse(kernel: Kernel, expected: tuple[str, ...]) -> None:
    assert of_kernel(kernel) == expected


def test_code() -> None:
    code = """\
torch.ops.onednn.qlinear_pointwise.default(before, 'relu')
def call(args):
    cpp_fused_quantize_per_tensor_0(arg0_1, buf0, s0)
    buf1 = torch.ops.onednn.qlinear_pointwise.tensor(buf0, 0.1, 0, w, s, z, b, 0.2, 0, torch.uint8, 'relu', [], '')
    buf2 = torch.ops.onednn.qconv_pointwise.default(x, 0.1, 0, w, s, z, b, [1, 1], [0, 0], [1, 1], 1, 0.3, 0, torch.float32, 'none', [], '')
    extern_kernels.addmm(bias, buf1, reinterpret_tensor(w, (8, 5), (1, 8), 0), alpha=1, beta=1, out=buf3)
    return (buf3, )
"""
    assert of_code(code, "static") == (
        "unmapped:cpp_fused_quantize_per_tensor",
        "quantized::linear_relu",
        "quantized::conv2d",
        "aten::linear",
    )
