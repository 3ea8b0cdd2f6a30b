"""Torch's flow over symbolic traces as a backend: verdicts of real runs, QConfigs, training."""

from __future__ import annotations

import pytest
import torch
from small_specs import cases_of
from torch import nn

from conformance.backends import open_backend
from conformance.backends.qlib import mapping_of
from conformance.backends.torch_fitting import distill
from conformance.backends.torch_fx import _held, torch_mapping
from conformance.engine import Trial, run_case
from conformance.errors import UsageError
from conformance.record import Verdict
from qlib.quantize import STEPS

SPECS = """\
spec: 1
suite: engine
defaults: {inputs: {x: {shape: [4, 12]}}, capture: [trace]}
cases:
  - id: linear
    why: the pattern that every engine has, by module type too
    matrix: {qconfig: [default, {default: null, types: {nn.Linear: default, nn.ReLU: default}}]}
    module: ["nn.Linear(12, 8)", nn.ReLU(), "nn.Linear(8, 5)"]
    modes: [static, dynamic, qat]
    qconfig: ${qconfig}
    expect:
      ops:
        static: {quantized::linear_relu: 1, quantized::linear: 1}
        qat: {quantized::linear_relu: 1, quantized::linear: 1}
        dynamic: {quantized::linear_dynamic: 1, quantized::linear_relu_dynamic: 1}
      absent: [aten::linear]
      accuracy: {sqnr_db: 25}
  - id: norm
    why: a batch norm is trained with its convolution and is gone in the end
    module: ["nn.Conv2d(3, 4, 3)", "nn.BatchNorm2d(4)", nn.ReLU()]
    inputs: {x: {shape: [2, 3, 6, 6]}}
    modes: [static, qat]
    expect: {ops: {quantized::conv2d_relu: 1}, absent: [aten::batch_norm], accuracy: {sqnr_db: 25}}
  - id: embedding
    why: tables of embeddings have a QConfig of their own there
    matrix: {include: [{qconfig: embedding_byte, row: byte}, {qconfig: embedding_4bit, row: 4bit}]}
    module: nn.Embedding(12, 10)
    inputs: {x: {shape: [7], dtype: int64, range: [0, 11]}}
    qconfig: ${qconfig}
    expect: {ops: {"quantized::embedding_${row}": 1}, accuracy: {sqnr_db: 18}, debug_equal: none}
  - id: on_data
    why: its tracer follows no condition on data, which it says itself
    module:
      layers: {fc: "nn.Linear(12, 8)"}
      forward: |
        def forward(self, x):
            y = self.fc(x)
            if y.sum() > 0:
                y = y * 2
            return y
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 25}}
"""


@pytest.fixture(scope="module")
def found() -> list[Trial]:
    return [run_case(case, open_backend("torch-fx"), "torch-fx") for case in cases_of(SPECS)]


def of(found: list[Trial], spec: str) -> list[tuple[Verdict, str]]:
    records = [t.record for t in found if t.record.subject.spec == spec]
    return [(r.verdict, r.error or "; ".join(f"{f.check}: {f.got}" for f in r.findings)) for r in records]


@pytest.mark.parametrize(("spec", "number"), [("linear", 6), ("norm", 2), ("embedding", 2)])
def test_native(found: list[Trial], spec: str, number: int) -> None:
    told = of(found, spec)
    assert len(told) == number and all(verdict is Verdict.NATIVE for verdict, _ in told), told


def test_conditions_on_data_are_declared_to_be_lacking(found: list[Trial]) -> None:
    ((verdict, text),) = of(found, "on_data")
    assert verdict is Verdict.UNSUPPORTED and "control flow" in text


def test_its_reference_form_is_the_debug_form(found: list[Trial]) -> None:
    quantized = found[0].quantized
    assert quantized is not None and quantized.debug is not None and quantized.debug.graph != quantized.final.graph


def test_operators_of_known_results_keep_their_observers() -> None:
    mapping = torch_mapping(mapping_of(None), "static", "fbgemm")
    kinds = mapping.object_type_qconfigs
    assert kinds[nn.Sigmoid].activation.p.func.__name__ == "FixedQParamsObserver"
    assert kinds[nn.LayerNorm].activation is mapping.global_qconfig.activation or kinds[nn.LayerNorm].activation.p
    transposed = kinds[nn.ConvTranspose2d].weight()
    assert transposed.qscheme == torch.per_tensor_symmetric
    assert mapping.global_qconfig.weight().qscheme == torch.per_channel_symmetric
    assert kinds[nn.PReLU].activation().quant_max == 255


@pytest.mark.parametrize("engine", ["x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("mode", ["static", "dynamic", "qat"])
def test_transposed_convolutions_have_weights_of_one_scale(engine: str, mode: str) -> None:
    kinds = torch_mapping(mapping_of(None), mode, engine).object_type_qconfigs
    assert kinds[nn.ConvTranspose1d].weight().qscheme == torch.per_tensor_symmetric


def test_a_layer_that_could_be_given_more_is_held_by_a_model() -> None:
    assert isinstance(_held(nn.ConvTranspose2d(2, 3, 3), 1), nn.Sequential)
    assert isinstance(_held(nn.EmbeddingBag(4, 3), 2), nn.EmbeddingBag)


def test_batch_norms_keep_their_statistics_in_training() -> None:
    student = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).train()
    distill(student, nn.Linear(6, 3), [(torch.randn(8, 6) + 5,)] * STEPS)
    norm = student[1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0


def test_training_moves_the_weights_towards_the_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    batches = [(torch.randn(8, 6),)]
    before = (student(*batches[0]) - teacher(*batches[0])).square().mean()
    weight = student.weight.detach().clone()
    distill(student.train(), teacher, batches * STEPS)
    after = (student(*batches[0]) - teacher(*batches[0])).square().mean()
    assert after < before and not student.training
    assert 0 < (student.weight - weight).norm() <= 1.01e-3 * STEPS * weight.norm()


def test_targets() -> None:
    with pytest.raises(UsageError, match="no target 'arm'"):
        open_backend("torch-fx:arm")
