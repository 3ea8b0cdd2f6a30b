"""What is written in ONNX means what the debug form means: checked with ONNX's own reference implementation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import qlib
from qlib.executed import output_scales
from qlib.kernels.recurrence import STEPS

onnx = pytest.importorskip("onnx", minversion="1.20")
from onnx.reference import ReferenceEvaluator  # noqa: E402

from qlib.onnx import EMITTERS, OPSET, to_onnx  # noqa: E402


class Function(nn.Module):
    """Something done to the result of a layer, so that its operand is quantized."""

    def __init__(self, call, layer=None):
        super().__init__()
        self.call = call
        self.layer = layer or nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor):
        return self.call(self.layer(x))


class Weighted(nn.Module):
    """As `Function`, with tensors of its own."""

    def __init__(self, call, **tensors):
        super().__init__()
        self.call = call
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor):
        return self.call(self, self.layer(x))


# The weights of the modules below are the same in every process; they are drawn as these are made.
torch.manual_seed(0)
IMAGE = (2, 3, 8, 8)
MODULES = {
    "linear": (nn.Linear(12, 5), (4, 12)),
    "linear of a stack": (nn.Linear(12, 5), (2, 3, 12)),
    "linear of a vector": (nn.Linear(12, 5, bias=False), (12,)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), (2, 3, 15)),
    "conv2d, grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=(1, 0)), (2, 4, 7, 8)),
    "conv2d without a batch": (nn.Conv2d(3, 6, 3), (3, 7, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
    "conv_transpose2d": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "conv, batch norm, relu": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), IMAGE),
    "matmul": (Function(lambda y: y @ y.transpose(-1, -2)), IMAGE),
    "add, mul and sub": (Function(lambda y: (y + y.flip(0)) * y - y.relu()), IMAGE),
    "alpha": (Function(lambda y: torch.add(y, y.relu(), alpha=3)), IMAGE),
    "numbers": (Function(lambda y: (2.5 - y * 0.25 + 1) / 3), IMAGE),
    "extrema": (Function(lambda y: torch.maximum(torch.minimum(y, y.flip(1)), y.neg())), IMAGE),
    "cat and stack": (Function(lambda y: torch.stack([torch.cat([y, y.relu()], 1)] * 2, 1)), IMAGE),
    "split": (Function(lambda y: torch.cat([part.relu() for part in y.split([1, 3], 1)], 1)), IMAGE),
    "chunk and unbind": (Function(lambda y: y.chunk(2, 1)[1] + y.unbind(0)[0][2:]), IMAGE),
    "moves": (
        Function(lambda y: y.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).roll(1, 2).repeat(1, 2, 1, 1)),
        IMAGE,
    ),
    "slices": (Function(lambda y: y[:, 1:3, ::2, -3:].flip(3)), IMAGE),
    "indices": (Weighted(lambda m, y: y.index_select(1, m.i) + y[:, [2, 0]], i=torch.tensor([1, 3])), IMAGE),
    "gather": (Weighted(lambda m, y: y.gather(1, m.i), i=torch.zeros(2, 2, 8, 8, dtype=torch.int64)), IMAGE),
    "pixel shuffle": (Function(lambda y: F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2)), IMAGE),
    "max pool": (Function(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), IMAGE),
    "average pool": (Function(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), IMAGE),
    "adaptive pools": (Function(lambda y: F.adaptive_avg_pool2d(y, 1) + F.adaptive_avg_pool2d(y, 4)), IMAGE),
    "means of windows of several sizes": (Function(nn.AdaptiveAvgPool2d((3, 5))), (2, 3, 7, 8)),
    "maxima of windows of several sizes": (Function(nn.AdaptiveMaxPool2d((3, 5))), (2, 3, 7, 8)),
    "adaptive pools of a series": (Function(nn.AdaptiveMaxPool1d(4), nn.Conv1d(3, 4, 1)), (2, 3, 7)),
    "reductions": (Function(lambda y: y.mean((2, 3)) + y.sum(3).amax(2) + y.amin((2, 3))), IMAGE),
    "largest": (Function(lambda y: y.topk(3, 3)[0] + y.sort(3, descending=True)[0][..., :3]), IMAGE),
    "extremum and index": (Function(lambda y: y.max(1, keepdim=True)[0] + y.min(2, keepdim=True)[1]), IMAGE),
    "shrinking": (Function(lambda y: F.hardshrink(y, 0.3) + F.softshrink(y, 0.2)), IMAGE),
    "curves of positive numbers": (
        Function(lambda y: torch.log1p(y.relu()) + torch.rsqrt(y.sigmoid()) + torch.expm1(y) + y.square()),
        IMAGE,
    ),
    "bounds": (Function(lambda y: y.clamp_min(-0.3) + y.clamp_max(0.2) + F.logsigmoid(y)), IMAGE),
    "masked": (Weighted(lambda m, y: y.masked_fill(m.i, -0.5), i=torch.eye(8) > 0), IMAGE),
    "attention with a mask": (
        Weighted(lambda m, y: torch.softmax(y.masked_fill(m.i, -torch.inf), -1) @ y, i=torch.ones(8, 8).triu(1) > 0),
        IMAGE,
    ),
    "a row that is hidden as a whole": (
        Weighted(
            lambda m, y: torch._safe_softmax(y + m.i, -1),
            i=torch.zeros(8, 8).index_fill(0, torch.tensor(2), -torch.inf),
        ),
        IMAGE,
    ),
    "root mean square": (nn.Sequential(nn.Linear(12, 8), nn.RMSNorm(8)), (4, 12)),
    "pads": (Function(lambda y: F.pad(F.pad(y, (1, 2, 0, 1), value=0.5), (1, 1, 1, 1), "reflect")), IMAGE),
    "nearest": (Function(nn.Upsample(scale_factor=2)), IMAGE),
    "bilinear": (Function(lambda y: F.interpolate(y, scale_factor=1.5, mode="bilinear")), (1, 3, 7, 6)),
    "bilinear by corners": (Function(lambda y: F.interpolate(y, (9, 5), mode="bilinear", align_corners=True)), IMAGE),
    "layer norm": (nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8)), (4, 12)),
    "group norm": (Function(nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (Function(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "softmax": (Function(lambda y: y.softmax(1)), IMAGE),
    "float between": (Function(lambda y: torch.where(torch.sin(y) > 0, torch.cos(y), torch.full_like(y, 2.0))), IMAGE),
    "embedding": (
        Weighted(lambda m, y: y + F.embedding(m.i, m.w), i=torch.tensor([1, 2] * 4), w=torch.randn(3, 8)),
        IMAGE,
    ),
    **{
        type(act).__name__: (Function(act), IMAGE)
        for act in (
            *(
                nn.ReLU6(),
                nn.Sigmoid(),
                nn.Tanh(),
                nn.Hardsigmoid(),
                nn.Hardswish(),
                nn.ELU(0.7),
                nn.CELU(2.0),
                nn.SELU(),
            ),
            *(
                nn.GELU(),
                nn.LeakyReLU(0.2),
                nn.Mish(),
                nn.SiLU(),
                nn.PReLU(4),
                nn.Softplus(2, 3),
                nn.Threshold(0.1, 0.3),
            ),
            *(nn.Hardtanh(-0.5, 2.0),),
        )
    },
}


def written_and_run(module: nn.Module, shape, mode="static", qconfig="default"):
    torch.manual_seed(0)
    x = torch.randn(shape)
    forms = qlib.quantize_model(module.eval(), (x,), [(torch.randn(shape),) for _ in range(3)], mode, qconfig, "trace")
    model = to_onnx(forms.debug)
    (given,) = (value.name for value in model.graph.input)
    found = torch.tensor(ReferenceEvaluator(model).run(None, {given: x.numpy()})[0])
    with torch.no_grad():
        return forms.debug, x, found, forms.debug(x)


def assert_same(debug, x: Tensor, found: Tensor, expected: Tensor):
    """Equal, but by one quantum where the exact number lies at the boundary of a rounding, before float32's errors."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    step = output_scales(debug)[0]
    if step is None:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        return
    apart = (found - expected).abs() / step > 0.01
    if apart.any():
        assert ((found - expected)[apart].abs() / step).max() < 1.01
        real = qlib.replay(debug, debug, (x,)).steps[-1].real[apart]
        assert ((real - real.floor() - 0.5).abs() < 1e-3).all()


@pytest.mark.parametrize("name", MODULES)
def test_the_meaning_is_kept(name):
    debug, x, found, expected = written_and_run(*MODULES[name])
    assert_same(debug, x, found, expected)


@pytest.mark.parametrize("qconfig", ["int8", "symmetric", "reduced_range", "per_tensor", "asymmetric_weight", "int16"])
def test_every_kind_of_parameters(qconfig):
    debug, x, found, expected = written_and_run(nn.Sequential(nn.Linear(12, 8), nn.ReLU()), (4, 12), qconfig=qconfig)
    assert_same(debug, x, found, expected)


@pytest.mark.parametrize(
    ("mode", "qconfig"),
    [
        ("dynamic", "default"),
        ("dynamic", "int8"),
        ("dynamic", "symmetric"),
        ("dynamic", "int16"),
        ("static", "per_token"),
        ("static", "per_token_symmetric"),
        ("static", "weight_only_int8"),
        ("static", "weight_only_int4"),
        ("static", "fp16"),
    ],
)
@pytest.mark.parametrize("shape", [(4, 64), (2, 3, 64)])
def test_ranges_at_run_time_and_weights_only(mode, qconfig, shape):
    debug, x, found, expected = written_and_run(nn.Linear(64, 8), shape, mode, qconfig)
    assert_same(debug, x, found, expected)


def test_a_dynamic_linear_layer_is_a_product_of_integers():
    forms = qlib.quantize_model(nn.Linear(6, 3).eval(), (torch.randn(2, 6),), mode="dynamic")
    kinds = [node.op_type for node in to_onnx(forms.debug).graph.node]
    assert kinds.count("MatMulInteger") == kinds.count("DynamicQuantizeLinear") == 1


def test_the_file_says_what_it_is():
    model = to_onnx(qlib.quantize_model(nn.Linear(6, 3).eval(), (torch.randn(2, 6),)).debug, "a name")
    assert [(domain.domain, domain.version) for domain in model.opset_import] == [("", OPSET)]
    assert model.graph.name == "a name" and [value.name for value in model.graph.output] == ["output_0"]
    kinds = [node.op_type for node in model.graph.node]
    assert {node.op_type: node.doc_string for node in model.graph.node}["Gemm"] == "aten::linear linear"
    assert kinds.count("QuantizeLinear") == 2 and kinds.count("DequantizeLinear") == 4, "input, weight, bias, output"


RECURRENT = {
    "lstm": nn.LSTM(5, 3, num_layers=2),
    "lstm both ways": nn.LSTM(5, 3, bidirectional=True, batch_first=True),
    "lstm with projections": nn.LSTM(5, 4, proj_size=2, bias=False),
    "gru": nn.GRU(5, 3),
    "tanh": nn.RNN(5, 3, bidirectional=True),
    "relu": nn.RNN(5, 3, nonlinearity="relu"),
}


def assert_all_close(model, inputs, expected):
    names = [value.name for value in model.graph.input]
    found = ReferenceEvaluator(model).run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    for one, other in zip(found, tree_leaves(expected), strict=True):
        torch.testing.assert_close(torch.tensor(one), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_written_step_by_step(name, mode):
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5)
    debug = qlib.quantize_model(RECURRENT[name].eval(), (x,), (), mode, method="export").debug
    model = to_onnx(debug)
    with torch.no_grad():
        assert_all_close(model, (x,), debug(x))
    kinds = [node.op_type for node in model.graph.node]
    assert ("MatMulInteger" in kinds) == (mode == "dynamic")


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    module = Weighted(
        lambda m, y: F.scaled_dot_product_attention(y, y, y, None if causal else m.i, is_causal=causal),
        i=torch.ones(8, 8).tril() > 0,
    )
    debug, _, found, expected = written_and_run(module, IMAGE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 * output_scales(debug)[0])


def test_groups_that_do_not_divide_a_row():
    debug, x, found, expected = written_and_run(nn.Linear(33, 8), (4, 33), qconfig="weight_only_int4")
    assert_same(debug, x, found, expected)


@pytest.mark.parametrize("include_last", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows(mode, include_last):
    module = nn.EmbeddingBag(7, 3, mode=mode, include_last_offset=include_last).eval()
    inputs = (torch.tensor([3, 0, 0, 6, 2]), torch.tensor([0, 2, 2, 5] if include_last else [0, 2, 2]))
    debug = qlib.quantize_model(module, inputs, qconfig="embedding_byte").debug
    assert_all_close(to_onnx(debug), inputs, debug(*inputs))


def test_bags_of_rows_with_factors():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(7, 3, mode="sum")

        def forward(self, indices, factors):
            return self.bag(indices, per_sample_weights=factors)

    inputs = (torch.tensor([[3, 0], [0, 6]]), torch.tensor([[0.5, -1.0], [2.0, 0.0]]))
    debug = qlib.quantize_model(Weighted().eval(), inputs, qconfig="embedding_4bit").debug
    assert_all_close(to_onnx(debug), inputs, debug(*inputs))


def test_what_onnx_can_not_say_is_an_error_that_names_the_operator():
    module = nn.EmbeddingBag(4, 3, padding_idx=1).eval()
    captured = qlib.capture(module, (torch.tensor([[0, 1], [2, 3]]),))
    with pytest.raises(qlib.ConversionError, match=r"aten::embedding_bag.*a row that is left out, 1"):
        to_onnx(captured)


def test_an_input_that_is_an_output():
    class Both(nn.Module):
        def forward(self, x: Tensor):
            return x, {"again": x + 1}

    model = to_onnx(qlib.capture(Both(), (torch.randn(2, 3),)))
    a, b = ReferenceEvaluator(model).run(None, {"x": torch.ones(2, 3).numpy()})
    assert (a == 1).all() and (b == 2).all()


def test_every_operator_of_the_table_has_a_counterpart():
    assert {name for op in qlib.OPS.values() for name in op.chain} <= {*EMITTERS, *STEPS}
