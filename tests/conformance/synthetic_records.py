"""Made-up results for the tests of the reports; as a script it writes them as JSON lines or as a report.

python tests/conformance/synthetic_records.py 2000 html > /tmp/report.html
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module

from conformance.record import (
    Declared,
    Environment,
    Finding,
    Layer,
    Measures,
    Outcome,
    Record,
    Run,
    Subject,
    Verdict,
)
from conformance.report import FORMATS

BACKENDS = ("qlib", "torchao", "onnxruntime", "openvino")
TWELVE = (
    *("torch-jit:fbgemm", "torch-jit:qnnpack", "torch-fx:x86", "torchao-pt2e", "torchao-x86"),
    *("qlib", "onnxruntime:all", "onnxruntime:none", "onnx-reference", "openvino:lpt", "executorch-xnnpack"),
    "litert:builtin",
)
FACETS = (("uint8 × int8", "per channel"), ("int8 × int8", "per channel"), ("uint8 × int8", "per tensor"))
ROUNDINGS = ("half_even", "half_even", "half_even or half_away", "half_up", "undecided")
FAMILIES = ("activation", "add", "conv", "embedding", "linear", "norm", "pooling", "shape")
STAGES = ("build", "capture", "prepare", "calibrate", "convert", "lower", "run", "judge")
MODES = ("static", "dynamic", "qat")
CAPTURES = ("export", "trace", "script")
WEIGHTS = {
    Verdict.NATIVE: 75,
    Verdict.FALLBACK: 8,
    Verdict.WRONG: 6,
    Verdict.UNSUPPORTED: 5,
    Verdict.CRASH: 2,
    Verdict.TIMEOUT: 1,
    Verdict.ERROR: 2,
    Verdict.VACUOUS: 1,
}
YAML = """\
- id: {name}
  why: {why}
  matrix: {{relu: [nn.ReLU(), nn.ReLU(inplace=True)], bias: [true, false]}}
  module:
    layers: {{fc: "nn.Linear(30, 20, bias=${{bias}})", act: "${{relu}}"}}
    forward: |
      def forward(self, x):
          return self.act(self.fc(x))
  inputs: {{x: {{shape: [4, 30], range: [-1, 1]}}}}
  modes: [static, dynamic, qat]
  capture: [export, trace, script]
  expect:
    ops:
      static: {{quantized::{name}: 1}}
    absent: [aten::{family}, aten::relu]
    debug_equal: 0 quanta
    accuracy: {{sqnr_db: 30}}
"""


def make_run(cases: int, backends: Sequence[str] = BACKENDS) -> Run:
    environment = Environment(
        suite="0.1.0",
        python="3.11.9",
        platform="Linux-6.1-x86_64",
        cpu="Example CPU @ 2.40 GHz",
        isa="AVX512_VNNI",
        packages={"torch": "2.13.0", "onnxruntime": "1.23.0", "openvino": "2026.1.0", "torchao": "0.15.0"},
    )
    command = "conformance run specs --backend " + ",".join(backends)
    said = Declared({"example": "1.2"}, MODES, CAPTURES[:2], ("quantized::conv",), (), {"rounding": "half_even"})
    declared = dict.fromkeys(backends, said)
    started = "2026-01-31T09:30:00+00:00"
    return Run(environment, tuple(backends), cases * len(backends), command, started, declared=declared)


def make_subject(number: int, family: str = "") -> Subject:
    family = family or FAMILIES[number % len(FAMILIES)]
    mode, capture = MODES[number // 8 % 3], CAPTURES[number // 24 % 3]
    spec = f"{family}_relu_{number // 24}"
    dtype, granularity = FACETS[number // 5 % len(FACETS)]
    why = f"a relu after {family} must not cost a second requantization"
    return Subject(
        case=f"{family}::{spec}[{mode}-{capture}-bias=true-relu=ReLU()-number={number}]",
        family=family,
        spec=spec,
        mode=mode,
        capture=capture,
        parameters={"bias": "true", "relu": "ReLU()", "number": str(number)},
        seed=1_000_003 * (number + 1) % 2**32,
        why=why,
        path=f"specs/{family}.qspec.yaml",
        line=10 + number,
        yaml=YAML.format(name=spec, why=why, family=family),
        dtype=dtype,
        granularity=granularity,
    )


def recaptured(subject: Subject, capture: str) -> Subject:
    """The same case by another capture."""
    case = subject.case.replace(f"[{subject.mode}-{subject.capture}", f"[{subject.mode}-{capture}")
    return replace(subject, case=case, capture=capture)


def make_record(subject: Subject, backend: str = "qlib", verdict: Verdict = Verdict.NATIVE) -> Record:
    draw = random.Random(ascii((subject.case, backend, verdict)))
    expected = {f"quantized::{subject.spec}": 1, "aten::quantize_per_tensor": 1}
    ran = verdict in {Verdict.NATIVE, Verdict.WRONG, Verdict.FALLBACK, Verdict.VACUOUS}
    fused = {Verdict.FALLBACK: {f"aten::{subject.family}": 1, "aten::relu": 1}}
    return Record(
        subject=subject,
        backend=backend,
        verdict=verdict,
        stage=None if ran else draw.choice(STAGES),
        findings=_findings(subject, verdict, draw) if ran else (),
        error=None if ran else _error(verdict, draw),
        expected_ops=expected,
        float_ops={f"aten::{subject.family}": 1, "aten::relu": 1},
        executed_ops=fused.get(verdict, {**expected, "aten::dequantize": 1}) if ran else {},
        native_ops={f"{backend}.{subject.family}_int8": 1} if ran else {},
        measures=_measures(verdict, draw) if ran else Measures(),
        layers=_layers(draw) if ran and backend == "qlib" and draw.random() < 1 / 4 else (),
        seconds={stage: draw.uniform(1e-5, 3e-2) for stage in (STAGES if ran else STAGES[:3])},
        properties={"rounding": draw.choice(ROUNDINGS)} if ran else {},
        histogram=_histogram(draw) if ran else {},
        stderr=f"{backend}: aborted at {draw.randrange(10**9):x}\n" * 8 if verdict is Verdict.CRASH else "",
    )


def make_records(cases: int, backends: Sequence[str] = BACKENDS) -> list[Record]:
    """One record for each case and backend; every eighth failure is a known one."""
    draw = random.Random(cases)
    records = []
    for number in range(cases):
        subject = make_subject(number)
        for backend in backends:
            verdict = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            data = make_record(subject, backend, verdict).to_json()
            if verdict is not Verdict.NATIVE and draw.random() < 1 / 8:
                data["known"] = f"{backend} has no kernel for an empty batch (example issue {draw.randrange(3)})"
            records.append(Record.from_json(data))
    return records


def _findings(subject: Subject, verdict: Verdict, draw: random.Random) -> tuple[Finding, ...]:
    sqnr = f"{draw.uniform(30, 60):.2f} dB"
    ops = {Verdict.FALLBACK: Finding("ops", Outcome.FAILED, f"quantized::{subject.spec} 1", "0")}
    accuracy = {Verdict.WRONG: Finding("accuracy", Outcome.FAILED, "SQNR of 30 dB or more", "SQNR of 11.25 dB")}
    absent = {Verdict.VACUOUS: Finding("absent", Outcome.VACUOUS, "aten::relu in the float graph", "it is not there")}
    return (
        ops.get(verdict, Finding("ops", Outcome.HELD, f"quantized::{subject.spec} 1", "1")),
        absent.get(verdict, Finding("absent", Outcome.HELD, f"no aten::{subject.family}", "none")),
        Finding("debug_equal", Outcome.HELD, "0 quanta", "0 quanta"),
        accuracy.get(verdict, Finding("accuracy", Outcome.HELD, "SQNR of 30 dB or more", f"SQNR of {sqnr}")),
    )


def _histogram(draw: random.Random) -> dict[str, int]:
    off = {str(quanta): draw.randrange(1, 9) for quanta in range(-3, 4) if quanta and draw.random() < 1 / 4}
    return {**off, "0": 512 - sum(off.values())}


def _measures(verdict: Verdict, draw: random.Random) -> Measures:
    wrong = draw.randrange(1, 9) if verdict is Verdict.WRONG else 0
    return Measures(
        sqnr_db=11.25 if wrong else draw.uniform(30, 60),
        max_abs=draw.uniform(0.001, 0.1),
        max_quanta=draw.uniform(0.4, 1.6),
        debug_quanta=float(wrong),
        exact=80 - wrong - 2,
        tie=2,
        wrong=wrong,
    )


def _layers(draw: random.Random) -> tuple[Layer, ...]:
    """A chain that loses SQNR on its way, and whose forms part in the middle; the second layer is exact."""
    layers: list[Layer] = []
    for place in range(draw.randrange(3, 24)):
        sqnr = float("inf") if place == 1 else round(50.0 - place + draw.uniform(-3, 3), 3)
        differing = draw.randrange(9) if place > 4 else 0
        layers.append(
            Layer(
                name=f"quantize_{place}",
                tensor=f"relu_{place}",
                operator="quantized::conv2d_relu",
                module=f"body.{place}",
                source="model.py:12",
                group=f"relu_{place}",
                made_of=tuple(layer.name for layer in layers[-1:]),
                low=-1.5,
                high=round(draw.uniform(1, 3), 4),
                scale=0.0125,
                zero_point=120,
                qmin=0,
                qmax=255,
                saturated=draw.choice((0, 0, 0, 7)),
                sqnr_debug_db=sqnr,
                sqnr_final_db=None if place == 2 else sqnr - differing / 8,
                elements=512,
                differing=None if place == 2 else differing,
                tie=None if place == 2 else differing,
                wrong=None if place == 2 else 0,
            )
        )
    return tuple(layers)


def _error(verdict: Verdict, draw: random.Random) -> str:
    place = f"worker, case {draw.randrange(10**6)}"
    return f"Traceback (most recent call last):\n  in {place}\nRuntimeError: {verdict} in the example backend"


def main(cases: int, what: str) -> None:
    run, records = make_run(cases), make_records(cases)
    if what != "jsonl":
        print(import_module(FORMATS[what][0]).render(run, records))
        return
    for line in (asdict(run), *(record.to_json() for record in records)):
        print(json.dumps(line))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
