"""Building a case's float module, with weights that follow from the case's seed alone."""

from __future__ import annotations

import ast
import builtins
import linecache
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from conformance.case import Case
from conformance.errors import ConformanceError, nearest
from conformance.inputs import draw, generator, real
from conformance.source import Composite, Factory, Function, Leaf, ModuleSource, Sequence
from conformance.source_tables import BUILTINS

# Elements of all parameters and buffers together: a quarter of a gigabyte in float32.
MAX_ELEMENTS = 2**26

_NAMES: dict[str, Any] = {
    "torch": torch,
    "nn": nn,
    "F": functional,
    "math": math,
    "Tensor": Tensor,
    **{name: import_module("typing").__dict__[name] for name in ("Optional", "List", "Tuple", "Dict")},
    **{name: getattr(builtins, name) for name in BUILTINS},
    # Python's own warnings import through the builtins of the code that they are about; checked text can't name it.
    "__builtins__": {"__import__": builtins.__import__},
}


def build(case: Case, allow_python: bool = False) -> nn.Module:
    """Build the float module of a case, in evaluation mode; the global random state is left as it was.

    Weights come from torch's own initialisation under the case's seed. Statistics and scales of batch norms, which
    would make them the identity, are drawn too; then the spec's `parameters:` are applied. Raises ConformanceError
    for a module that is too large, a pattern that names no parameter, and a `python:` module without permission.
    """
    with torch.random.fork_rng(devices=[]):
        # The processor's alone: torch.manual_seed keeps a traceback for each kind of device that is not there.
        torch.default_generator.manual_seed(case.seed)
        if not isinstance(case.module, Factory):
            with torch.device("meta"):
                _check_size(_make(case.module, case.id))
            torch.default_generator.manual_seed(case.seed)
        module = (
            _imported(case.module.target, allow_python)
            if isinstance(case.module, Factory)
            else _make(case.module, case.id)
        )
    source = generator(case.seed, "weights")
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            _draw_statistics(part, source)
    _apply_parameters(module, case, source)
    if case.qparams:  # constants, among them statistics, which torch refuses where they may be trained
        module.requires_grad_(False)
    return module.eval()


def _check_size(module: nn.Module) -> None:
    elements = sum(t.numel() for t in [*module.parameters(), *module.buffers()])
    if elements > MAX_ELEMENTS:
        raise ConformanceError(
            f"the module holds {elements} numbers, expected at most {MAX_ELEMENTS}: make its layers smaller"
        )


def _make(source: ModuleSource, name: str) -> Any:
    if isinstance(source, Leaf):
        return eval(compile(source.expression.tree, f"<{name}>", "eval"), dict(_NAMES))
    if isinstance(source, Sequence):
        return nn.Sequential(*(_make(item, name) for item in source.items))
    assert isinstance(source, Composite)
    return _compose(source, name)


def _compose(source: Composite, name: str) -> nn.Module:
    """A module with the spec's layers and methods; its class is made here, as the text only defines functions."""
    kind = type("SpecModule", (nn.Module,), _methods(source.function, name))
    module: nn.Module = kind()
    for layer, inner in source.layers.items():
        setattr(module, layer, _make(inner, name))
    return module


def _methods(function: Function, name: str) -> dict[str, Callable[..., Any]]:
    """Compile the checked text; its lines are kept where tracebacks and `inspect` look for them."""
    filename = f"<{name} {abs(hash(function.text)):x}>"
    linecache.cache[filename] = (len(function.text), None, function.text.splitlines(keepends=True), filename)
    namespace = dict(_NAMES)
    tree: ast.Module = function.tree
    exec(compile(tree, filename, "exec"), namespace)
    return {method: namespace[method] for method in function.methods}


def _imported(target: str, allow_python: bool) -> nn.Module:
    if not allow_python:
        raise ConformanceError(
            f"the spec runs Python of its own ({target}): allow that with --allow-python if you trust it"
        )
    path, _, name = target.partition(":")
    try:
        factory = getattr(import_module(path), name)
    except (ImportError, AttributeError) as error:
        raise ConformanceError(
            f"python: expected a function that can be imported, found {target!r} ({error}): correct it, or install it"
        ) from error
    module = factory()
    if not isinstance(module, nn.Module):
        raise ConformanceError(f"expected {target} to return a torch.nn.Module, found {type(module).__name__}")
    return module


def _draw_statistics(norm: nn.modules.batchnorm._BatchNorm, source: torch.Generator) -> None:
    ranges = {"running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0), "weight": (0.5, 1.5), "bias": (-0.5, 0.5)}
    for name, (low, high) in ranges.items():
        tensor = getattr(norm, name)
        if tensor is not None:
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=source) * (high - low) + low)


def _apply_parameters(module: nn.Module, case: Case, source: torch.Generator) -> None:
    """Overwrite the parameters and buffers that the spec's patterns name."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for pattern, spec in case.weights.items():
        names = [name for name in state if fnmatchcase(name, pattern)]
        if not names:
            hint = nearest(pattern, state)
            raise ConformanceError(
                f"parameters: {pattern!r} names no parameter.{hint} There are: {', '.join(state) or 'none'}"
            )
        for name in names:
            params = case.qparams.get(name)
            dtype = getattr(torch, params.dtype) if params is not None else state[name].dtype
            drawn = draw(spec, tuple(state[name].shape), dtype, source)
            with torch.no_grad():
                state[name].copy_(drawn if params is None else real(drawn, params))
