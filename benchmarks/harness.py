"""Seconds per check: torch's own graph-mode check against ours, on the same modules, interleaved in one run.

    python benchmarks/harness.py [--rounds 5]

A check is what `checkGraphModeOp` does: capture, quantize with calibration in the debug and in the final form, run
both, compare, and look for the operator. Ours also compares with the float model and judges each rounding. Medians
over the rounds; the modules of one round run one after the other, each by theirs and then by ours, so that both see
the same machine. One thread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

warnings.filterwarnings("ignore")

from torch.ao.quantization import (  # noqa: E402  (the peer that we measure against)
    default_dynamic_qconfig,
    get_default_qconfig,
    quantize_dynamic_jit,
    quantize_jit,
)
from torch.testing import FileCheck  # noqa: E402

from conformance import check_graph_mode_op  # noqa: E402


@dataclass(frozen=True)
class Subject:
    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    op: str
    dynamic: bool = False


class Pair(nn.Module):
    """Two convolutions joined by an operator of two tensors."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), join

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(y))


class After(nn.Module):
    """A convolution, then a function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def subjects() -> list[Subject]:
    """The modules, in families: conv, linear, add, mul, cat, batch norm, activations; static and dynamic."""
    torch.manual_seed(0)
    flat = torch.rand(4, 30)
    image = {d: torch.rand(2, 3, *[10] * d) for d in (1, 2, 3)}
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    found = []
    for d in (1, 2, 3):
        found += [
            Subject(f"conv{d}d", nn.Sequential(conv[d](3, 4, 3)), (image[d],), f"quantized::conv{d}d("),
            Subject(
                f"conv{d}d_relu", nn.Sequential(conv[d](3, 4, 3), nn.ReLU()), (image[d],), f"quantized::conv{d}d_relu("
            ),
            Subject(f"batch_norm{d}d", nn.Sequential(norm[d](3)), (image[d],), "quantized::batch_norm"),
        ]
        if d > 1:  # torch's TorchScript flow folds no batch norm into a conv1d
            folded = nn.Sequential(conv[d](3, 4, 3), norm[d](4), nn.ReLU())
            found.append(Subject(f"conv{d}d_bn_relu", folded, (image[d],), f"quantized::conv{d}d_relu("))
    pairs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "add": lambda a, b: a + b,
        "add_relu": lambda a, b: F.relu(a + b),
        "mul": lambda a, b: a * b,
        "mul_relu": lambda a, b: F.relu(a * b),
        "cat": lambda a, b: torch.cat([a, b], 1),
    }
    found += [Subject(name, Pair(f), (image[2], image[2] * 2), f"quantized::{name}") for name, f in pairs.items()]
    singles: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "hardswish": (F.hardswish, "quantized::hardswish"),
        "elu": (F.elu, "quantized::elu"),
        "leaky_relu": (F.leaky_relu, "aten::leaky_relu"),
        "sigmoid": (torch.sigmoid, "aten::sigmoid"),
        "tanh": (torch.tanh, "aten::tanh"),
        "hardtanh": (F.hardtanh, "aten::hardtanh"),
        "clamp": (lambda x: torch.clamp(x, -0.5, 0.5), "aten::clamp"),
        "max_pool2d": (lambda x: F.max_pool2d(x, 2), "aten::max_pool2d"),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), "aten::avg_pool2d"),
    }
    found += [Subject(name, After(f), (image[2],), op) for name, (f, op) in singles.items()]
    linear, deep = nn.Linear(30, 20), nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    found += [
        Subject("linear", nn.Sequential(linear), (flat,), "quantized::linear"),
        Subject("linear_relu", nn.Sequential(nn.Linear(30, 20), nn.ReLU()), (flat,), "quantized::linear_relu"),
        Subject("mlp", deep, (flat,), "quantized::linear_relu"),
        Subject("linear dynamic", nn.Sequential(linear), (flat,), "quantized::linear_dynamic", dynamic=True),
        Subject("mlp dynamic", deep, (flat,), "quantized::linear_dynamic", dynamic=True),
        Subject(
            "wide linear dynamic", nn.Sequential(nn.Linear(30, 256)), (flat,), "quantized::linear_dynamic", dynamic=True
        ),
    ]
    return found


def theirs(subject: Subject) -> None:
    """The steps of torch's checkGraphModeOp, by tracing."""
    module = subject.module.eval()
    data = [subject.inputs, subject.inputs]
    model = torch.jit.trace(module, subject.inputs).eval()
    outputs, forms = {}, {}
    for debug in (True, False):
        if subject.dynamic:
            forms[debug] = quantize_dynamic_jit(model, {"": default_dynamic_qconfig}, debug=debug)
        else:

            def run(m: nn.Module, calls: list[tuple[Tensor, ...]]) -> None:
                for call in calls:
                    m(*call)

            qconfig = {"": get_default_qconfig("fbgemm")}
            forms[debug] = quantize_jit(model, qconfig, run, [copy.deepcopy(data)], inplace=False, debug=debug)
        outputs[debug] = forms[debug](*subject.inputs)
    torch.testing.assert_close(outputs[True], outputs[False], rtol=1e-3, atol=1e-1)
    FileCheck().check(subject.op).run(forms[False].graph)


def ours(subject: Subject, qconfig: str = "default") -> None:
    """Our check, by tracing."""
    inputs = subject.inputs[0] if subject.dynamic else [subject.inputs, subject.inputs]
    check_graph_mode_op(subject.module, inputs, subject.op, tracing=True, dynamic=subject.dynamic, qconfig=qconfig)


def exported(subject: Subject) -> None:
    """Our check, by torch.export."""
    inputs = subject.inputs[0] if subject.dynamic else [subject.inputs, subject.inputs]
    check_graph_mode_op(subject.module, inputs, subject.op, dynamic=subject.dynamic)


def seconds(check: Callable[[Subject], None], subject: Subject) -> float:
    """How long one check takes."""
    start = time.perf_counter()
    check(subject)
    return time.perf_counter() - start


CHECKS: dict[str, Callable[[Subject], None]] = {
    "torch": theirs,
    "ours, trace": ours,
    "ours, trace, histogram": lambda subject: ours(subject, "histogram"),
    "ours, export": exported,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per check, torch's and ours.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    chosen = subjects()
    times: dict[str, dict[str, list[float]]] = {s.name: {name: [] for name in CHECKS} for s in chosen}
    for number in range(rounds + 1):
        for subject in chosen:
            for name, check in CHECKS.items():
                spent = seconds(check, subject)
                if number:  # the first round warms up
                    times[subject.name][name].append(spent)
    medians = {s: {name: statistics.median(found) for name, found in by.items()} for s, by in times.items()}
    rows = [
        [
            s,
            *(f"{1000 * by[name]:.1f}" for name in CHECKS),
            *(f"{by['torch'] / by[name]:.1f}" for name in list(CHECKS)[1:]),
        ]
        for s, by in medians.items()
    ]
    headers = ["module", *(f"{name} (ms)" for name in CHECKS), *(f"torch / {name}" for name in list(CHECKS)[1:])]
    print(tabulate(rows, headers, tablefmt="github"))
    print(f"\n{len(chosen)} modules, {rounds} rounds, {torch.__version__}, Python {sys.version.split()[0]}")
    for name in list(CHECKS)[1:]:
        ratios = [by["torch"] / by[name] for by in medians.values()]
        per_check = statistics.median(by[name] for by in medians.values())
        print(
            f"{name}: median {1000 * per_check:.1f} ms a check, "
            f"{statistics.median(ratios):.1f} times faster in the median"
        )
    print(f"torch: median {1000 * statistics.median(by['torch'] for by in medians.values()):.1f} ms a check")


if __name__ == "__main__":
    main()
