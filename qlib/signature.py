"""Which inputs a graph holds for: their shapes and types, and the check that is made at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from qlib.errors import CaptureError

Fits = Callable[[Tensor, fx.Node], bool]
NEWLINE = "\n"


def signature(inputs: Sequence[Any]) -> str:
    """The types and shapes of inputs as text, such as "float32[4, 30], int64[4]"; other values by their class."""
    return ", ".join(_kind(value) for value in inputs) or "no inputs"


def check_inputs(model: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Raise CaptureError unless `inputs` have the shapes and types that `model` was captured for."""
    _check(model, inputs, {}, _same)


@contextmanager
def checked_call(
    model: fx.GraphModule, inputs: Sequence[Any], keywords: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[None]:
    """Raise CaptureError for inputs that differ from those captured in more than the first dimension, the batch.

    Most graphs hold for any batch; what torch says of one that does not is raised as a CaptureError too. `keywords` are
    the arguments given by name. A graph made by hand, whose inputs have no shapes, takes anything.
    """
    _check(model, inputs, keywords, _same_but_for_the_batch)
    try:
        yield
    except (RuntimeError, IndexError) as error:
        _check(model, inputs, keywords, _same, f" (torch: {str(error).strip().partition(NEWLINE)[0]})")
        raise


def _check(
    model: fx.GraphModule, inputs: Sequence[Any], keywords: Mapping[str, Any], fits: Fits, said: str = ""
) -> None:
    arguments = model.graph.find_nodes(op="placeholder")
    names = [str(node.target) for node in arguments]
    given = dict(zip(names, inputs, strict=False)) | dict(keywords)
    if given.keys() != set(names) or len(inputs) > len(names):
        raise CaptureError(f"expected {len(names)} inputs ({', '.join(names)}), found {len(inputs) + len(keywords)}")
    for node in arguments:
        value = given[str(node.target)]
        if "shape" in node.meta and not (isinstance(value, Tensor) and fits(value, node)):
            expected = kind(node.meta["dtype"], node.meta["shape"])
            raise CaptureError(
                f"input {node.target!r}: expected {expected}, as the graph was captured for, found {_kind(value)}; "
                f"capture the module again with inputs of this kind{said}"
            )


def _same(value: Tensor, node: fx.Node) -> bool:
    return bool(value.dtype == node.meta["dtype"] and value.shape == node.meta["shape"])


def _same_but_for_the_batch(value: Tensor, node: fx.Node) -> bool:
    shape: tuple[int, ...] = node.meta["shape"]
    return bool(value.dtype == node.meta["dtype"]) and value.dim() == len(shape) and value.shape[1:] == shape[1:]


def kind(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """A type and a shape as text, such as "float32[4, 30]"."""
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def _kind(value: Any) -> str:
    return kind(value.dtype, value.shape) if isinstance(value, Tensor) else type(value).__name__
