"""One case as a Python script that stands alone: its module, weights and inputs in plain PyTorch."""

from __future__ import annotations

import pprint
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from conformance.case import Case
from conformance.qconfigspec import QConfigModel
from conformance.source import Composite, Factory, Leaf, ModuleSource, Sequence
from conformance.tensorspec import Distribution, Draw, TensorQParams, TensorSpec

HEAD: Final = '''\
"""{id}

{why}
Needs torch; what stands below "On a backend" also needs this suite and the backend's packages.
"""

import hashlib
import math
from fnmatch import fnmatchcase
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED = {seed}


def source(purpose):
    """A random source of its own for each purpose."""
    digest = hashlib.sha256(f"{{SEED}}:{{purpose}}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
'''
OUTLIERS: Final = """

def outliers(shape, low, high, count, value, generator):
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
    drawn.view(-1)[torch.randperm(drawn.numel(), generator=generator)[:count]] = value
    return drawn
"""
REAL: Final = '''

def real(stored, scale, zero_point, axis):
    """What integers mean, rounded once to float32; one scale and zero point, or as many as there are along the axis."""
    shape = [1] * stored.dim()
    if axis is not None:
        shape[axis] = -1
    scale, zero_point = (torch.tensor(each, dtype=torch.float64).reshape(shape) for each in (scale, zero_point))
    return ((stored.double() - zero_point) * scale).float()
'''
STATISTICS: Final = """\
for part in module.modules():
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        # As they are made, batch norms change nothing.
        ranges = {"running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0), "weight": (0.5, 1.5), "bias": (-0.5, 0.5)}
        for name, (low, high) in ranges.items():
            if getattr(part, name) is not None:
                with torch.no_grad():
                    drawn = torch.rand(getattr(part, name).shape, generator=weights)
                    getattr(part, name).copy_(drawn * (high - low) + low)
state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
"""
BACKEND: Final = """\
# On a backend
from contextlib import nullcontext

from conformance.backend import Task
from conformance.backends import open_backend
from conformance.qconfigspec import QConfigModel
from conformance.tensorspec import Dtype, TensorQParams

written = {qconfig}
qconfig = None if written is None else QConfigModel.model_validate(written)
# What integers mean, where a quantized graph is given.
qparams = {qparams}
task = Task(module, inputs, calibration, {mode!r}, {capture!r}, qconfig, qparams)
quantized = open_backend({backend!r}).quantize(task, lambda stage: nullcontext())
with torch.no_grad():
    print("quantized:", quantized.final.call(*(x.clone() for x in inputs)))
print("operators:", ", ".join(quantized.final.ops))
print("by the backend's own names:", dict(quantized.final.native_ops))
"""


def script(case: Case, backend: str) -> str:
    """Return Python text that makes a case's module and tensors as the suite does, and runs them on `backend`.

    Up to the last section it needs torch alone, but for a case whose module is a factory of the user's own.
    """
    parts = [HEAD.format(id=case.id, why=textwrap.fill(case.why, 100), seed=case.seed)]
    draws: list[Draw | TensorSpec] = [*case.inputs.values(), *case.calibration.inputs.values(), *case.weights.values()]
    if any(drawn.distribution is Distribution.OUTLIERS for drawn in draws):
        parts.append(OUTLIERS)
    if case.qparams:
        parts.append(REAL)
    classes: list[str] = []
    made = _made(case.module, classes)
    parts += [f"\n\n{text}" for text in classes]
    parts.append(f"\n\n{_imports(case.module)}torch.manual_seed(SEED)\nmodule = {made}\n")
    parts.append(f'weights = source("weights")\n{STATISTICS}{_weights(case)}module.eval()\n\n')
    parts.append(f"inputs = {_batch(case, case.inputs, 'inputs')}\ncalibration = {_calibration(case)}\n")
    parts.append('with torch.no_grad():\n    print("float:", module(*(x.clone() for x in inputs)))\n\n')
    written = pprint.pformat(_plain(case.qconfig), width=110, sort_dicts=False)
    flow = {"mode": str(case.mode), "capture": str(case.capture), "backend": backend}
    parts.append(BACKEND.format(qconfig=written, qparams=_qparams(case), **flow))
    return "".join(parts)


def _plain(qconfig: QConfigModel | None) -> dict[str, Any] | None:
    """What was said of a QConfig, as it may be written; pydantic does not know the frozen mappings in it."""
    if qconfig is None:
        return None
    return qconfig.model_dump(mode="json", exclude_unset=True, fallback=dict, warnings=False)


def _made(source: ModuleSource, classes: list[str]) -> str:
    """The expression that makes a module; the classes that it needs are added, inner ones first."""
    if isinstance(source, Leaf):
        return source.expression.text
    if isinstance(source, Sequence):
        return f"nn.Sequential({', '.join(_made(item, classes) for item in source.items)})"
    if isinstance(source, Factory):
        return f"{source.target.partition(':')[2]}()"
    layers = [f"        self.{name} = {_made(inner, classes)}" for name, inner in source.layers.items()]
    name = f"Module{len(classes) + 1}"
    classes.append(_class(name, source, layers))
    return f"{name}()"


def _class(name: str, source: Composite, layers: list[str]) -> str:
    made = ["    def __init__(self):", "        super().__init__()", *layers, ""] if layers else []
    methods = textwrap.indent(source.function.text.strip("\n"), "    ")
    return "\n".join([f"class {name}(nn.Module):", *made, methods, ""])


def _imports(source: ModuleSource) -> str:
    if not isinstance(source, Factory):
        return ""
    package, _, name = source.target.partition(":")
    return f"from {package} import {name}\n\n"


def _weights(case: Case) -> str:
    """Statements that overwrite the parameters which the spec's patterns name."""
    lines: list[str] = []
    for pattern, spec in case.weights.items():
        params = case.qparams.get(pattern)
        drawn = _drawn(spec, "tuple(tensor.shape)", "weights")
        drawn = f"({drawn}).to(tensor.dtype)" if params is None else _real(drawn, params)
        lines += ["for name, tensor in state.items():", f"    if fnmatchcase(name, {pattern!r}):"]
        lines += ["        with torch.no_grad():", f"            tensor.copy_({drawn})"]
    return "".join(f"{line}\n" for line in lines)


def _calibration(case: Case) -> str:
    """The batches as `conformance.inputs.calibration_of` draws them, one a line."""
    own = case.calibration.inputs
    drawn = [_batch(case, {**case.inputs, **own}, f"calibration {n}") for n in range(case.calibration.batches)]
    batches = drawn if own else ["tuple(x.clone() for x in inputs)", *drawn[1:]]
    return "[\n" + "".join(f"    {batch},\n" for batch in batches) + "]"


def _batch(case: Case, specs: Mapping[str, TensorSpec], purpose: str) -> str:
    return f"({', '.join(_tensors(case, specs, purpose))},)"


def _tensors(case: Case, specs: Mapping[str, TensorSpec], purpose: str) -> Iterator[str]:
    for name, spec in specs.items():
        drawn = _drawn(spec, repr(tuple(spec.shape)), f"source({f'{purpose} {name}'!r})")
        params = case.qparams.get(name)
        yield f"({drawn}).to(torch.{spec.dtype})" if params is None else _real(drawn, params)


def _real(drawn: str, params: TensorQParams) -> str:
    step = f"{params.scale!r}, {params.zero_point!r}, {params.axis!r}"
    return f"real(({drawn}).to(torch.{params.dtype}), {step})"


def _qparams(case: Case) -> str:
    """The mapping of a task, a tensor a line."""
    lines = [f"    {name!r}: {_params(params)},\n" for name, params in case.qparams.items()]
    return "{\n" + "".join(lines) + "}" if lines else "{}"


def _params(params: TensorQParams | None) -> str:
    if params is None:
        return "None"
    return f"TensorQParams(Dtype({str(params.dtype)!r}), {params.scale!r}, {params.zero_point!r}, {params.axis!r})"


def _drawn(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    return DRAWN[spec.distribution](spec, shape, source)


def _uniform(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    low, high = spec.range
    return f"torch.rand({shape}, generator={source}, dtype=torch.float64) * {high - low!r} + {low!r}"


def _normal(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    low, high = spec.range
    return (
        f"torch.randn({shape}, generator={source}, dtype=torch.float64) * {(high - low) / 6!r} + {(low + high) / 2!r}"
    )


def _integers(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    low, high = (int(bound) for bound in spec.range)
    return f"torch.randint({low}, {high + 1}, {shape}, generator={source})"


def _constant(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    return f"torch.full({shape}, {spec.value!r}, dtype=torch.float64)"


def _values(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    return f"torch.tensor({spec.values!r}, dtype=torch.float64).expand({shape}).clone()"


def _outliers(spec: Draw | TensorSpec, shape: str, source: str) -> str:
    assert spec.outliers is not None
    low, high = spec.range
    return f"outliers({shape}, {low!r}, {high!r}, {spec.outliers.count}, {spec.outliers.value!r}, {source})"


# `conformance.inputs.DRAWN` as text; a shape and a generator, both names or calls, go in.
DRAWN: Final[Mapping[Distribution, Callable[[Draw | TensorSpec, str, str], str]]] = {
    Distribution.UNIFORM: _uniform,
    Distribution.NORMAL: _normal,
    Distribution.INTEGERS: _integers,
    Distribution.CONSTANT: _constant,
    Distribution.OUTLIERS: _outliers,
    Distribution.VALUES: _values,
}
