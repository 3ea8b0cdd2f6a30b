"""A conformance suite for quantized PyTorch.

    from conformance import check_graph_mode_op, executed_ops

The names are imported when they are first used, so that pytest may load the plug-in without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "check_graph_mode_op": "graph_mode",
    "checkGraphModeOp": "graph_mode",
    "executed_ops": "graph_mode",
    "check_quantizer": "quantizer_check",
    "parametrize": "plugin",
    "check": "plugin",
    "ConformanceError": "errors",
    "SpecError": "errors",
    "Unsupported": "errors",
    "About": "backend",
    "Backend": "backend",
    "Program": "backend",
    "Quantized": "backend",
    "Task": "backend",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (one list of names is enough)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'conformance' has no attribute {name!r}")
    value = getattr(import_module(f"conformance.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
