"""Canonical names for what torchao's lowered graphs and inductor's code run: oneDNN's kernels with what they fuse."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from conformance.backends.torch_names import NAMED, NOTHING, in_float, on_integers

# oneDNN's kernels that compute on integers, by what they compute.
_KERNELS: Mapping[str, str] = MappingProxyType(
    {
        "onednn::qlinear_pointwise": "linear",
        "onednn::qconv_pointwise": "conv",
        "onednn::qconv1d_pointwise": "conv",
        "onednn::qconv2d_pointwise": "conv",
        "onednn::qconv3d_pointwise": "conv",
    }
)
# What they may do to each result, and to the sum with another tensor, by oneDNN's names.
_AFTER: Mapping[str, str] = MappingProxyType(
    {
        "hardtanh": "hardtanh",
        "hardswish": "hardswish",
        "swish": "silu",
        "gelu": "gelu",
        "leaky_relu": "leaky_relu",
        "tanh": "tanh",
        "sigmoid": "sigmoid",
    }
)
_SUMS = frozenset({"add", "sum"})
# Inductor's calls of float kernels by what they stand for.
_EXTERN: Mapping[str, str] = MappingProxyType(
    {"addmm": "aten::linear", "mm": "aten::linear", "bmm": "aten::bmm", "baddbmm": "aten::bmm"}
)


@dataclass(frozen=True)
class Kernel:
    """A call of one of oneDNN's kernels: its name, overload, the words and lists of numbers among its arguments.

    `integers` says whether its results are integers too.
    """

    name: str
    overload: str
    words: tuple[str, ...]
    lists: tuple[tuple[float, ...], ...]
    integers: bool


def of_kernel(kernel: Kernel) -> tuple[str, ...]:
    """The operators that a kernel stands for, in order; what it fuses is in integers where its results are."""
    head = _KERNELS[kernel.name]
    if head == "conv":
        head = f"conv{len(kernel.lists[0])}d" if kernel.lists else "conv2d"
    dynamic = "_dynamic" if "tensor" in kernel.overload else ""
    relu = "_relu" if "relu" in kernel.words else ""
    space = "quantized" if kernel.integers else "aten"
    after = [f"{space}::{_AFTER[word]}" for word in kernel.words if word in _AFTER]
    if not _SUMS & set(kernel.words):
        return (f"quantized::{head}{relu}{dynamic}", *after)
    total = [f"quantized::add{relu}"] if kernel.integers else ["aten::add", *(["aten::relu"] if relu else [])]
    return (f"quantized::{head}{dynamic}", *total, *after)


def of_graph(model: Any) -> tuple[str, ...]:
    """The operators that a graph of the export flow runs, in order, by canonical name."""
    return tuple(_of_graph(model))


def native(model: Any) -> tuple[str, ...]:
    """The operators that such a graph runs, in order, by torch's names."""
    return tuple(node.target._schema.name for node in model.graph.nodes if hasattr(node.target, "_schema"))


def _of_graph(model: Any) -> Iterator[str]:
    integers: set[Any] = set()
    for node in model.graph.nodes:
        gets_integers = any(source in integers for source in node.all_input_nodes)
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            integers.update({node} if gets_integers and node.op == "call_function" else ())
            continue
        name = node.target._schema.name
        kernel = _kernel(node) if name in _KERNELS else None
        if kernel is not None:
            names = of_kernel(kernel)
            gives_integers = kernel.integers
        elif name in NOTHING:
            names, gives_integers = (), gets_integers
        elif name in NAMED:
            names, gives_integers = (NAMED[name],), "::quantize_" in name
        else:
            names, gives_integers = ((on_integers if gets_integers else in_float)(name),), gets_integers
        integers.update({node} if gives_integers else ())
        yield from names


def _kernel(node: Any) -> Kernel:
    import torch

    given = [*node.args, *node.kwargs.values()]
    return Kernel(
        node.target._schema.name,
        node.target._overloadname,
        tuple(value for value in given if isinstance(value, str)),
        tuple(tuple(value) for value in given if isinstance(value, list | tuple) and value and _numbers(value)),
        any(value in (torch.uint8, torch.int8) for value in given if isinstance(value, torch.dtype)),
    )


def _numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


_CALL = re.compile(
    r"torch\.ops\.(?P<space>\w+)\.(?P<name>\w+)\.(?P<overload>\w+)\((?P<given>.*)\)"
    r"|extern_kernels\.(?P<extern>\w+)\(|(?P<fused>cpp_fused_\w+?)(?:_\d+)?\("
)


def of_code(code: str, mode: str) -> tuple[str, ...]:
    """The operators that inductor's code calls, in order; its own loops are `unmapped:`, as they are of any type.

    `mode` tells dynamic kernels: inductor passes scales that are known beforehand as tensors too.
    """
    body = code.partition("def call(")[2]
    return tuple(name for line in body.splitlines() if (found := _CALL.search(line)) for name in _of_line(found, mode))


def _of_line(found: re.Match[str], mode: str) -> tuple[str, ...]:
    if found["fused"]:
        return (f"unmapped:{found['fused']}",)
    if found["extern"]:
        return (_EXTERN.get(found["extern"], f"unmapped:extern_kernels.{found['extern']}"),)
    name, given = f"{found['space']}::{found['name']}", found["given"]
    if name in _KERNELS:
        lists = (re.findall(r"-?[\d.]+", text) for text in re.findall(r"\[([^\]]*)\]", given))
        numbers = tuple(tuple(map(float, items)) for items in lists if items)
        words = tuple(re.findall(r"'(\w+)'", given))
        overload = found["overload"] if mode == "dynamic" else ""
        return of_kernel(Kernel(name, overload, words, numbers, bool(re.search(r"torch\.u?int8", given))))
    if name in NOTHING:
        return ()
    if name in NAMED:
        return (NAMED[name],)
    return ((on_integers if name.startswith("quantized::") else in_float)(name),)
