"""What the export flows of torch and torchao do again in every case, to no effect: most of what a small case takes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch


@contextmanager
def spared() -> Iterator[None]:
    """Leave out meanwhile what takes long and can't change the result of a conversion after calibration.

    The collector of garbage looks through all of torch again and again, up to a quarter of a case's time.
    """
    with ExitStack() as stack:
        for module, name, instead in _replaced():
            if hasattr(module, name):  # they are private, and other versions may have no such thing
                stack.enter_context(patch.object(module, name, instead(getattr(module, name))))
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        yield


def _replaced() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """Functions by module and name, and what stands for each."""
    from torch._export import utils

    # Called for each namespace of operators, in each export: a fifth of a case's time.
    yield utils, "_materialize_cpp_cia_ops", functools.cache
    if find_spec("torchao") is not None:
        from torchao.quantization.pt2e import quantize_pt2e

        # Traces its patterns, which takes 15 s, wherever a batch norm is left; only training leaves what they match.
        yield quantize_pt2e, "_fold_conv_bn_qat", _nothing


def _nothing(step: Any) -> Callable[[Any], Any]:
    """A step that leaves a model as it is."""
    return lambda model: model
