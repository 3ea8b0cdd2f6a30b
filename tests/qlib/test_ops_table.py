"""The operator table, and the library operators that are registered from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from qlib.kernels import KERNELS
from qlib.ops import BOUNDARY, BY_HEAD, GROUPS, OPS, Family, Op, When

RESULT = (0.1, 3, 0, 255, torch.uint8)
ROWS = [op for group in GROUPS for op in group.OPS]
WITH_KERNEL = [op.name for op in ROWS if KERNELS[op.kernel].schema is not None]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "reversed": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
}


def stored(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=torch.Generator().manual_seed(5))


def digit(op: Op) -> int:
    return int(next(c for c in op.name if c.isdigit()))


def weight(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return stored(*shape, dtype=torch.int8), torch.full((shape[0],), 0.01), torch.zeros(shape[0], dtype=torch.int32)


def sample_linear(op: Op) -> tuple[Any, ...]:
    return (stored(3, 5), 0.1, 7, *weight(4, 5), torch.arange(4, dtype=torch.int32), *RESULT)


def sample_linear_dynamic(op: Op) -> tuple[Any, ...]:
    return (torch.linspace(-1, 1, 15).reshape(3, 5), *weight(4, 5), torch.arange(4.0), 0, 255, False, torch.uint8)


def sample_conv(op: Op) -> tuple[Any, ...]:
    dim = digit(op)
    window = ([2] * dim, [1] * dim, [1] * dim, 1)
    return (stored(2, 3, *[6] * dim), 0.1, 7, *weight(4, 3, *[3] * dim), None, *window, *RESULT)


def sample_conv_dynamic(op: Op) -> tuple[Any, ...]:
    dim = digit(op)
    x = torch.linspace(-1, 1, 6 * 6**dim).reshape(2, 3, *[6] * dim)
    window = ([2] * dim, [1] * dim, [1] * dim, 1)
    return (x, *weight(4, 3, *[3] * dim), torch.arange(4.0), *window, 0, 255, False, torch.uint8)


def sample_conv_transpose(op: Op) -> tuple[Any, ...]:
    dim = digit(op)
    w, scale, zero_point = weight(4, 3, *[3] * dim)
    window = ([2] * dim, [1] * dim, [1] * dim, 2, [1] * dim)
    return (stored(2, 4, *[5] * dim), 0.1, 7, w, scale[0], zero_point[0], None, *window, *RESULT)


def sample_linear_weight_only(op: Op) -> tuple[Any, ...]:
    scale = torch.rand(4, 3) + 0.5
    return (torch.randn(2, 3, 5), stored(4, 5, dtype=torch.int8), scale, torch.ones(4, 3), 2, torch.arange(4.0))


def sample_table(*rest: Any) -> Callable[[Op], tuple[Any, ...]]:
    """A table of 4 rows, and what is looked up in it."""
    return lambda op: (stored(4, 5), torch.rand(4) + 0.5, torch.arange(4, dtype=torch.int32), None, *rest)


def sample_matmul(op: Op) -> tuple[Any, ...]:
    return (stored(2, 3, 4), 0.1, 7, stored(2, 4, 5), 0.2, 9, *RESULT)


def sample_binary(op: Op) -> tuple[Any, ...]:
    return (stored(2, 3, 4), 0.1, 7, stored(3, 1), 0.2, 9, *RESULT)


def sample_join(op: Op) -> tuple[Any, ...]:
    return ([stored(2, 3, 4), stored(2, 3, 4)], [0.1, 0.2], [7, 9], 1, *RESULT)


# What follows the data in calls of operators that are not windows with a size for each dimension.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "sort": (1, True),
    "topk": (2, 0, False, True),
    "upsample_nearest1d": ([7], None),
    "upsample_nearest2d": (None, [1.5, 2.0]),
    "upsample_nearest3d": ([3, 7, 5], None),
    "upsample_linear1d": ([7], False, None),
    "upsample_bilinear2d": (None, False, [1.5, 2.0]),
    "upsample_trilinear3d": ([3, 7, 5], True, None),
    "mean": ([0, -1], True),
    "sum": (None, False),
    "layer_norm": ([3, 4], torch.randn(3, 4), None, 1e-5, False),
    "group_norm": (1, torch.randn(3), torch.randn(3), 1e-5, False),
    "instance_norm": (None, torch.randn(3), None, None, True, 0.1, 1e-5, False),
    "softmax": (1, None),
    "log_softmax": (1, None),
    "rms_norm": ([3, 4], torch.randn(3, 4), None),
}


def data(op: Op) -> Tensor:
    return stored(2, 3, *([6] * digit(op) if op.name[-1] == "d" else [4]))


def sample_monotone(op: Op) -> tuple[Any, ...]:
    return (data(op), *(ARGUMENTS[op.short_name] if op.short_name in ARGUMENTS else ([2] * digit(op),)))


def sample_computed(op: Op) -> tuple[Any, ...]:
    return (data(op), 0.1, 7, *ARGUMENTS[op.short_name], *RESULT)


def sample_conv_transpose_dynamic(op: Op) -> tuple[Any, ...]:
    _, _, _, w, scale, zero_point, _, *window = sample_conv_transpose(op)[:12]
    x = torch.linspace(-1, 1, 2 * 4 * 5 ** digit(op)).reshape(2, 4, *[5] * digit(op))
    return (x, w, scale, zero_point, torch.arange(6.0), *window, 0, 255, False, torch.uint8)


def sample_masked(op: Op) -> tuple[Any, ...]:
    mask = (torch.arange(4) > 2, -torch.inf) if op.overload == "Scalar" else (torch.randn(3, 1),)
    return (stored(2, 3, 4), 0.1, 7, *mask, -1, 1 / 256, 0, 0, 255, torch.uint8)


def sample_recurrent(op: Op) -> tuple[Any, ...]:
    gates = {"lstm": 4, "gru": 3}.get(op.chain[0].partition("::")[2], 1)
    stored_weights = [weight(gates * 5, size) for size in (4, 5) * 2]
    weights = [list(parts) for parts in zip(*stored_weights, strict=True)]
    states = [torch.linspace(-1, 1, 30).reshape(2, 3, 5)] * (2 if gates == 4 else 1)
    biases = [torch.arange(gates * 5.0) / 9] * 4
    x = torch.linspace(-1, 1, 24).reshape(3, 2, 4)
    return (x, states, *weights, biases, 1, True, True, 0, 255, False, torch.uint8)


def sample_choose(op: Op) -> tuple[Any, ...]:
    return (torch.arange(12).reshape(3, 4) > 5, *sample_binary(op))


def sample_averaging(op: Op) -> tuple[Any, ...]:
    return (stored(2, 3, *[6] * digit(op)), 7, 0, 255, [2] * digit(op))


SAMPLES: dict[str, Callable[[Op], tuple[Any, ...]]] = {
    "linear": sample_linear,
    "linear_dynamic": sample_linear_dynamic,
    "linear_per_token": sample_linear_dynamic,
    "linear_weight_only": sample_linear_weight_only,
    "linear_fp16": lambda op: (torch.randn(2, 3, 5), torch.randn(4, 5).half(), None),
    "conv": sample_conv,
    "conv_dynamic": sample_conv_dynamic,
    "conv_transpose": sample_conv_transpose,
    "conv_transpose_dynamic": sample_conv_transpose_dynamic,
    "recurrent_dynamic": sample_recurrent,
    "embedding": sample_table(torch.tensor([[3, 0, 0], [1, 2, 3]])),
    "embedding_bag": sample_table(torch.tensor([3, 0, 0, 1, 2]), torch.tensor([0, 2, 2]), torch.rand(5), 0, False),
    "matmul": sample_matmul,
    "table": lambda op: (stored(2, 3, 4), stored(256)),
    "channel_table": lambda op: (stored(2, 3, 4), stored(3, 256)),
    "parametric_table": lambda op: (stored(2, 3, 4), stored(3, 256)),
    "computed": sample_computed,
    "homogeneous": sample_computed,
    "masked": sample_masked,
    "combine": sample_binary,
    "mul": sample_binary,
    "div": sample_binary,
    "choose": sample_choose,
    "fill": lambda op: (stored(2, 3, 4), 0.1, 7, torch.arange(4) > 2, -1.5, *RESULT),
    "join": sample_join,
    "monotone": sample_monotone,
    "averaging": sample_averaging,
}


def test_no_two_rows_have_one_name() -> None:
    assert sorted(op.name for op in ROWS) == sorted(OPS)
    assert len({op.short_name for op in ROWS}) == len(ROWS)
    assert not {op.name for op in ROWS} & set(BOUNDARY)


def test_no_two_rows_stand_for_the_same_thing() -> None:
    keys = [(op.chain, op.when, op.operands, op.overload, op.weight_types) for op in ROWS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("op", ROWS, ids=lambda op: op.name)
def test_a_row_is_consistent(op: Op) -> None:
    assert op.kernel in KERNELS
    assert op.name.startswith("quantized::")
    assert op.doc and "\n" not in op.doc
    assert (op.weight is not None) == (op.family is Family.WEIGHTED)
    assert (op.interval is not None) == (op.family is Family.FIXED)
    positions = [*op.operands, *op.parameters, *op.others]
    assert len(set(positions)) == len(positions)
    for position in (op.weight, op.bias):
        assert position is None or position in op.parameters
    assert op.when is When.STATIC or op.family is Family.WEIGHTED


@pytest.mark.parametrize("op", ROWS, ids=lambda op: op.name)
def test_a_chain_is_made_of_operators_that_torch_has(op: Op) -> None:
    for name in op.chain:
        if name != "getitem":
            schemas = torch._C._jit_get_schemas_for_operator(name)
            assert schemas, name
    if op.overload:
        packet = getattr(torch.ops.aten, op.chain[0].partition("::")[2])
        assert op.overload in packet.overloads()
    if op.weight is not None and op.bias is not None:
        arguments = torch._C._jit_get_schemas_for_operator(op.chain[0])[0].arguments
        assert [arguments[op.weight].name, arguments[op.bias].name] == ["weight", "bias"]


def test_longer_chains_are_tried_first() -> None:
    for head, rows in BY_HEAD.items():
        lengths = [len(op.chain) for op in rows]
        assert lengths == sorted(lengths, reverse=True)
        assert all(op.chain[0] == head for op in rows)
    assert sorted(op.name for rows in BY_HEAD.values() for op in rows) == sorted(OPS)


def test_each_kernel_is_used_by_a_row() -> None:
    assert {op.kernel for op in ROWS} == set(KERNELS)


def test_every_row_with_a_schema_is_registered_and_no_other() -> None:
    boundary = {name.partition("::")[2] for name in BOUNDARY}
    registered = {
        schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("qlib::")
    }
    assert registered == {OPS[name].short_name for name in WITH_KERNEL} | boundary


def layouts(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The same arguments, with the data in each layout of its memory."""
    for change in LAYOUTS.values():
        first = [change(x) for x in args[0]] if isinstance(args[0], list) else change(args[0])
        yield (first, *args[1:])


@pytest.mark.parametrize("name", WITH_KERNEL)
def test_schema_and_fake_result_are_right(name: str) -> None:
    op = OPS[name]
    args = SAMPLES[op.kernel](op)
    overload = getattr(torch.ops.qlib, op.short_name).default
    torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", WITH_KERNEL)
def test_layouts_of_the_input_change_nothing(name: str) -> None:
    op = OPS[name]
    overload = getattr(torch.ops.qlib, op.short_name).default
    first, *others = [overload(*args) for args in layouts(SAMPLES[op.kernel](op))]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", sorted(SAMPLES))
def test_the_fake_result_is_right_for_every_layout(kernel: str) -> None:
    op = next(op for op in ROWS if op.kernel == kernel)
    overload = getattr(torch.ops.qlib, op.short_name).default
    for args in layouts(SAMPLES[kernel](op)):
        torch.library.opcheck(overload, args, test_utils=("test_faketensor",))


BOUNDARY_SAMPLES: dict[str, tuple[Any, ...]] = {
    "quantize_per_tensor.default": (torch.randn(2, 3), *RESULT),
    "quantize_per_tensor.tensor": (torch.randn(2, 3), torch.tensor(0.1), torch.tensor(3), *RESULT[2:]),
    "quantize_per_channel.default": (torch.randn(2, 3), torch.ones(3), torch.zeros(3).int(), 1, *RESULT[2:]),
    "dequantize_per_tensor.default": (stored(2, 3), 0.1, 3),
    "dequantize_per_tensor.tensor": (stored(2, 3), torch.tensor(0.1), torch.tensor(3)),
    "dequantize_per_channel.default": (stored(2, 3), torch.ones(3), torch.zeros(3).int(), 1),
    "choose_qparams.default": (torch.randn(2, 3), 0, 255, False, torch.uint8),
    "choose_qparams_per_token.default": (torch.randn(2, 3), 0, 255, False, torch.uint8),
    "quantize_per_token.default": (torch.randn(2, 3), torch.ones(2, 1), torch.ones(2, 1).int(), *RESULT[2:]),
    "dequantize_per_token.default": (stored(2, 3), torch.ones(2, 1), torch.ones(2, 1).int()),
    "dequantize_per_group.default": (stored(2, 3), torch.ones(2, 2), torch.ones(2, 2).int(), 2),
}


@pytest.mark.parametrize("name", sorted(BOUNDARY_SAMPLES))
def test_operators_at_the_boundary(name: str) -> None:
    packet, _, overload = name.partition(".")
    assert f"quantized::{packet}" in BOUNDARY
    target = getattr(getattr(torch.ops.qlib, packet), overload)
    torch.library.opcheck(target, BOUNDARY_SAMPLES[name], test_utils=("test_schema", "test_faketensor"))


def test_every_operator_at_the_boundary_has_a_sample() -> None:
    packets = {name.partition(".")[0] for name in BOUNDARY_SAMPLES}
    assert packets == {name.partition("::")[2] for name in BOUNDARY}
