"""Canonical names for the operators that torch runs, by the names that its dispatcher knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from conformance.backends.qlib import vocabulary

# Those that move, ask or allocate for others, and compute nothing of a model's.
NOTHING = frozenset(
    f"aten::{name}"
    for name in (
        *("q_scale", "q_zero_point", "qscheme", "q_per_channel_scales", "q_per_channel_zero_points"),
        *("q_per_channel_axis", "_empty_affine_quantized", "_empty_per_channel_affine_quantized", "empty_quantized"),
        *("item", "_local_scalar_dense", "is_nonzero", "size", "numel", "equal", "detach", "detach_", "lift_fresh"),
        *("contiguous", "clone", "alias", "to", "_to_copy", "copy_", "empty", "empty_like", "empty_strided", "resize_"),
        *("resize_as_", "set_", "as_strided_", "resolve_conj", "resolve_neg", "zeros", "ones", "full", "arange"),
        *("zeros_like", "ones_like", "full_like", "scalar_tensor", "fill_", "zero_", "dropout", "feature_dropout"),
        *("sym_size", "sym_numel", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "int_repr"),
    )
)
# What they say that their canonical names don't.
NAMED: Mapping[str, str] = MappingProxyType(
    {
        "aten::quantize_per_tensor": "quantized::quantize_per_tensor",
        "aten::quantize_per_channel": "quantized::quantize_per_channel",
        "aten::quantize_per_tensor_dynamic": "quantized::quantize_per_tensor",
        "aten::dequantize": "quantized::dequantize_per_tensor",
        "aten::choose_qparams_optimized": "quantized::choose_qparams",
        "aten::_choose_qparams_per_tensor": "quantized::choose_qparams",
        "aten::quantized_lstm": "quantized::lstm_dynamic",
        "aten::quantized_gru": "quantized::gru_dynamic",
        "quantized::embedding_bag_byte_rowwise_offsets": "quantized::embedding_bag_byte",
        "quantized::embedding_bag_4bit_rowwise_offsets": "quantized::embedding_bag_4bit",
        "quantized_decomposed::quantize_per_tensor": "quantized::quantize_per_tensor",
        "quantized_decomposed::quantize_per_channel": "quantized::quantize_per_channel",
        "quantized_decomposed::dequantize_per_tensor": "quantized::dequantize_per_tensor",
        "quantized_decomposed::dequantize_per_channel": "quantized::dequantize_per_channel",
        "quantized_decomposed::choose_qparams": "quantized::choose_qparams",
        "quantized_decomposed::choose_qparams_symmetric": "quantized::choose_qparams",
    }
)
# Other names for the same operator.
_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "view": "reshape",
        "_unsafe_view": "reshape",
        "_reshape_alias": "reshape",
        "t": "transpose",
        "swapaxes": "transpose",
        "numpy_T": "permute",
        "concat": "cat",
        "concatenate": "cat",
        "clip": "clamp",
        "unsafe_chunk": "chunk",
        "unsafe_split": "split",
        "max_pool2d_with_indices": "max_pool2d",
        "max_pool3d_with_indices": "max_pool3d",
        "quantized_max_pool1d": "max_pool1d",
        "quantized_max_pool2d": "max_pool2d",
        "quantized_max_pool3d": "max_pool3d",
        "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
        "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
        "_softmax": "softmax",
        "_log_softmax": "log_softmax",
        "quantized_batch_norm": "batch_norm",
        "true_divide": "div",
        "multiply": "mul",
        "subtract": "sub",
        "rsub": "rsub_scalar",
    }
)


def plain(name: str) -> str:
    """An operator's name without its namespace, in place or not, as the canonical names have it."""
    space, _, short = name.partition("::")
    if space == "quantized":
        short = short.removesuffix("_out")  # written into a tensor that is given
    if not short.endswith("__"):
        short = short.removesuffix("_")
    return _ALIASES.get(short, short)


def in_float(name: str) -> str:
    """The canonical name of an operator of torch on real numbers."""
    return f"aten::{plain(name)}" if name.startswith("aten::") else f"unmapped:{name}"


def on_integers(name: str) -> str:
    """The canonical name of an operator of torch on integers; `unmapped:` and its own where there is none."""
    known = vocabulary()
    full = f"quantized::{plain(name)}"
    full = known.aliases.get(full, full)
    return full if full in known.operators else f"unmapped:{name}"
