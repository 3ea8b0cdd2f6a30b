"""Quantizers of torchao, used as they are: each quantize and dequantize stands where torchao's own flow puts it."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captures import Of
from ties import disagreements
from torch import Tensor, fx, nn
from torch.nn import functional as F

import qlib
from qlib.graph import attribute

pytest.importorskip("torchao")

import torchao.quantization.pt2e.quantizer as ao
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver, move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer.embedding_quantizer import EmbeddingQuantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from torchao.testing.pt2e._xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)


def x86(**options: bool) -> Any:
    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(**options))


def xnnpack(**options: bool) -> Any:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**options))


QUANTIZERS: dict[str, Callable[[], Any]] = {
    "x86": x86,
    "x86_reduced": functools.partial(x86, reduce_range=True),
    "x86_dynamic": functools.partial(x86, is_dynamic=True),
    "xnnpack": xnnpack,
    "xnnpack_per_channel": functools.partial(xnnpack, is_per_channel=True),
    "xnnpack_dynamic": functools.partial(xnnpack, is_dynamic=True, is_per_channel=True),
}


def image(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


class Mobile(nn.Module):
    """An inverted residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.depth(self.expand(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def conv(**modules: Any) -> dict[str, Any]:
    return {"conv": nn.Conv2d(3, 4, 3, padding=1), "bn": nn.BatchNorm2d(4), "c2": nn.Conv2d(4, 4, 1), **modules}


def chain(*layers: nn.Module) -> nn.Module:
    return Of(lambda m, x: m.layers(x), {"layers": nn.Sequential(*layers)})


IMAGE = image(2, 3, 8, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "conv": (lambda: chain(nn.Conv2d(3, 4, 3)), IMAGE),
    "conv_no_bias": (lambda: chain(nn.Conv2d(3, 4, 3, bias=False)), IMAGE),
    "conv1d": (lambda: chain(nn.Conv1d(3, 4, 3), nn.ReLU()), image(2, 3, 8)),
    "conv_bn_relu": (lambda: Of(lambda m, x: torch.relu(m.bn(m.conv(x))), conv()), IMAGE),
    "conv_relu_in_place": (lambda: chain(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)), IMAGE),
    "residual": (lambda: Of(_residual, conv()), IMAGE),
    "residual_in_place": (lambda: Of(_residual_in_place, conv()), IMAGE),
    "used_twice": (lambda: Of(_used_twice, conv(c3=nn.Conv2d(4, 4, 3, padding=1))), IMAGE),
    "linear": (lambda: chain(nn.Linear(5, 4)), image(3, 5)),
    "linear_chain": (lambda: chain(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 2)), image(3, 5)),
    "linear_no_bias": (lambda: chain(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), image(3, 5)),
    "linear_3d": (lambda: chain(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), image(2, 3, 5)),
    "shared_linear": (lambda: Of(lambda m, x: m.fc(torch.relu(m.fc(x))), {"fc": nn.Linear(5, 5)}), image(3, 5)),
    "cat": (lambda: Of(lambda m, x: torch.cat([m.conv(x), m.conv(x * 2)], 1), conv()), IMAGE),
    "cat_then_conv": (lambda: Of(_cat_then_conv, conv(c3=nn.Conv2d(8, 4, 1))), IMAGE),
    "cats": (lambda: Of(_cats, conv()), IMAGE),
    "max_pool": (lambda: Of(lambda m, x: m.c2(F.max_pool2d(torch.relu(m.conv(x)), 2)), conv()), IMAGE),
    "avg_pool": (lambda: Of(lambda m, x: m.c2(F.avg_pool2d(m.conv(x), 2)), conv()), IMAGE),
    "adaptive_pool": (
        lambda: Of(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.conv(x), 1).flatten(1)), conv(fc=nn.Linear(4, 2))),
        IMAGE,
    ),
    "view": (lambda: Of(lambda m, x: m.fc(m.conv(x).view(2, -1)), conv(fc=nn.Linear(256, 2))), IMAGE),
    "mean": (lambda: Of(lambda m, x: m.fc(m.conv(x).mean([2, 3])), conv(fc=nn.Linear(4, 2))), IMAGE),
    "permute": (lambda: Of(lambda m, x: m.fc(m.conv(x).permute(0, 2, 3, 1)), conv(fc=nn.Linear(4, 2))), IMAGE),
    "hardtanh": (lambda: Of(lambda m, x: m.c2(F.hardtanh(m.conv(x), -1.0, 1.0)), conv()), IMAGE),
    "hardswish": (lambda: chain(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 2, 1)), IMAGE),
    "add_scalar": (lambda: Of(lambda m, x: m.c2(m.conv(x) + 0.5), conv()), IMAGE),
    "mul_scalar": (lambda: Of(lambda m, x: m.c2(m.conv(x) * 0.5), conv()), IMAGE),
    "mul": (lambda: Of(lambda m, x: m.c2(m.conv(x)) * m.conv(x), conv()), IMAGE),
    "mul_relu": (lambda: Of(lambda m, x: torch.relu(m.conv(x) * m.conv(x)), conv()), IMAGE),
    "add_to_itself": (lambda: Of(lambda m, x: (y := m.conv(x)) + y, conv()), IMAGE),
    "sigmoid": (lambda: Of(lambda m, x: m.c2(m.conv(x).sigmoid()), conv()), IMAGE),
    "matmul": (lambda: Of(lambda m, x: m.fc(x) @ m.fc(x).transpose(-1, -2), {"fc": nn.Linear(5, 4)}), image(2, 3, 5)),
    "transposed": (lambda: chain(nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGE),
    "linear_add_relu": (
        lambda: Of(lambda m, x: torch.relu(m.a(x) + m.b(x)), {"a": nn.Linear(5, 4), "b": nn.Linear(5, 4)}),
        image(3, 5),
    ),
    "mobile": (Mobile, image(2, 4, 8, 8)),
    "untouched": (lambda: chain(nn.LayerNorm(5), nn.GELU()), image(3, 5)),
}


def _residual(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(m.bn(m.conv(x)))
    return torch.relu(m.c2(x) + x)


def _residual_in_place(m: Any, x: Tensor) -> Tensor:
    x = torch.relu_(m.bn(m.conv(x)))
    y = m.c2(x)
    y += x
    return torch.relu_(y)


def _used_twice(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    y: Tensor = m.c2(x) + m.c3(x)
    return y


def _cat_then_conv(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    y: Tensor = m.c3(torch.cat([m.c2(x), x], 1))
    return y


def _cats(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    y = torch.cat([m.c2(x), x], 1)
    return torch.cat([F.max_pool2d(y, 2), F.max_pool2d(y, 2)], 1)


# What torchao and the normal form here spell differently.
SAME = {"view": "reshape", "hardtanh": "relu6", "max_pool2d_with_indices": "max_pool2d"}
CHOICES = {"choose_qparams_symmetric": "choose_qparams"}


def name_of(node: fx.Node) -> str:
    short = str(getattr(node.target, "_schema", node.target).name).rpartition("::")[2].removesuffix("_")
    if short == "hardtanh" and tuple(node.args[1:]) != (0.0, 6.0):
        return short
    return CHOICES.get(short, SAME.get(short, short))


def placement(model: fx.GraphModule) -> list[tuple[str, ...]]:
    """Each float operator, in order, with the way of quantizes and dequantizes from which each operand comes."""
    label: dict[fx.Node, str] = {}
    rows = []
    for node in model.graph.nodes:
        if node.op == "placeholder":
            label[node] = f"input {node.target}"
        elif node.op == "get_attr":
            label[node] = f"constant {attribute(model, str(node.target)).dtype!s}"
        elif node.op == "call_function" and "getitem" in str(node.target):
            label[node] = f"{label[node.args[0]]}[{node.args[1]}]"  # type: ignore[index]
        elif (node.op == "call_function" and "quant" in str(node.target)) or "choose" in str(node.target):
            q = [a for a in node.args[1:] if isinstance(a, torch.dtype)] if "dequantize" not in str(node.target) else []
            bounds = tuple(a for a in node.args[-3:-1]) if q and "choose" not in str(node.target) else ()
            label[node] = f"{name_of(node)}{[*bounds, *map(str, q)] if bounds else ''}({label[node.args[0]]})"  # type: ignore[index]
        elif node.op in ("call_function", "output"):
            operands = [label[used] for used in node.all_input_nodes]
            rows.append((name_of(node) if node.op == "call_function" else "output", *operands))
            label[node] = f"{rows[-1][0]} {len(rows)}"
    return rows


def counts(model: fx.GraphModule) -> Counter[str]:
    names = [name_of(node) for node in model.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return Counter(name for name in names if "quantize" in name or "choose" in name)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def exported(model: str, strict: bool = True) -> tuple[Callable[[], fx.GraphModule], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    build, inputs = MODELS[model]
    program = torch.export.export(build().eval(), inputs, strict=strict)
    return program.module, inputs


def sqnr(wanted: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


# The X86 quantizer asserts that what is added to a layer's result is a tensor.
REFUSED = {("add_scalar", name) for name in QUANTIZERS if name.startswith("x86")}


@pytest.mark.parametrize(("model", "quantizer"), sorted({(m, q) for m in MODELS for q in QUANTIZERS} - REFUSED))
def test_the_placement_is_torchaos(model: str, quantizer: str) -> None:
    compare(model, QUANTIZERS[quantizer])


def compare(model: str, quantizer: Callable[[], Any], strict: bool = True) -> fx.GraphModule:
    """Both flows with one quantizer: the same placement, nearly the same numbers, and integers that hold."""
    module, inputs = exported(model, strict)
    theirs = prepare_pt2e(module(), quantizer())
    theirs(*inputs)
    theirs = convert_pt2e(theirs)
    prepared = qlib.prepare_pt2e(module(), quantizer())
    prepared(*inputs)
    debug = qlib.convert_pt2e(prepared)
    assert placement(debug) == placement(theirs)
    assert counts(debug) == counts(theirs)
    with torch.no_grad():
        assert sqnr(theirs(*inputs), debug(*inputs)) > 25
    final = qlib.lower(debug)
    assert disagreements(debug, final, inputs) == 0
    return final


@pytest.mark.parametrize("quantizer", ["x86", "xnnpack"])
@pytest.mark.parametrize("model", ["residual", "cat_then_conv", "linear_chain", "mobile"])
def test_also_where_export_ran_the_module(model: str, quantizer: str) -> None:
    compare(model, QUANTIZERS[quantizer], strict=False)


def test_rules_for_modules_by_name() -> None:
    def by_name() -> Any:
        return XNNPACKQuantizer().set_module_name("c2", get_symmetric_quantization_config())

    def by_name_x86() -> Any:
        return x86().set_module_name_qconfig("conv", None)

    for quantizer in (by_name, by_name_x86):
        final = compare("residual", quantizer)
        assert qlib.executed_ops(final)["aten::conv2d"] >= 1


class Custom(Quantizer):  # type: ignore[misc]
    """All kinds of torchao's specs: derived biases, a fixed range for sigmoid, and what pooling shares."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        int8 = ao.QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
        weight = ao.QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0)
        fixed = ao.FixedQParamsQuantizationSpec(torch.int8, 1 / 256, -128, -128, 127, torch.per_tensor_affine)
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.conv2d.default:
                x, w, b = node.args[:3]
                bias = ao.DerivedQuantizationSpec(
                    [(x, node), (w, node)], self.bias, torch.int32, -(2**31), 2**31 - 1, torch.per_channel_symmetric, 0
                )
                note = ao.QuantizationAnnotation({x: int8, w: weight, b: bias}, int8, _annotated=True)
            elif node.target is torch.ops.aten.sigmoid.default:
                note = ao.QuantizationAnnotation({node.args[0]: int8}, fixed, _annotated=True)
            elif node.target is torch.ops.aten.max_pool2d.default:
                shared = ao.SharedQuantizationSpec((node.args[0], node))
                note = ao.QuantizationAnnotation({node.args[0]: int8}, shared, _annotated=True)
            else:
                continue
            node.meta["quantization_annotation"] = note
        return model

    @staticmethod
    def bias(observers: list[Any]) -> tuple[Tensor, Tensor]:
        (x, _), (w, _) = (observer.calculate_qparams() for observer in observers)
        return (x * w).to(torch.float32), torch.zeros_like(w, dtype=torch.int32)

    def validate(self, model: fx.GraphModule) -> None:
        pass


@pytest.mark.parametrize("model", ["conv", "max_pool", "sigmoid", "used_twice"])
def test_all_kinds_of_specs(model: str) -> None:
    assert not {"aten::conv2d", "aten::sigmoid"} & set(qlib.executed_ops(compare(model, Custom)))


def test_embeddings() -> None:
    module = Of(lambda m, x: m.table(x), {"table": nn.Embedding(10, 8)}).eval()
    inputs = (torch.tensor([[1, 2], [3, 9]]),)
    prepared = qlib.prepare_pt2e(torch.export.export(module, inputs).module(), EmbeddingQuantizer())  # type: ignore[arg-type]
    prepared(*inputs)
    debug = qlib.convert_pt2e(prepared)
    assert qlib.executed_ops(qlib.lower(debug)) == {"quantized::embedding_byte": 1}
    assert sqnr(module(*inputs), debug(*inputs)) > 40


# ------------------------------------------------------------------------------------------------------------- training

TRAINED: dict[str, Callable[[], Any]] = {
    "x86": functools.partial(x86, is_qat=True),
    "xnnpack": functools.partial(xnnpack, is_qat=True),
    "xnnpack_per_channel": functools.partial(xnnpack, is_qat=True, is_per_channel=True),
}
# Those without batch norms, with which torchao's preparation takes half a minute.
QUICK = (
    "linear_chain",
    "linear_no_bias",
    "conv_relu_in_place",
    "max_pool",
    "adaptive_pool",
    "linear_add_relu",
    "plain",
)
MODELS["plain"] = (lambda: Of(lambda m, x: torch.relu(m.c2(y := torch.relu(m.conv(x))) + y), conv()), IMAGE)
MODELS["dropout"] = (lambda: chain(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3)), image(3, 5))


@pytest.mark.parametrize("quantizer", TRAINED)
@pytest.mark.parametrize("model", QUICK)
def test_the_placement_of_training_is_torchaos(model: str, quantizer: str) -> None:
    compare_trained(model, quantizer)


@pytest.mark.parametrize(("model", "quantizer"), [("conv_bn_relu", "x86"), ("residual", "xnnpack_per_channel")])
def test_the_placement_with_batch_norms_is_torchaos(model: str, quantizer: str) -> None:
    compare_trained(model, quantizer)


@pytest.mark.parametrize("quantizer", TRAINED)
@pytest.mark.parametrize("model", ["residual", "residual_in_place", "mobile", "dropout"])
def test_a_trained_graph_is_its_converted_one(model: str, quantizer: str) -> None:
    module, inputs = trainable(model)
    prepared = trained_by_qlib(module(), quantizer, inputs)
    debug = qlib.convert_pt2e(prepared)
    assert torch.equal(prepared(*inputs), debug(*inputs))
    assert "batch_norm" not in {name_of(n) for n in debug.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    assert disagreements(debug, qlib.lower(debug), inputs) == 0


def trainable(model: str) -> tuple[Callable[[], fx.GraphModule], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    build, inputs = MODELS[model]
    return torch.export.export(build().train(), inputs).module, inputs


def trained_by_qlib(graph: fx.GraphModule, quantizer: str, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    prepared = qlib.prepare_qat_pt2e(graph, TRAINED[quantizer]())
    prepared(*inputs).square().mean().backward()
    return qlib.move_exported_model_to_eval(prepared)


def compare_trained(model: str, quantizer: str) -> None:
    module, inputs = trainable(model)
    theirs = prepare_qat_pt2e(module(), TRAINED[quantizer]())
    theirs(*inputs)
    theirs = convert_pt2e(move_exported_model_to_eval(theirs))
    prepared = trained_by_qlib(module(), quantizer, inputs)
    debug = qlib.convert_pt2e(prepared)
    assert placement(debug) == placement(theirs)
    assert counts(debug) == counts(theirs)
    with torch.no_grad():
        assert sqnr(theirs(*inputs), debug(*inputs)) > 25
        assert torch.equal(prepared(*inputs), debug(*inputs))
    assert disagreements(debug, qlib.lower(debug), inputs) == 0
