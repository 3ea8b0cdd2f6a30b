"""What the PyTorch text in a spec may name: tables only. A name that stands in none of them is a spec error."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Constructors as "required, optional=, ..." in their positional order; what follows "*" is keyword-only.
# `device` is left out on purpose: a spec must mean the same on every machine.
_CONV = "in_channels, out_channels, kernel_size, stride=, padding=, dilation=, groups=, bias=, padding_mode=, dtype="
_CONV_TRANSPOSE = (
    "in_channels, out_channels, kernel_size, stride=, padding=, output_padding=, groups=, bias=, dilation=, "
    "padding_mode=, dtype="
)
_BATCH_NORM = "num_features, eps=, momentum=, affine=, track_running_stats=, dtype=, *, bias="
_MAX_POOL = "kernel_size, stride=, padding=, dilation=, return_indices=, ceil_mode="
_AVG_POOL = "kernel_size, stride=, padding=, ceil_mode=, count_include_pad=, divisor_override="
_RECURRENT = "input_size, hidden_size, num_layers=, bias=, batch_first=, dropout=, bidirectional="

_ONE_CONSTRUCTOR = {
    "Linear": "in_features, out_features, bias=, dtype=",
    "Bilinear": "in1_features, in2_features, out_features, bias=, dtype=",
    "Identity": "",
    "Flatten": "start_dim=, end_dim=",
    "Unflatten": "dim, unflattened_size",
    "LayerNorm": "normalized_shape, eps=, elementwise_affine=, bias=, dtype=",
    "RMSNorm": "normalized_shape, eps=, elementwise_affine=, dtype=",
    "GroupNorm": "num_groups, num_channels, eps=, affine=, dtype=, *, bias=",
    "LocalResponseNorm": "size, alpha=, beta=, k=",
    "LeakyReLU": "negative_slope=, inplace=",
    "PReLU": "num_parameters=, init=, dtype=",
    "RReLU": "lower=, upper=, inplace=",
    "GELU": "approximate=",
    "GLU": "dim=",
    "Hardtanh": "min_val=, max_val=, inplace=",
    "Softplus": "beta=, threshold=",
    "Threshold": "threshold, value, inplace=",
    "AvgPool1d": "kernel_size, stride=, padding=, ceil_mode=, count_include_pad=",
    "Embedding": "num_embeddings, embedding_dim, padding_idx=, max_norm=, norm_type=, dtype=",
    "EmbeddingBag": (
        "num_embeddings, embedding_dim, max_norm=, norm_type=, mode=, include_last_offset=, padding_idx=, dtype="
    ),
    "LSTM": _RECURRENT + ", proj_size=, dtype=",
    "GRU": _RECURRENT + ", dtype=",
    "RNN": "input_size, hidden_size, num_layers=, nonlinearity=, bias=, batch_first=, dropout=, bidirectional=, dtype=",
    "LSTMCell": "input_size, hidden_size, bias=, dtype=",
    "GRUCell": "input_size, hidden_size, bias=, dtype=",
    "RNNCell": "input_size, hidden_size, bias=, nonlinearity=, dtype=",
    "MultiheadAttention": (
        "embed_dim, num_heads, dropout=, bias=, add_bias_kv=, add_zero_attn=, kdim=, vdim=, batch_first=, dtype="
    ),
    "Upsample": "size=, scale_factor=, mode=, align_corners=, recompute_scale_factor=",
    "PixelShuffle": "upscale_factor",
    "PixelUnshuffle": "downscale_factor",
    "ChannelShuffle": "groups",
    "Fold": "output_size, kernel_size, dilation=, padding=, stride=",
    "Unfold": "kernel_size, dilation=, padding=, stride=",
}
_SHARED_CONSTRUCTORS = (
    ("Conv1d Conv2d Conv3d", _CONV),
    ("ConvTranspose1d ConvTranspose2d ConvTranspose3d", _CONV_TRANSPOSE),
    ("BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d", _BATCH_NORM),
    ("ReLU ReLU6 SELU SiLU Mish Hardsigmoid Hardswish", "inplace="),
    ("ELU CELU", "alpha=, inplace="),
    ("Sigmoid LogSigmoid Tanh Tanhshrink Softsign Softmax2d", ""),
    ("Hardshrink Softshrink", "lambd="),
    ("Softmax Softmin LogSoftmax", "dim="),
    ("MaxPool1d MaxPool2d MaxPool3d", _MAX_POOL),
    ("AvgPool2d AvgPool3d", _AVG_POOL),
    ("LPPool1d LPPool2d LPPool3d", "norm_type, kernel_size, stride=, ceil_mode="),
    ("AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d", "output_size"),
    ("AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d", "output_size, return_indices="),
    ("Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout", "p=, inplace="),
    ("UpsamplingNearest2d UpsamplingBilinear2d", "size=, scale_factor="),
    ("ZeroPad1d ZeroPad2d ZeroPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d", "padding"),
    ("ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d", "padding"),
    ("ConstantPad1d ConstantPad2d ConstantPad3d", "padding, value"),
)

CONSTRUCTORS: Mapping[str, str] = MappingProxyType(
    _ONE_CONSTRUCTOR | {name: signature for names, signature in _SHARED_CONSTRUCTORS for name in names.split()}
)
"""Module class in `torch.nn` -> its constructor's parameters."""

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})
"""Classes in `torch.nn` whose arguments are modules."""

PARAMETER_TENSORS = frozenset({"zeros", "ones", "full", "randn"})
"""What `nn.Parameter(...)` may be made of: `torch.<name>(...)`."""

FUNCTIONAL = _words(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu celu_
    channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity
    dropout dropout1d dropout2d dropout3d elu elu_ embedding embedding_bag fold gelu glu grid_sample affine_grid
    group_norm hardshrink hardsigmoid hardswish hardtanh hardtanh_ instance_norm interpolate layer_norm leaky_relu
    leaky_relu_ linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d
    max_pool2d max_pool3d mish normalize one_hot pad pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ rms_norm
    scaled_dot_product_attention selu selu_ sigmoid silu softmax softmin softplus softshrink softsign tanh
    tanhshrink threshold threshold_ unfold upsample
    """
)
"""Functions of `torch.nn.functional`, written `F.<name>`."""

# Named both `torch.<name>` and as a method of a tensor.
_FUNCTION_AND_METHOD = _words(
    """
    abs abs_ add all allclose amax amin any arctan argmax argmin argsort atan baddbmm addmm bmm broadcast_to ceil
    chunk clamp clamp_ clamp_max clamp_min clone cos cosh cumsum cumprod detach diff div dot eq erf erf_ exp exp_
    expm1 fix flatten flip rot90 floor floor_divide fmod gather ge gt index_select isnan isinf le lerp log log10 log1p
    log2 logical_and logical_not logical_or logical_xor logsumexp lt masked_fill masked_select matmul max maximum
    mean median min minimum mm movedim mul multiply mv narrow ne neg nonzero norm numel permute pow prod ravel
    reciprocal relu relu_ remainder repeat_interleave reshape roll round rsqrt scatter scatter_add select
    sigmoid sigmoid_ sign sin sinh softmax log_softmax sort split split_with_sizes sqrt square squeeze std sub
    subtract sum swapaxes swapdims t tan tanh tanh_ tensor_split tile topk transpose tril triu true_divide trunc
    unbind unflatten unsqueeze var where unsafe_chunk
    """
)

TORCH_FUNCTIONS = _FUNCTION_AND_METHOD | _words(
    """
    adaptive_avg_pool1d addcdiv addcmul arange avg_pool1d batch_norm bilinear bucketize cat cdist channel_shuffle
    concat concatenate conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity
    dropout einsum embedding empty_like eye full full_like group_norm hstack instance_norm is_tensor is_floating_point
    layer_norm linspace max_pool1d max_pool2d max_pool3d meshgrid numel ones ones_like outer pixel_shuffle
    pixel_unshuffle prelu rms_norm rrelu selu stack tensor tensordot threshold vstack zeros zeros_like celu
    """
)
"""Functions written `torch.<name>`."""

TENSOR_METHODS = _FUNCTION_AND_METHOD | _words(
    """
    add_ bernoulli bool ceil_ contiguous copy_ cos_ detach_ dim div_ double element_size expand expand_as fill_
    float floor_ half hardshrink index_add index_copy index_fill index_put int is_contiguous
    is_floating_point item log_ long masked_fill_ mul_ neg_ new_full new_ones new_zeros
    permute pow_ reciprocal_ repeat reshape_as round_ rsqrt_ short sin_ size sqrt_ squeeze_ stride sub_
    t_ to tolist transpose_ tril_ triu_ type_as unfold unsqueeze_ view view_as zero_
    append items keys values
    """
)
"""Methods of tensors, and those of lists, dicts, `nn.ModuleList` and `nn.ModuleDict`."""

TENSOR_ATTRIBUTES = frozenset({"shape", "ndim", "T", "mT", "dtype", "device", "values", "indices", "requires_grad"})
"""What may be read from a tensor, or from the pair that `torch.max(x, dim)` returns."""

LAYER_ATTRIBUTES = _words(
    """
    weight bias in_features out_features in_channels out_channels kernel_size stride padding dilation groups
    num_features running_mean running_var eps embedding_dim num_embeddings hidden_size input_size training
    """
)
"""What may be read from a layer."""

DTYPES = _words(
    """
    float32 float float64 double float16 half bfloat16 int8 uint8 int16 short int32 int int64 long bool
    """
)
"""Dtypes, written `torch.<name>`."""

TORCH_CONSTANTS = frozenset({"pi", "inf", "nan", "e", "contiguous_format", "channels_last", "channels_last_3d"})
"""Constants, written `torch.<name>`."""

MATH = _words(
    """
    pi e inf nan tau sqrt exp log log2 log10 sin cos tan tanh atan floor ceil fabs isqrt gcd isnan isinf trunc
    """
)
"""Constants and functions of `math`; `pow`, `factorial` and the like are left out: they can build huge integers."""

BUILTINS = frozenset(
    {"range", "len", "int", "float", "bool", "min", "max", "abs", "sum", "enumerate", "zip", "list", "tuple"}
)
"""Built-in functions, allowed where they are called."""

ANNOTATIONS = frozenset({"Tensor", "Optional", "List", "Tuple", "Dict", "int", "float", "bool", "str"})
"""Names that may stand in an annotation, besides `torch.Tensor`, `None`, `list`, `tuple` and `dict`."""

NAMESPACE_NAMES = frozenset({"torch", "nn", "F", "math", "Tensor", "Optional", "List", "Tuple", "Dict"}) | BUILTINS
"""Every global name that checked text may use: what the namespace it is compiled in must hold."""

SIZING = _words(
    """
    zeros ones full randn eye arange linspace repeat tile repeat_interleave expand broadcast_to new_zeros new_ones
    new_full interpolate upsample one_hot pad
    """
)
"""Calls whose constants decide how much memory they take; the product of these is bounded."""

MODULE_ATTRIBUTES = _words(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad
    """
)
"""Names that `nn.Module` has already: no layer and no helper method may take one."""
