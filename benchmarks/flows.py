"""Seconds of a quantization flow: ours against torchao's PT2E and torch's FX and TorchScript flows, interleaved.

    python benchmarks/flows.py [--rounds 3] [--kinds calibration training] [--models MODEL ...]

What is timed is capture by itself, and preparation with conversion; calibration or training is one call of the prepared
model, and is not timed. PT2E stops at quantize and dequantize around float operators, and is compared with our debug
form, which is the same; FX and TorchScript go on to torch's kernels, and are compared with our final form, whose
weights are packed at its first call. FX captures while it prepares, so that it has no column of capture. Medians over
the rounds after one that warms up; in each round a model goes through one flow after the other, so that all see the
same machine. One thread. A flow that is not installed is skipped, and one that fails on a model says so.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import qlib

warnings.filterwarnings("ignore")

Inputs = tuple[Tensor, ...]
# What prepared models see before they are converted, with the preset that ours takes for it in training.
KINDS = {"calibration": "", "training": "qat"}


@dataclass(frozen=True)
class Flow:
    """A way to quantize: `capture` takes a module, `prepare` what that gave, `convert` a prepared model that has run.

    `against` names the flow of ours that goes as far, "" for ours.
    """

    capture: Callable[[nn.Module, Inputs], Any]
    prepare: Callable[[Any, Inputs], Any]
    convert: Callable[[Any], Any]
    against: str = ""


@dataclass(frozen=True)
class Times:
    capture: float
    rest: float


def conv_norm(inputs: int, outputs: int, size: int = 3, groups: int = 1, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(channels, channels), nn.ReLU(), *conv_norm(channels, channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + x)


class Mobile(nn.Module):
    """An inverted residual: wider by a convolution of one, by channel, narrower again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.body = nn.Sequential(
            *conv_norm(channels, wide, 1),
            nn.ReLU6(),
            *conv_norm(wide, wide, 3, wide),
            nn.ReLU6(),
            *conv_norm(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Transformer(nn.Module):
    """Attention with one head, then two linear layers, each beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        weights = torch.softmax(torch.matmul(self.query(y), self.key(y).transpose(-2, -1)) * 0.125, -1)
        x = x + self.out(torch.matmul(weights, self.value(y)))
        return x + self.feed(self.second(x))


def models() -> dict[str, tuple[nn.Module, Inputs]]:
    torch.manual_seed(0)
    image, rows = torch.rand(2, 16, 16, 16), torch.rand(8, 64)
    resnet = [*conv_norm(16, 16), nn.ReLU(), *(Residual(16) for _ in range(8))]
    return {
        "conv, norm, relu": (nn.Sequential(*conv_norm(16, 16), nn.ReLU()), (image,)),
        "residual block": (Residual(16), (image,)),
        "small resnet": (nn.Sequential(*resnet, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)), (image,)),
        "mobile block": (Mobile(16), (image,)),
        "mlp": (nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (rows,)),
        "transformer block": (Transformer(64), (torch.rand(2, 12, 64),)),
    }


DEBUG, FINAL = "ours, debug", "ours, final"


def ours(prepare: Callable[..., Any], qconfig: str, convert: Callable[[Any], Any]) -> Flow:
    return Flow(qlib.capture, lambda captured, inputs: prepare(captured, qconfig), convert)


def pt2e(is_qat: bool) -> Flow:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    def prepare(captured: Any, inputs: Inputs) -> Any:
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=is_qat))
        return (prepare_qat_pt2e if is_qat else prepare_pt2e)(captured, quantizer)

    return Flow(lambda module, inputs: torch.export.export(module, inputs).module(), prepare, convert_pt2e, DEBUG)


def fx_flow(is_qat: bool) -> Flow:
    from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    def prepare(module: Any, inputs: Inputs) -> Any:
        if is_qat:
            return prepare_qat_fx(module, get_default_qat_qconfig_mapping("x86"), inputs)
        return prepare_fx(module, get_default_qconfig_mapping("x86"), inputs)

    return Flow(lambda module, inputs: module, prepare, convert_fx, FINAL)


def torchscript() -> Flow:
    from torch.ao.quantization import get_default_qconfig
    from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

    qconfig = {"": get_default_qconfig("x86")}
    return Flow(torch.jit.trace, lambda traced, inputs: prepare_jit(traced, qconfig), convert_jit, FINAL)


def flows(qat: str) -> Iterator[tuple[str, Flow]]:
    """The flows that there are for calibration (`qat` is "") or for training ("qat"), ours first."""
    name = "prepare_qat" if qat else "prepare"
    if name in qlib.__all__:
        prepare, qconfig = getattr(qlib, name), qat or "default"
        yield DEBUG, ours(prepare, qconfig, qlib.convert)
        yield FINAL, ours(prepare, qconfig, lambda prepared: qlib.lower(qlib.convert(prepared)))
    if importlib.util.find_spec("torchao"):
        yield "PT2E", pt2e(bool(qat))
    yield "FX", fx_flow(bool(qat))
    if not qat:
        yield "TorchScript", torchscript()


def spent(flow: Flow, module: nn.Module, inputs: Inputs) -> Times:
    """Seconds of one passage; the call between preparation and conversion is left out."""
    start = time.perf_counter()
    captured = flow.capture(module, inputs)
    captured_at = time.perf_counter()
    prepared = flow.prepare(captured, inputs)
    prepared_at = time.perf_counter()
    prepared(*inputs)
    ready_at = time.perf_counter()
    flow.convert(prepared)
    return Times(captured_at - start, prepared_at - captured_at + time.perf_counter() - ready_at)


def measured(chosen: dict[str, Flow], qat: str, asked: list[str], rounds: int) -> dict[str, dict[str, list[Times]]]:
    """The times of each flow by model; a flow that fails on a model has none."""
    found: dict[str, dict[str, list[Times]]] = {}
    for model, (module, inputs) in models().items():
        if model not in asked:
            continue
        found[model] = {name: [] for name in chosen}
        failed: dict[str, str] = {}
        for number in range(rounds + 1):
            for name in [name for name in chosen if name not in failed]:
                copied = copy.deepcopy(module).train(bool(qat))
                try:
                    times = spent(chosen[name], copied, inputs)
                except Exception as error:  # a peer's failure is a result; ours is shown in the same way
                    failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
                    found[model][name].clear()
                    continue
                if number:
                    found[model][name].append(times)
        for name, why in failed.items():
            print(f"{model}, {name}: {why}")
    return found


def cell(times: list[Times], field: str) -> str:
    return f"{1000 * statistics.median(getattr(t, field) for t in times):.1f}" if times else "failed"


def ratio(theirs: list[Times], own: list[Times]) -> str:
    if not theirs or not own:
        return ""
    return f"{statistics.median(t.rest for t in theirs) / statistics.median(t.rest for t in own):.1f}"


def show(kind: str, asked: list[str], rounds: int) -> None:
    qat = KINDS[kind]
    chosen = dict(flows(qat))
    found = measured(chosen, qat, asked, rounds)
    peers = {name: flow.against for name, flow in chosen.items() if flow.against in chosen}
    captured = [name for name in chosen if name not in ("FX", DEBUG)]
    rows = []
    for model, by in found.items():
        captures = [cell(by[name], "capture") for name in captured]
        passes = [cell(by[name], "rest") for name in chosen]
        rows.append([model, *captures, *passes, *(ratio(by[name], by[own]) for name, own in peers.items())])
    headers = ["model", *(f"{name.removesuffix(', final')} capture" for name in captured), *chosen]
    print(f"\n{kind}: milliseconds of capture, then of preparation and conversion\n")
    print(tabulate(rows, [*headers, *(f"{name} / ours" for name in peers)], tablefmt="github"))
    for name, own in peers.items():
        ratios = [float(r) for by in found.values() if (r := ratio(by[name], by[own]))]
        if ratios:
            print(f"{name} / ours: {statistics.median(ratios):.1f} in the median of {len(ratios)} models")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of quantization flows, ours and theirs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--models", nargs="+", choices=list(models()), default=list(models()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.rounds} rounds, torch {torch.__version__}, Python {sys.version.split()[0]}")
    for kind in options.kinds:
        show(kind, options.models, options.rounds)


if __name__ == "__main__":
    main()
