from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from captures import ALL, BOTH, Of, assert_same, check, image, ops
from torch import Tensor, nn

from qlib.errors import CaptureError
from qlib.frontends.capture import capture
from qlib.signature import check_inputs


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
        CaptureError, match=r"'tracing'; expected one of export, export-strict, trace, script. Did you mean 'trace'"
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
