"""Operators with weights, products of matrices and normalisations, as ONNX's operators."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

import qlib.kernels  # noqa: F401  (registers the operators that are read here)
from qlib.onnx.bags import embedding_bag
from qlib.onnx.borders import Emit
from qlib.onnx.draft import TYPES, Draft, over_windows, refuse, shape_of


def linear(draft: Draft, node: fx.Node) -> str:
    """``Gemm`` for a matrix, which engines know with its bias; more dimensions are laid out as one matrix."""
    x, weight, bias = node.args[:3]
    if x.target is torch.ops.qlib.dequantize_per_tensor.tensor and _in_bytes(x) and _in_bytes(weight):  # type: ignore[union-attr]
        return _linear_of_integers(draft, node)
    rows, columns = shape_of(x), shape_of(node)
    name = draft.value(x, node)
    if len(rows) != 2:
        flat = draft.integers([prod(rows[:-1]), rows[-1]], f"{node.name}_flat")
        name = draft.add("Reshape", [name, flat], f"{node.name}_matrix")
    given = [name, draft.value(weight, node), *([] if bias is None else [draft.value(bias, node)])]
    if len(rows) == 2:
        return draft.add("Gemm", given, node.name, transB=1)
    product = draft.add("Gemm", given, f"{node.name}_product", transB=1)
    return draft.add("Reshape", [product, draft.integers(columns, f"{node.name}_shape")], node.name)


def _in_bytes(dequantized: Any) -> bool:
    """Whether a value is dequantized from 8-bit integers, which are all that ``MatMulInteger`` takes."""
    return dequantized.args[0].meta["dtype"] in (torch.uint8, torch.int8)


def _linear_of_integers(draft: Draft, node: fx.Node) -> str:
    """A linear layer of an input quantized at run time: ``MatMulInteger``, then both scales and the bias in float."""
    x, weight, bias = node.args[:3]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    q, scale, zero_point = (draft.value(a, node) for a in x.args)
    w, w_scale, w_point = weight.args[:3]
    assert isinstance(w, fx.Node)
    stored = draft.stored(w)
    columns = draft.constant(stored.t().contiguous(), f"{node.name}_weight")
    point = draft.add("Cast", [zero_point], f"{node.name}_zero_point", to=TYPES[x.args[0].meta["dtype"]])  # type: ignore[union-attr]
    points, scales = (
        draft.stored(value).to(dtype) if isinstance(value, fx.Node) else torch.tensor(value, dtype=dtype)
        for value, dtype in ((w_point, stored.dtype), (w_scale, torch.float32))
    )
    given = [q, columns, point, draft.constant(points, f"{node.name}_weight_zero_point")]
    acc = draft.add("Cast", [draft.add("MatMulInteger", given, f"{node.name}_sums")], f"{node.name}_float", to=1)
    step = draft.add("Mul", [scale, draft.constant(scales, f"{node.name}_weight_scale")], f"{node.name}_step")
    if bias is None:
        return draft.add("Mul", [acc, step], node.name)
    product = draft.add("Mul", [acc, step], f"{node.name}_product")
    return draft.add("Add", [product, draft.value(bias, node)], node.name)


def convolution(draft: Draft, node: fx.Node) -> str:
    """``Conv``."""
    arguments: tuple[Any, ...] = node.args
    stride, padding, dilation, groups = arguments[3:]
    return _slide(draft, node, "Conv", (stride, padding, dilation, groups))


def transposed(draft: Draft, node: fx.Node) -> str:
    """``ConvTranspose``."""
    arguments: tuple[Any, ...] = node.args
    stride, padding, output_padding, groups, dilation = arguments[3:]
    return _slide(
        draft, node, "ConvTranspose", (stride, padding, dilation, groups), output_padding=list(output_padding)
    )


def _slide(draft: Draft, node: fx.Node, kind: str, window: tuple[Any, ...], **attributes: Any) -> str:
    """A convolution of either kind; `window` is stride, padding, dilation and groups."""
    stride, padding, dilation, groups = window
    kernel = shape_of(node.args[1])[2:]
    return over_windows(
        draft,
        node,
        kind,
        [draft.value(operand, node) for operand in node.args[1:3] if operand is not None],
        len(kernel),
        kernel_shape=kernel,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        **attributes,
    )


def product(draft: Draft, node: fx.Node) -> str:
    """``MatMul``."""
    return draft.add("MatMul", [draft.value(a, node) for a in node.args[:2]], node.name)


def embedding(draft: Draft, node: fx.Node) -> str:
    """``Gather`` of rows."""
    weight, indices = node.args[:2]
    return draft.add("Gather", [draft.value(weight, node), draft.value(indices, node)], node.name, axis=0)


def layer_norm(draft: Draft, node: fx.Node) -> str:
    """``LayerNormalization`` over the last dimensions."""
    arguments: tuple[Any, ...] = node.args
    x, shape, weight, bias, eps = arguments[:5]
    ones = draft.constant(torch.ones(shape), f"{node.name}_ones") if weight is None else draft.value(weight, node)
    given = [draft.value(x, node), ones, *([] if bias is None else [draft.value(bias, node)])]
    return draft.add("LayerNormalization", given, node.name, axis=-len(shape), epsilon=float(eps))


def rms_norm(draft: Draft, node: fx.Node) -> str:
    """``x / sqrt(mean(x * x) + eps) * weight`` over the last dimensions."""
    arguments: tuple[Any, ...] = (*node.args, None, None)
    shape, weight, eps = arguments[1:4]
    x, dtype = draft.value(arguments[0], node), node.meta["dtype"]
    least = draft.constant(torch.finfo(dtype).eps if eps is None else eps, f"{node.name}_eps", dtype)
    axes = draft.integers(range(-len(shape), 0), f"{node.name}_axes")
    mean = draft.add("ReduceMean", [draft.add("Mul", [x, x], f"{node.name}_square"), axes], f"{node.name}_mean")
    root = draft.add("Sqrt", [draft.add("Add", [mean, least], f"{node.name}_moved")], f"{node.name}_root")
    y = draft.add("Div", [x, root], node.name)
    return y if weight is None else draft.add("Mul", [y, draft.value(weight, node)], f"{node.name}_scaled")


def group_norm(draft: Draft, node: fx.Node) -> str:
    """``GroupNormalization``."""
    arguments: tuple[Any, ...] = node.args
    x, groups, weight, bias, eps = arguments[:5]
    channels = shape_of(x)[1]
    scale = draft.constant(torch.ones(channels), f"{node.name}_ones") if weight is None else draft.value(weight, node)
    shift = draft.constant(torch.zeros(channels), f"{node.name}_zeros") if bias is None else draft.value(bias, node)
    given = [draft.value(x, node), scale, shift]
    return draft.add("GroupNormalization", given, node.name, num_groups=groups, epsilon=float(eps))


def instance_norm(draft: Draft, node: fx.Node) -> str:
    """``InstanceNormalization`` by the statistics of the data."""
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, mean, _, by_data, _, eps = arguments[:8]
    if not by_data and mean is not None:
        return batch_norm(draft, node)
    channels = shape_of(x)[1]
    scale = draft.constant(torch.ones(channels), f"{node.name}_ones") if weight is None else draft.value(weight, node)
    shift = draft.constant(torch.zeros(channels), f"{node.name}_zeros") if bias is None else draft.value(bias, node)
    return draft.add("InstanceNormalization", [draft.value(x, node), scale, shift], node.name, epsilon=float(eps))


def batch_norm(draft: Draft, node: fx.Node) -> str:
    """``BatchNormalization`` by running statistics."""
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, mean, variance, training, _, eps = arguments[:8]
    if training or mean is None or variance is None:
        raise refuse(node, "batch normalisation by the statistics of the batch")
    channels = shape_of(x)[1]
    scale = draft.constant(torch.ones(channels), f"{node.name}_ones") if weight is None else draft.value(weight, node)
    shift = draft.constant(torch.zeros(channels), f"{node.name}_zeros") if bias is None else draft.value(bias, node)
    statistics = [draft.value(mean, node), draft.value(variance, node)]
    given = [draft.value(x, node), scale, shift, *statistics]
    return draft.add("BatchNormalization", given, node.name, epsilon=float(eps))


LAYERS: Mapping[str, Emit] = MappingProxyType(
    {
        "aten::linear": linear,
        **{f"aten::conv{d}d": convolution for d in (1, 2, 3)},
        **{f"aten::conv_transpose{d}d": transposed for d in (1, 2, 3)},
        **{f"aten::{name}": product for name in ("matmul", "bmm", "mm")},
        "aten::embedding": embedding,
        "aten::embedding_bag": embedding_bag,
        "aten::layer_norm": layer_norm,
        "aten::rms_norm": rms_norm,
        "aten::group_norm": group_norm,
        "aten::instance_norm": instance_norm,
        "aten::batch_norm": batch_norm,
    }
)
