"""One way of writing each operator, whichever capture the graph came from.

Normal form: every argument that can be positional is, defaults included, in the order of the schema; arguments that are
keywords only stand where they differ from their default; lists of one entry per dimension have their full length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from qlib.frontends.decompose import DECOMPOSED
from qlib.frontends.pools import POOLS
from qlib.frontends.reductions import REDUCTIONS
from qlib.frontends.views import permutation
from qlib.graph import become
from qlib.regions import references

_aten = torch.ops.aten
Rewrite = Callable[[fx.Node], None]

# Arguments that choose a GPU's implementation, which the capture methods fill in differently.
_ABOUT_GPUS = frozenset({"cudnn_enabled", "cudnn_enable"})


@dataclass(frozen=True)
class _Argument:
    name: str
    keyword: bool
    default: Any
    length: int | None


@cache
def _arguments(target: OpOverload) -> tuple[_Argument, ...]:
    return tuple(
        _Argument(
            a.name,
            a.kwarg_only,
            a.default_value if a.has_default_value() else None,
            a.N  # type: ignore[attr-defined]
            if str(a.type) in ("List[int]", "Optional[List[int]]")
            else None,
        )
        for a in target._schema.arguments
    )


def fill_arguments(graph: fx.Graph) -> None:
    """Bring the arguments of every call of an ATen operator into normal form, in place; also in branches and loops."""
    for reference in references(graph):
        fill_arguments(reference.meta["graph"])
    for node in graph.nodes:
        if isinstance(node.target, OpOverload):
            _fill(node)


def _fill(node: fx.Node) -> None:
    assert isinstance(node.target, OpOverload)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for position, argument in enumerate(_arguments(node.target)):
        if position < len(node.args):
            value: Any = node.args[position]
        else:
            value = node.kwargs.get(argument.name, argument.default)
        if argument.name in _ABOUT_GPUS:
            value = argument.default if argument.default is not None else True
        if argument.length and isinstance(value, list | tuple | int):
            value = _full_length(value, argument.length)
        if not argument.keyword:
            args.append(value)
        elif value is not argument.default and value != argument.default:
            kwargs[argument.name] = value
    node.args, node.kwargs = tuple(args), kwargs


def _full_length(value: Any, length: int) -> list[Any]:
    entries = [value] if isinstance(value, int) else list(value)
    return entries * length if len(entries) == 1 else entries


def normalize(graph: fx.Graph) -> None:
    """Rewrite a functional graph into normal form, in place, and remove what has no effect; also inside."""
    for reference in references(graph):
        normalize(reference.meta["graph"])
    fill_arguments(graph)
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload):
            _creation_arguments(node)
            rewrite = REWRITES.get(node.target)
            if rewrite is not None:
                rewrite(node)
    remove_dead_code(graph)


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove every node whose result nobody uses, except those that change something else."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr") and not _has_effect(node):
            graph.erase_node(node)


def _has_effect(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    # In training these two change their running statistics, which their schemas don't say.
    training = {_aten.batch_norm.default: 5, _aten.instance_norm.default: 5}.get(node.target)
    return node.target._schema.is_mutable or (training is not None and bool(node.args[training]))


# ----------------------------------------------------------------------------------------------------------- rewriting


def _vanish(node: fx.Node) -> None:
    """Put the first argument in the place of a node."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _shape(node: Any) -> list[int]:
    return list(node.meta["shape"])


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _creation_arguments(node: fx.Node) -> None:
    """Tensors made from nothing say their type, whatever the default; layout, pinning and the CPU go without saying."""
    names = {a.name for a in _arguments(node.target) if a.keyword}
    if not {"dtype", "layout", "device"} <= names or "dtype" not in node.meta:
        return
    kept = {key: value for key, value in node.kwargs.items() if key not in ("layout", "device", "pin_memory")}
    node.kwargs = {**kept, "dtype": node.meta["dtype"]}


def _reshape(node: fx.Node) -> None:
    become(node, _aten.reshape.default, node.args[0], node.args[1])


def _reshape_like(node: fx.Node) -> None:
    become(node, _aten.reshape.default, node.args[0], _shape(node))


def _expand_like(node: fx.Node) -> None:
    become(node, _aten.expand.default, node.args[0], _shape(node))


def _permute(node: fx.Node) -> None:
    order = permutation(node.target, len(_shape(_source(node))), node.args[1:])  # type: ignore[arg-type]
    become(node, _aten.permute.default, node.args[0], order)


def _transpose(node: fx.Node) -> None:
    become(node, _aten.transpose.int, *node.args)


def _transpose_last(node: fx.Node) -> None:
    dims = len(_shape(node))
    if dims < 2:
        _vanish(node)
    else:
        become(node, _aten.transpose.int, node.args[0], dims - 2, dims - 1)


def _scatter_all(node: fx.Node) -> None:
    """A scatter that replaces everything."""
    if _shape(node.args[1]) == _shape(node):
        assert isinstance(node.args[1], fx.Node)
        node.replace_all_uses_with(node.args[1])
        node.graph.erase_node(node)


def _narrow(node: fx.Node) -> None:
    source, dim, start, length = node.args
    first = start % max(_shape(source)[dim], 1)  # type: ignore[operator, index]
    become(node, _aten.slice.Tensor, source, dim, first, first + length, 1)  # type: ignore[operator]


def _slice(node: fx.Node) -> None:
    """Bounds as they really are; a slice of everything is nothing."""
    source, dim, start, end, step = node.args
    bounds = slice(start, end, step).indices(_shape(source)[dim])  # type: ignore[index]
    if _shape(source) == _shape(node) and bounds[2] == 1:
        _vanish(node)
    else:
        become(node, _aten.slice.Tensor, source, dim, *bounds)


def _memory_format(node: fx.Node) -> None:
    """A copy in the usual order of dimensions is nothing; one in another order is an order that was asked for."""
    wanted = [*node.args[1:], *node.kwargs.values()]
    if torch.channels_last not in wanted and torch.channels_last_3d not in wanted:
        _vanish(node)


def _convert(node: fx.Node) -> None:
    """A conversion of the type; to the same type it is nothing."""
    if _source(node).meta["dtype"] == node.meta["dtype"]:
        _vanish(node)
    else:
        become(node, _aten.to.dtype, node.args[0], node.meta["dtype"], False, False, None)


def _dropout(node: fx.Node) -> None:
    if not node.args[2]:
        _vanish(node)


_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
_TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)


def _convolution(node: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
    dims = len(_shape(weight)) - 2
    stride, padding, dilation, output_padding = (
        _full_length(value, dims) for value in (stride, padding, dilation, output_padding)
    )
    if transposed:
        become(node, _TRANSPOSED[dims - 1], x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        become(node, _CONVOLUTIONS[dims - 1], x, weight, bias, stride, padding, dilation, groups)
    _unbatched(node)


def _unbatched(node: fx.Node) -> None:
    """A convolution between an unsqueeze and a squeeze of a batch of one takes the input without a batch itself."""
    batched = _source(node)
    users = list(node.users)
    alone = batched.target is _aten.unsqueeze.default and batched.args[1] == 0 and _shape(batched)[0] == 1
    if alone and all(user.target is _aten.squeeze.dim and user.args[1] == 0 for user in users):
        node.update_arg(0, batched.args[0])
        node.meta["shape"] = node.meta["shape"][1:]
        for user in users:
            _vanish(user)


def _named_padding(node: fx.Node) -> None:
    """Padding "valid" and "same" as numbers; "same" pads the right side more where the total is odd."""
    x, weight, bias, stride, padding, dilation, groups = node.args
    kernel = _shape(weight)[2:]
    dims = len(kernel)
    stride, dilation = _full_length(stride, dims), _full_length(dilation, dims)
    totals = [step * (size - 1) if padding == "same" else 0 for step, size in zip(dilation, kernel, strict=True)]
    sides = [total // 2 for total in totals]
    extra = [total % 2 for total in totals]
    if any(extra):
        assert isinstance(x, fx.Node)
        pad = [entry for right in reversed(extra) for entry in (0, right)]
        shape = _shape(x)
        shape = shape[:-dims] + [size + right for size, right in zip(shape[-dims:], extra, strict=True)]
        with node.graph.inserting_before(node):
            x = node.graph.call_function(_aten.constant_pad_nd.default, (x, pad, 0))
        x.meta = {**node.meta, "shape": tuple(shape)}
    become(node, _CONVOLUTIONS[dims - 1], x, weight, bias, stride, sides, dilation, groups)
    _unbatched(node)


_REFLECTIONS = (_aten.reflection_pad1d.default, _aten.reflection_pad2d.default, _aten.reflection_pad3d.default)
_REPLICATIONS = (_aten.replication_pad1d.default, _aten.replication_pad2d.default, _aten.replication_pad3d.default)


def _pad(node: fx.Node) -> None:
    x, pad, mode, value = node.args
    dims = len(pad) // 2  # type: ignore[arg-type]
    if mode == "constant":
        become(node, _aten.constant_pad_nd.default, x, pad, 0 if value is None else value)
    elif mode == "reflect":
        become(node, _REFLECTIONS[dims - 1], x, pad)
    elif mode == "replicate":
        become(node, _REPLICATIONS[dims - 1], x, pad)


def _hardtanh(node: fx.Node) -> None:
    if node.args[1:] == (0, 6):
        become(node, _aten.relu6.default, node.args[0])


def _difference(node: fx.Node) -> None:
    """``-x + c``, which is how TorchScript spells ``c - x``."""
    negated, number = node.args
    known = not isinstance(number, fx.Node) and not node.kwargs
    if known and isinstance(negated, fx.Node) and negated.target is _aten.neg.default:
        become(node, _aten.rsub.Scalar, negated.args[0], number, 1)


_OF_A_NUMBER: Mapping[OpOverload, OpOverload] = MappingProxyType(
    {_aten.add.Scalar: _aten.add.Tensor, _aten.sub.Scalar: _aten.sub.Tensor}
)


def _with_number(node: fx.Node) -> None:
    """The form that Python's operators take, where the factor of the second operand is a keyword."""
    tensor, number, factor = node.args
    node.target = _OF_A_NUMBER[node.target]  # type: ignore[index]
    node.args = (tensor, number)
    node.kwargs = {} if factor == 1 else {"alpha": factor}
    if node.target is _aten.add.Tensor:
        _difference(node)


def _alias(target: OpOverload) -> Rewrite:
    def rewrite(node: fx.Node) -> None:
        node.target = target

    return rewrite


_ALIASES: Mapping[OpOverload, OpOverload] = MappingProxyType(
    {
        _aten.subtract.Tensor: _aten.sub.Tensor,
        _aten.multiply.Tensor: _aten.mul.Tensor,
        _aten.divide.Tensor: _aten.div.Tensor,
        _aten.true_divide.Tensor: _aten.div.Tensor,
        _aten.mul.Scalar: _aten.mul.Tensor,
        _aten.div.Scalar: _aten.div.Tensor,
        _aten.concat.default: _aten.cat.default,
        _aten.concatenate.default: _aten.cat.default,
        _aten.unsafe_chunk.default: _aten.chunk.default,
        _aten.unsafe_split.Tensor: _aten.split.Tensor,
        _aten.unsafe_split_with_sizes.default: _aten.split_with_sizes.default,
        _aten.split.sizes: _aten.split_with_sizes.default,
        _aten.clip.default: _aten.clamp.default,
        _aten.negative.default: _aten.neg.default,
        _aten.absolute.default: _aten.abs.default,
        _aten.max.other: _aten.maximum.default,
        _aten.min.other: _aten.minimum.default,
    }
)
_ROWS: tuple[tuple[Rewrite, tuple[OpOverload, ...]], ...] = (
    (_vanish, (_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default, _aten.lift_fresh_copy.default)),
    (_vanish, (_aten.resolve_conj.default, _aten.resolve_neg.default)),
    (_memory_format, (_aten.clone.default, _aten.contiguous.default)),
    (_convert, (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten.to.other, _aten._to_copy.default)),
    (_convert, (_aten.type_as.default,)),
    (_dropout, (_aten.dropout.default, _aten.feature_dropout.default)),
    (_dropout, (_aten.alpha_dropout.default, _aten.feature_alpha_dropout.default)),
    (_reshape, (_aten.view.default, _aten._unsafe_view.default)),
    (_reshape_like, (_aten.view_as.default, _aten.reshape_as.default, _aten.ravel.default)),
    (_expand_like, (_aten.expand_as.default,)),
    (_permute, (_aten.numpy_T.default, _aten.movedim.intlist, _aten.movedim.int, _aten.moveaxis.int)),
    (_transpose, (_aten.swapaxes.default, _aten.swapdims.default)),
    (_transpose_last, (_aten.t.default, _aten.mT.default)),
    (_slice, (_aten.slice.Tensor,)),
    (_scatter_all, (_aten.slice_scatter.default,)),
    (_narrow, (_aten.narrow.default,)),
    (_convolution, (_aten._convolution.default, _aten._convolution.deprecated, _aten.convolution.default)),
    (_unbatched, (*_CONVOLUTIONS, *_TRANSPOSED)),
    (
        _named_padding,
        (_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding, _aten._convolution_mode.default),
    ),
    (_pad, (_aten.pad.default,)),
    *POOLS,
    (_hardtanh, (_aten.hardtanh.default,)),
    *REDUCTIONS,
    *DECOMPOSED,
    (_with_number, tuple(_OF_A_NUMBER)),
    (_difference, (_aten.add.Tensor,)),
    *((_alias(target), (alias,)) for alias, target in _ALIASES.items()),
)
# One row for each operator that is written differently.
REWRITES: Mapping[OpOverload, Rewrite] = MappingProxyType({target: row for row, targets in _ROWS for target in targets})
