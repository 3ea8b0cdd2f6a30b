from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from qlib.capture import capture, check_inputs
from qlib.errors import CaptureError

BOTH = ("export", "trace")
ALL = pytest.mark.parametrize("method", BOTH)


class Of(nn.Module):
    """A module from a function, with submodules under the names that the function uses."""

    def __init__(self, function: Any, modules: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.function = function
        for name, value in (modules or {}).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """The fused attention that torch uses without gradients rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def spelled(graph: fx.Graph) -> list[Any]:
    """The graph with its nodes numbered, so that graphs can be compared."""
    number = {node: f"%{position}" for position, node in enumerate(graph.nodes)}

    def plain(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: number[node])

    rows = []
    for node in graph.nodes:
        target = "" if node.op == "output" else str(node.target)
        keys = ("module_path", "module_type", "shape", "dtype")
        rows.append(
            (node.op, target, str(plain(node.args)), str(plain(node.kwargs)), *(node.meta.get(k) for k in keys))
        )
    return rows


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found.dtype == expected.dtype
    elif isinstance(expected, tuple | list):
        assert isinstance(found, tuple if isinstance(expected, tuple) else list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    else:
        assert found == expected


def fresh(inputs: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for value in inputs:
        if value.is_floating_point():
            made.append(torch.empty_like(value).copy_(torch.randn(value.shape, generator=generator)))
        else:
            made.append(value.clone())
    return tuple(made)


def check(module: nn.Module, inputs: tuple[Tensor, ...], methods: tuple[str, ...] = BOTH) -> list[fx.GraphModule]:
    """Capture by every method; graphs agree with each other and with the module, state and inputs included."""
    models = []
    before = copy.deepcopy(module.state_dict())
    given = tuple(value.clone() for value in inputs)
    for method in methods:
        model = capture(module, inputs, method)
        model.graph.lint()
        models.append(model)
        assert_normal(model.graph)
        assert_same(dict(module.state_dict()), dict(before))
        assert_same(inputs, given)
        eager = copy.deepcopy(module)
        for seed in range(2):
            ours, theirs = fresh(inputs, seed), fresh(inputs, seed)
            if seed == 0:
                ours, theirs = tuple(v.clone() for v in inputs), tuple(v.clone() for v in inputs)
            with torch.no_grad():
                expected, found = eager(*theirs), model(*ours)
            assert_same(found, plain(expected))
            assert_same(ours, theirs)
        state = dict(model.named_buffers())
        for name, value in eager.named_buffers():
            if name in state:
                assert_same(state[name], value)
    for model in models[1:]:
        assert spelled(model.graph) == spelled(models[0].graph)
    return models


def plain(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(plain(item) for item in output)
    return {key: plain(value) for key, value in output.items()} if isinstance(output, dict) else output


def assert_normal(graph: fx.Graph) -> None:
    """Only ATen operators, arguments in normal form, metadata complete, and changes only at the end."""
    targets = [node.target for node in graph.nodes if node.op == "get_attr"]
    assert len(targets) == len(set(targets))
    changed = False
    for node in graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        assert isinstance(node.meta["module_path"], str)
        assert isinstance(node.meta["module_type"], str)
        if node.op != "call_function":
            continue
        if not isinstance(node.target, OpOverload):
            assert node.target.__name__ == "getitem"
            continue
        schema = node.target._schema
        changed = changed or schema.is_mutable
        assert schema.is_mutable == changed
        assert len(node.args) == sum(not argument.kwarg_only for argument in schema.arguments)
        assert all(argument.kwarg_only for argument in schema.arguments if argument.name in node.kwargs)


def ops(model: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in model.graph.nodes if isinstance(node.target, OpOverload)]


def image(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(3)),)


CONV = [
    (nn.Conv1d(2, 4, 3, stride=2, padding=1), image(1, 2, 9)),
    (nn.Conv2d(2, 4, 3, groups=2, bias=False), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), image(2, 2, 8, 7)),
    (nn.Conv2d(2, 4, 3, padding="valid"), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, 3, padding="same"), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, (2, 4), padding="same"), image(1, 2, 6, 7)),
    (nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 3)), image(1, 2, 9, 9)),
    (nn.Conv1d(2, 4, 4, padding="same", dilation=3), image(1, 2, 12)),
    (nn.Conv3d(2, 4, 2, padding="same"), image(1, 2, 4, 5, 6)),
    (nn.Conv3d(2, 4, 3, stride=2), image(1, 2, 5, 5, 5)),
    (nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1), image(1, 2, 5)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), image(1, 2, 5, 5)),
    (nn.ConvTranspose3d(2, 4, 2, dilation=2), image(1, 2, 4, 4, 4)),
    (nn.Conv2d(2, 4, 3), image(2, 6, 7)),
    *(
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), image(1, 2, 6, 7))
        for mode in ("reflect", "replicate", "circular")
    ),
    (nn.Conv1d(2, 4, 3, padding=2, padding_mode="reflect"), image(1, 2, 6)),
    (nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular"), image(1, 2, 6)),
    (nn.Conv3d(2, 4, 3, padding=1, padding_mode="replicate"), image(1, 2, 4, 4, 4)),
    (nn.Conv2d(2, 4, 4, padding="same", padding_mode="reflect"), image(1, 2, 6, 7)),
]
LAYERS = [
    (nn.Linear(4, 3), image(2, 4)),
    (nn.Linear(4, 3, bias=False), image(2, 5, 4)),
    (nn.Bilinear(3, 4, 2), (*image(2, 3), *image(2, 4))),
    (nn.BatchNorm1d(4), image(3, 4)),
    (nn.BatchNorm2d(4, affine=False), image(3, 4, 2, 2)),
    (nn.BatchNorm3d(2, track_running_stats=False), image(3, 2, 2, 2, 2)),
    (nn.LayerNorm(4), image(3, 4)),
    (nn.GroupNorm(2, 4), image(3, 4, 5)),
    (nn.InstanceNorm2d(3, affine=True), image(2, 3, 4, 4)),
    (nn.InstanceNorm1d(3, track_running_stats=True), image(2, 3, 4)),
    (nn.Embedding(5, 3), (torch.tensor([[0, 2], [4, 1]]),)),
    (nn.EmbeddingBag(5, 3), (torch.tensor([[0, 2], [4, 1]]),)),
    (nn.LSTM(3, 4), image(5, 2, 3)),
    (nn.GRU(3, 4, batch_first=True, bidirectional=True), image(2, 5, 3)),
    (nn.RNN(3, 4), image(5, 2, 3)),
    (nn.MultiheadAttention(4, 2, batch_first=True), (*image(2, 3, 4), *image(2, 3, 4), *image(2, 3, 4))),
    (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), image(2, 3, 4)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), image(1, 2, 3, 3)),
    (nn.Upsample(size=(5, 6)), image(1, 2, 3, 3)),
    (nn.PixelShuffle(2), image(1, 4, 3, 3)),
    (nn.PixelUnshuffle(2), image(1, 1, 4, 4)),
    (nn.Flatten(), image(2, 3, 4)),
    (nn.Unflatten(1, (2, 3)), image(2, 6)),
    (nn.Identity(), image(2, 3)),
    (nn.Dropout(0.5), image(2, 3)),
    (nn.Dropout2d(0.5, inplace=True), image(2, 3, 4, 4)),
    (nn.AlphaDropout(), image(2, 3)),
    (nn.CosineSimilarity(), (*image(2, 3), *image(2, 3))),
    (nn.ChannelShuffle(2), image(1, 4, 3, 3)),
    (nn.Fold((4, 4), 2), image(1, 8, 9)),
    (nn.Unfold(2), image(1, 2, 4, 4)),
    (nn.LocalResponseNorm(2), image(1, 4, 3, 3)),
    (nn.ZeroPad2d(1), image(1, 2, 3, 3)),
    (nn.ConstantPad1d((1, 2), 3.5), image(1, 2, 3)),
    (nn.ReflectionPad2d(1), image(1, 2, 3, 3)),
    (nn.ReplicationPad1d(2), image(1, 2, 3)),
    (nn.CircularPad2d(1), image(1, 2, 3, 3)),
]
POOLS = [
    (nn.MaxPool1d(2), image(1, 2, 6)),
    (nn.MaxPool2d(2), image(1, 2, 6, 6)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), image(1, 2, 6, 6)),
    (nn.MaxPool2d(2, return_indices=True), image(1, 2, 6, 6)),
    (nn.MaxPool3d(2), image(1, 2, 4, 4, 4)),
    (nn.AvgPool1d(2), image(1, 2, 6)),
    (nn.AvgPool2d((2, 3), padding=1, count_include_pad=False), image(1, 2, 6, 6)),
    (nn.AvgPool3d(2), image(1, 2, 4, 4, 4)),
    (nn.AdaptiveAvgPool1d(2), image(1, 2, 6)),
    (nn.AdaptiveAvgPool2d((1, 1)), image(1, 2, 6, 6)),
    (nn.AdaptiveAvgPool2d((None, 2)), image(1, 2, 6, 6)),
    (nn.AdaptiveMaxPool2d(2), image(1, 2, 6, 6)),
    (nn.LPPool2d(2, 2), image(1, 2, 6, 6)),
]
ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(), nn.Hardtanh(0, 6)),
    *(nn.Hardtanh(-2, 2, inplace=True), nn.Hardswish(), nn.Hardswish(inplace=True), nn.Hardsigmoid(), nn.Sigmoid()),
    *(nn.Tanh(), nn.ELU(), nn.ELU(inplace=True), nn.CELU(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()),
    *(nn.SiLU(inplace=True), nn.Mish(), nn.LeakyReLU(0.2), nn.LeakyReLU(inplace=True), nn.PReLU(), nn.Softplus()),
    *(nn.Softsign(), nn.Softmax(-1), nn.LogSoftmax(1), nn.Softmin(1), nn.Tanhshrink(), nn.Softshrink()),
    *(
        nn.Hardshrink(),
        nn.Threshold(0.1, 2.0),
        nn.Threshold(0.1, 2.0, inplace=True),
        nn.LogSigmoid(),
        nn.GLU(),
        nn.RReLU(),
    ),
]
ZOO = [*CONV, *LAYERS, *POOLS, *((layer, image(2, 4)) for layer in ACTIVATIONS)]


def _ids(cases: list[Any]) -> list[str]:
    return [f"{position}-{repr(case[0]).splitlines()[0][:40]}" for position, case in enumerate(cases)]


@pytest.mark.parametrize(("module", "inputs"), ZOO, ids=_ids(ZOO))
def test_layers_are_captured_alike(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    check(module.eval(), inputs)


NESTED = [case for case in ZOO if len(case[1]) == 1][::10]


@pytest.mark.parametrize(("module", "inputs"), NESTED, ids=_ids(NESTED))
def test_layers_within_a_module(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    check(nn.Sequential(OrderedDict(first=module)).eval(), inputs)


@ALL
@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4)])
def test_cells(cell: nn.Module, method: str) -> None:
    """Tracing takes recurrent cells apart and export does not."""
    check(cell.eval(), image(2, 3), (method,))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.again = self.encode

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.decode(self.encode(x)))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(3), persistent=False)
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.n += 1
        self.last.copy_(x)
        self.total = self.total + x
        return x * self.n, self.last


def swap(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)
    return kept


def chunked(self: nn.Module, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a = a * 1
    return torch.cat([F.relu(a, inplace=True), b], 1)


def written_pieces(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    a, b = y.split(2, 1)
    a.relu_()
    return torch.cat([b, a], 1), y


def assigned(self: nn.Module, x: Tensor) -> Tensor:
    z = torch.zeros(x.shape[0], 4)
    z[:, 0] = x[:, 1]
    z[:, 1:3] = 2
    z[..., -1] += 1
    z[x > 0] = 3.5
    return z


def viewed(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = x + 0
    row, turned, flat = y[1], y.t(), y.view(-1)
    flat[::2].mul_(3)
    row.add_(1)
    turned[0].zero_()
    y.clamp_(max=4)
    return y, row, turned, flat


def sizes(self: nn.Module, x: Tensor) -> Tensor:
    n = x.size(0) * x.size(1)
    y = x.reshape(n // 2, 2).view(x.shape[0], -1) / x.size(1) ** 0.5
    return y.permute(1, 0).contiguous().view(-1) * (n + 1)


def mixed_types(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    i = (x * 10).to(torch.int32)
    return (
        i + 1,
        i * 2.5,
        i / 2,
        i // 3,
        1 - x,
        2 / x,
        2**x,
        i.float().double(),
        torch.where(x > 0, x, 0.0),
        x > 0.5,
        i % 3,
    )


def padded(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return F.pad(x, (1, 2)), F.pad(x, (1, 1), value=2.0), F.pad(x[None], (1, 1), mode="reflect")


def moved(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = x[None]
    return (
        y.movedim(0, 2),
        y.swapaxes(0, 1),
        y.mT,
        x.T,
        x.t(),
        y.narrow(1, 0, 1),
        torch.flatten(y, 1),
        y.transpose(-1, 0),
    )


def joined(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.cat((x, x)),
        torch.stack([x, x], 1),
        torch.cat((x, x[:, :1]), -1),
        *x.unbind(1),
        *torch.split(x, [1, 3], 1),
    )


def returned_after_change(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept, view = x.clone(), x[0]
    x.add_(1)
    return kept, view, x


def in_place_types(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    i = torch.zeros(x.shape, dtype=torch.int64)
    i.copy_(x * 10)
    return i, (x + 0).eq_(x)


PROGRAMS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "block": (Block(), image(1, 4, 5, 5)),
    "blocks": (nn.Sequential(Block(), Block(), nn.Flatten(), nn.Dropout(), nn.Linear(100, 3)), image(1, 4, 5, 5)),
    "tied": (Tied(), image(2, 4)),
    "counter": (Counter(), image(3)),
    "swap": (Of(swap), (*image(3), torch.ones(3))),
    "chunked": (Of(chunked), image(2, 4)),
    "written_pieces": (Of(written_pieces), image(2, 4)),
    "assigned": (Of(assigned), image(2, 4)),
    "viewed": (Of(viewed), image(3, 4)),
    "sizes": (Of(sizes), image(2, 4)),
    "mixed_types": (Of(mixed_types), image(2, 4)),
    "padded": (Of(padded), image(2, 4)),
    "moved": (Of(moved), image(2, 4)),
    "joined": (Of(joined), image(2, 4)),
    "returned_after_change": (Of(returned_after_change), image(2, 4)),
    "in_place_types": (Of(in_place_types), image(2, 4)),
    "input_returned": (Of(lambda self, x: x), image(2)),
    "input_returned_twice": (Of(lambda self, x, y: (y, x, [x])), (*image(2), *image(3))),
    "unused_input": (Of(lambda self, x, y: x + 1), (*image(2), *image(3))),
    "dict": (Of(lambda self, x: {"b": x + 1, "a": (x, {"c": [x * 2]})}), image(2)),
    "named_tuple": (Of(lambda self, x: Pair(x + 1, x * 2)), image(2)),
    "list": (Of(lambda self, x: [x + 1]), image(2)),
    "none": (Of(lambda self, x: (x + 1, None, 3)), image(2)),
    "no_clone_of_state": (Of(lambda self, x: x @ self.w, {"w": nn.Parameter(torch.ones(2, 2))}), image(2, 2)),
    "plain_tensor": (Of(lambda self, x: x + self.function_table, {"function_table": torch.arange(3.0)}), image(3)),
    "constant": (Of(lambda self, x: x + torch.tensor([1.0, 2.0]) * torch.tensor(3.0)), image(2)),
    "one_matrix": (Of(lambda self, x: self.a(self.a(x)), {"a": nn.Linear(3, 3)}), image(2, 3)),
    "attention": (Of(lambda s, x: F.scaled_dot_product_attention(x, x, x)), image(1, 2, 3, 4)),
    "einsum": (Of(lambda s, x: torch.einsum("ij,kj->ik", x, x)), image(2, 3)),
    "channels_last": (nn.Conv2d(2, 3, 1), (image(1, 2, 4, 4)[0].to(memory_format=torch.channels_last),)),
    "no_grad": (Of(lambda s, x: torch.relu(x).detach().contiguous().clone()), image(2)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_captured_alike(name: str) -> None:
    module, inputs = PROGRAMS[name]
    check(module.eval(), inputs)


def test_the_whole_graph_of_a_small_module() -> None:
    module = nn.Sequential(OrderedDict(fc=nn.Linear(4, 3), act=nn.ReLU(inplace=True), drop=nn.Dropout()))
    (model, _) = check(module.eval(), image(2, 4))
    names = [(node.op, str(node.target)) for node in model.graph.nodes]
    assert names == [
        ("placeholder", "input"),
        ("get_attr", "fc.weight"),
        ("get_attr", "fc.bias"),
        ("call_function", "aten.linear.default"),
        ("call_function", "aten.relu.default"),
        ("output", "output"),
    ]
    linear, relu = list(model.graph.nodes)[3:5]
    assert (linear.meta["module_path"], linear.meta["module_type"]) == ("fc", "nn.Linear")
    assert (linear.meta["shape"], linear.meta["dtype"]) == ((2, 3), torch.float32)
    assert relu.meta["module_path"] == "act"


def test_written_pieces_stay_pieces() -> None:
    """A change to one piece of a split tensor costs the others nothing."""
    (model, _) = check(Of(lambda s, x: torch.cat([p.relu_() for p in (x * 2).chunk(2, 1)], 1)).eval(), image(2, 4))
    assert ops(model) == [
        f"aten.{name}" for name in ("mul.Tensor", "chunk.default", "relu.default", "relu.default", "cat.default")
    ]


@ALL
def test_source_lines_are_the_users(method: str) -> None:
    model = capture(Block().eval(), image(1, 4, 5, 5), method)
    add = next(node for node in model.graph.nodes if str(node.target) == "aten.add.Tensor")
    line = Block.forward.__code__.co_firstlineno + 2
    assert add.meta["source"] == f"test_capture.py:{line}"


@ALL
def test_repeated_calls_and_shared_tensors_have_one_name(method: str) -> None:
    model = capture(Tied().eval(), image(2, 4), method)
    linears = [node for node in model.graph.nodes if str(node.target) == "aten.linear.default"]
    assert [node.meta["module_path"] for node in linears] == ["encode", "decode", "encode"]
    assert [str(node.args[1].target) for node in linears] == ["encode.weight"] * 3


@ALL
def test_the_caller_keeps_its_module(method: str) -> None:
    module = Counter().eval()
    total = module.total
    model = capture(module, image(3), method)
    assert module.total is total
    assert int(module.n) == 0
    model(*image(3))
    assert (int(module.n), int(model.n)) == (0, 1)
    linear = nn.Linear(2, 2)
    parameter = capture(linear.eval(), image(1, 2), method).get_parameter("weight")
    assert parameter.data_ptr() == linear.weight.data_ptr()
    assert parameter.requires_grad


@ALL
def test_random_numbers_go_on_as_if_nothing_had_run(method: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    capture(Of(lambda s, x: x + torch.rand(3)).eval(), image(3), method)
    assert_same(torch.rand(3), expected)


@ALL
def test_training_is_kept(method: str) -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model = capture(module, image(4, 3), method)
    assert "aten.dropout.default" in ops(model)
    model(*image(4, 3))
    eager = copy.deepcopy(module)
    eager(*image(4, 3))
    assert_same(model.get_buffer("0.running_mean"), eager[0].running_mean)
    assert float(module[0].running_mean.abs().sum()) == 0


@ALL
def test_strides_decide_what_shares_memory(method: str) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = x.reshape(-1)
        y.add_(1)
        return x

    check(Of(forward).eval(), image(2, 3), (method,))
    check(Of(forward).eval(), (image(3, 2)[0].t(),), (method,))


def test_export_strict_gives_the_same_graph() -> None:
    check(Block().eval(), image(1, 4, 5, 5), ("export", "export-strict"))


def test_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    for method in BOTH:
        capture(nn.Linear(2, 2).eval(), image(1, 2), method)
    assert not recwarn.list


def test_unknown_method() -> None:
    with pytest.raises(
        CaptureError, match=r"'tracing'; expected one of export, export-strict, trace. Did you mean 'trace'"
    ):
        capture(nn.Linear(2, 2), image(1, 2), "tracing")


@ALL
def test_inputs_must_be_a_tuple_of_tensors(method: str) -> None:
    with pytest.raises(CaptureError, match=r"found Tensor; write \(x,\)"):
        capture(nn.Linear(2, 2), image(1, 2)[0], method)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="input 1: expected a tensor, found int"):
        capture(nn.Linear(2, 2), (*image(1, 2), 3), method)  # type: ignore[arg-type]


@ALL
def test_errors_are_one_line_with_the_place(method: str) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x @ x

    with pytest.raises(CaptureError) as caught:
        capture(Of(forward).eval(), image(2, 3), method)
    message = str(caught.value)
    assert "\n" not in message
    assert f"test_capture.py:{forward.__code__.co_firstlineno + 1}" in message
    assert "try the method" in message


def test_data_dependent_branches_are_refused_by_export() -> None:
    with pytest.raises(CaptureError, match="try the method"):
        capture(Of(lambda s, x: x + 1 if x.sum() > 0 else x).eval(), image(3))


@ALL
def test_changed_parameters_are_refused(method: str) -> None:
    module = Of(lambda s, x: x + s.w.mul_(2), {"w": nn.Parameter(torch.ones(3))}).eval()
    with pytest.raises(CaptureError):
        capture(module, image(3), method)


def test_check_inputs() -> None:
    model = capture(nn.Linear(4, 3).eval(), image(2, 4))
    check_inputs(model, image(2, 4))
    with pytest.raises(CaptureError, match=r"'input': expected float32\[2, 4\], .*found float32\[3, 4\]"):
        check_inputs(model, image(3, 4))
    with pytest.raises(CaptureError, match="found float64"):
        check_inputs(model, (image(2, 4)[0].double(),))
    with pytest.raises(CaptureError, match=r"expected 1 inputs \(input\), found 2"):
        check_inputs(model, (*image(2, 4), *image(2, 4)))


VIEWS = [
    *("y.t()", "y[0]", "y[:, 1:]", "y[::2]", "y.view(-1)", "y.reshape(-1)", "y.unsqueeze(1)", "y[None]", "y.squeeze()"),
    *("y.flatten()", "y.transpose(0, -1)", "y.diagonal()", "y.detach()", "y.chunk(2, -1)[0]", "y.unbind(-1)[-1]"),
    *(
        "y.expand_as(y)",
        "y.narrow(0, 0, 1)",
        "y.contiguous()",
        "y.select(-1, 0)",
        "y.split(1)[0]",
        "y.movedim(0, -1)",
        "y.mT",
    ),
]
CHANGES = [
    "y.add_(1)",
    "y.mul_(z.sum())",
    "y.relu_()",
    "y.zero_()",
    "y.clamp_(-1, 1)",
    "y.fill_(2)",
    "y.copy_(z.sum())",
    "y.neg_()",
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["view", "change"]), st.integers(0, 5), st.integers(0, 50)), max_size=8),
    st.sampled_from(BOTH),
    st.booleans(),
)
def test_random_views_and_changes(steps: list[tuple[str, int, int]], method: str, own: bool) -> None:
    """Any chain of views and in-place operators gives what eager execution gives, in outputs and inputs."""

    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x + 0 if own else x]
        for kind, which, what in steps:
            y = tensors[which % len(tensors)]
            texts = VIEWS if kind == "view" else CHANGES
            tensors.append(eval(texts[what % len(texts)], {"y": y, "z": x}))
        return tuple(tensors)

    module = Of(forward).eval()
    try:
        module(*image(2, 4))
    except (RuntimeError, IndexError):
        return  # not possible in eager execution either
    check(module, image(2, 4), (method,))
