from __future__ import annotations

import ast
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conformance import source_tables as tables
from conformance.errors import SpecError
from conformance.source import Composite, Factory, Leaf, Sequence, parse_module
from conformance.source_ast import fold, offset_of
from conformance.source_expression import check_expression
from conformance.source_forward import LayerNames, check_forward
from conformance.yamltree import Source, parse

LAYERS = LayerNames()


def module_of(text):
    return parse_module(parse(Source("a", text)).root)


def body(*lines):
    return "def forward(self, x, y=1):\n" + "".join(f"    {line}\n" for line in lines)


def faults(result):
    return "; ".join(fault.message for fault in result) if isinstance(result, tuple) else ""


RECURRENT = {"LSTM", "GRU", "RNN"}


@pytest.mark.parametrize("name", sorted(tables.CONSTRUCTORS.keys() - RECURRENT))
def test_the_constructor_table_agrees_with_torch(name):
    real = inspect.signature(getattr(nn, name).__init__).parameters
    before, _, after = tables.CONSTRUCTORS[name].partition("*, ")
    written = [part for part in before.rstrip(", ").split(", ") if part]
    positional = [
        parameter.name + ("" if parameter.default is inspect.Parameter.empty else "=")
        for parameter in list(real.values())[1:]
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    # Left out on purpose: what depends on the machine, what is private or deprecated, and what only training reads.
    left_out = {"device=", "_weight=", "_freeze=", "scale_grad_by_freq=", "sparse=", "min_value=", "max_value="}
    kept = [each for each in positional if each not in left_out]
    assert written == kept
    for part in after.split(", ") if after else ():
        assert real[part.rstrip("=")].kind is inspect.Parameter.KEYWORD_ONLY
    # A position in the table must be the same position in torch.
    for index, part in enumerate(written):
        if part in positional and positional.index(part) != index:
            assert set(positional[: positional.index(part)]) & left_out


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_recurrent_layers_take_what_the_table_says(name):
    parameters = [part.rstrip("=") for part in tables.CONSTRUCTORS[name].split(", ")]
    values = {
        "input_size": 4, "hidden_size": 3, "num_layers": 2, "nonlinearity": "relu", "bias": False, "batch_first": True,
        "dropout": 0.5, "bidirectional": True, "proj_size": 2, "dtype": torch.float64,
    }  # fmt: skip
    layer = getattr(nn, name)(
        *[values[parameter] for parameter in parameters if parameter not in {"proj_size", "dtype"}]
    )
    for parameter in set(parameters) - {"proj_size", "dtype"}:
        assert getattr(layer, parameter) == values[parameter]


@pytest.mark.parametrize(
    ("names", "owners"),
    [
        (tables.FUNCTIONAL, [F]),
        (tables.TORCH_FUNCTIONS | tables.DTYPES | tables.TORCH_CONSTANTS | tables.PARAMETER_TENSORS, [torch]),
        (tables.TENSOR_METHODS, [torch.zeros(1), [], nn.ModuleList(), nn.ModuleDict()]),
        (tables.MATH, [math]),
        (tables.CONTAINERS, [nn]),
    ],
)
def test_every_name_in_a_table_exists(names, owners):
    assert [name for name in sorted(names) if not any(hasattr(owner, name) for owner in owners)] == []


def test_names_that_a_module_has_are_all_reserved():
    public = {name for name in dir(nn.Module()) if not name.startswith("_")}
    assert public - tables.MODULE_ATTRIBUTES == set()


def test_no_table_names_anything_that_leaves_the_sandbox():
    everything = (
        tables.FUNCTIONAL | tables.TORCH_FUNCTIONS | tables.TENSOR_METHODS | tables.TENSOR_ATTRIBUTES
        | tables.LAYER_ATTRIBUTES | tables.TORCH_CONSTANTS | tables.MATH | tables.BUILTINS
    )  # fmt: skip
    harmful = {
        "load", "save", "hub", "ops", "jit", "utils", "classes", "compile", "numpy", "tofile", "apply", "apply_",
        "map_", "storage", "untyped_storage", "register_hook", "backward", "grad_fn", "data", "share_memory_",
        "from_file", "frombuffer", "asarray", "set_default_device", "manual_seed", "format", "format_map", "join",
        "type", "getattr", "eval", "exec", "open", "print", "isinstance", "super", "vars", "factorial", "comb", "perm",
    }  # fmt: skip
    assert everything & harmful == set()
    assert not any("__" in name or name.startswith("_") for name in everything)


@pytest.mark.parametrize(
    "text",
    [
        "nn.Linear(30, 20)", "nn.Conv2d(3, 4, kernel_size=(3, 3), padding='same')", "nn.Identity()",
        "nn.Linear(2 * 15, 20)", "nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.ReLU6()))",
        "nn.ModuleList([nn.ReLU(), nn.ReLU()])", "nn.ModuleDict({'a': nn.ReLU(), 'b': nn.Tanh()})",
        "nn.Parameter(torch.randn(3, 4))", "nn.Hardtanh(-1.0, 1.0)", "nn.LeakyReLU(1 / 3)",
        "nn.Softplus(beta=math.sqrt(2) / math.pi)", "nn.Linear(2, 3, dtype=torch.float64)",
        "nn.BatchNorm2d(4, bias=False)", "nn.Upsample(scale_factor=2.0, mode='bilinear', align_corners=None)",
        "nn.Parameter(torch.full((2, 3), 1e9))", "nn.LSTM(4, 3, 2, batch_first=True)",
    ],
)  # fmt: skip
def test_layers_that_are_allowed_build(text):
    tree = check_expression(text)
    assert isinstance(tree, ast.Expression), faults(tree)
    eval(compile(tree, "spec", "eval"), {"nn": nn, "torch": torch, "math": math, "__builtins__": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nn.Relu()", "Did you mean 'nn.ReLU'"), ("nn.Linear", "parentheses"),
        ("Linear(2, 3)", "Did you mean 'nn.Linear'"), ("nn.Linear(1, 2, 3, 4, 5)", "too many"),
        ("nn.Linear(30, out_feature=2)", "'out_features'"), ("nn.Linear(2, 3, in_features=2)", "given twice"),
        ("nn.Linear(2, 3, device='cuda')", "no argument 'device'"), ("nn.Linear(*[2, 3])", "constant"),
        ("nn.Linear(**{'a': 1})", "**"), ("nn.Linear(10**9, 3)", "at most"),
        ("nn.Linear(2**20 * 2**20, 3)", "at most"), ("nn.Linear((2**20 * 2**20) + 1, 3)", "at most"),
        ("nn.Linear((True * 2**20) * (True * 2**20), 3)", "constant"), ("nn.Conv1d(1, 1, 'a' * 10**9)", "constant"),
        ("nn.Linear(9**9**9, 1)", "constant"), ("nn.Linear(x, 3)", "constant"),
        ("nn.Linear(open('a'), 3)", "constant"), ("nn.Module.register_module(nn.ReLU(), 'a', None)", "unknown layer"),
        ("nn.ReLU().__class__()", "unknown layer"), ("nn.init.normal_(1)", "unknown layer"),
        ("nn.modules.Linear(1, 2)", "unknown layer"), ("nn.utils.x()", "unknown layer"),
        ("nn.Parameter(torch.load('a'))", "torch.<one of"), ("nn.Parameter(torch.zeros(2**20, 2**20))", "elements"),
        ("nn.Parameter(torch.zeros(3, pin_memory=True))", "unknown argument"), ("torch.load('a')", "unknown layer"),
        ("nn.Sequential(nn.Parameter(torch.zeros(1)))", "parameter"),
        ("nn.ModuleList(nn.ReLU())", "expected nn.ModuleList"),
        ("nn.ModuleDict({'__class__': nn.ReLU()})", "underscores"), ("nn.ModuleDict({**a})", "quoted name"),
        ("(lambda: nn.ReLU())()", "unknown layer"), ("[nn.ReLU() for _ in range(3)]", "expected a layer"),
        ("().__class__.__bases__[0].__subclasses__()", "unknown layer"), ("f'{1}'", "expected a layer"),
        ("nn.ReLU(f'{1}')", "constant"), ("nn.ReLU(); nn.ReLU()", "not valid Python"), ("", "not valid Python"),
        ("nn.Linear(1j, 2)", "constant"), ("nn.Linear(b'1', 2)", "constant"), ("-" * 5000 + "1", "deep"),
        ("(" * 3000, "not valid Python"), ("nn.Linear(" + "1+" * 4000 + "1, 2)", "deep"), ("9" * 9000, "Python"),
        ("nn.ReLU(" + "'" + "a" * 300 + "')", "200 characters"), ("a" * 20_000, "at most 16384"),
        ("\x00", "not valid"),
    ],
)  # fmt: skip
def test_layers_that_are_refused(text, message):
    assert message in faults(check_expression(text))


@pytest.mark.parametrize(
    "lines",
    [
        ["return F.relu(x + y)"], ["x = torch.cat([x, x], dim=1)", "return x.view(x.size(0), -1)"],
        ["return x.shape[0]"], ["x[0] = 1", "x += 2", "return x"], ["for i in range(3):", "    x = x * i", "return x"],
        ["return x ** 2 + 2 ** 3"],
        ["if x.dim() == 2 and not self.training:", "    return x", "return -x if y else x"],
        ["a, b = x.chunk(2, dim=-1)", "return a @ b"], ["while y < 3:", "    y = y + 1", "return x"],
        ["assert x.ndim == 2, 'shape'", "return x.T"], ["return [x * i for i in (1, 2) if i]"],
        ["z: torch.Tensor = x.to(torch.float64)", "return {'a': z, 'b': (z, None)}"],
        ["'a docstring'", "x.add_(1)", "return x"], ["return sum([v for v in [x, x]])"],
        ["for i, (a, b) in enumerate(zip([1], [2])):", "    pass", "return x[..., 1:, None]"],
        ["return math.sqrt(2) * math.pi * x"], ["return [0] * 3"], ["return F.pad(x, (1, 1), value=-1e9)"],
        ["return torch.full((2, 3), 1e9)"],
    ],
)  # fmt: skip
def test_forwards_that_are_allowed_compile(lines):
    tree = check_forward(body(*lines), LAYERS)
    assert isinstance(tree, ast.Module), faults(tree)
    space = dict.fromkeys(tables.NAMESPACE_NAMES) | {"torch": torch, "__builtins__": {}}
    exec(compile(tree, "spec", "exec"), space)
    assert callable(space["forward"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("return ().__class__", "two underscores"), ("return x.__dict__", "two underscores"),
        ("return self.__dict__", "two underscores"), ("return torch.load('a')", "torch.load"),
        ("return torch.ops.aten.relu(x)", "'torch.ops'"), ("return torch.hub", "'torch.hub'"),
        ("return torch.jit.script(x)", "'torch.jit'"), ("return torch.nn.functional.relu(x)", "write F.<name>"),
        ("return nn.ReLU()(x)", "a layer or a function"), ("return nn.Linear(1, 2)", "nn.Linear"),
        ("return x.numpy()", "'numpy'"), ("return x.data", "'data'"), ("return x.apply_(abs)", "'apply_'"),
        ("return '{0.__class__}'.format(x)", "'format'"), ("return f'{x}'", "f-strings"),
        ("return '%s' % x", "arithmetic on text"), ("return 'a' * 10**9", "arithmetic on text"),
        ("return [0] * 10**9", "repeat a list"), ("return [0] * y", "repeat a list"),
        ("return 10**10**10", "exponent"), ("return x ** y", "constant exponent"), ("return 1 << 40", "`<<`"),
        ("x <<= 5; return x", "`<<`"), ("return lambda: x", "lambda"), ("import os", "import"),
        ("from os import path", "import"), ("global x", "Global"), ("nonlocal x", "Nonlocal"),
        ("return (z := x)", ":="), ("return x.view(*y)", "star-arguments"), ("return F.relu(**y)", "**"),
        ("return (i for i in x)", "generators"), ("try:\n        pass\n    except Exception:\n        pass", "Try"),
        ("with x: pass", "With"), ("raise ValueError", "raise"), ("del x", "Delete"),
        ("def f(): pass", "helper method"), ("class A: pass", "ClassDef"), ("yield x", "Yield"),
        ("return await_(x)", "unknown name"), ("return open('a')", "unknown name 'open'"),
        ("return getattr(x, 'a')", "unknown name"), ("return eval('1')", "unknown name"),
        ("return print(x)", "unknown name"), ("return isinstance(x, int)", "unknown name"),
        ("return [len]", "may only be called"), ("return [torch]", "torch.<name>"), ("return self", "`self.<name>`"),
        ("torch = x; return x", "taken"), ("self = x; return x", "taken"), ("self.a = x; return x", "attribute"),
        ("for self.a in x: pass", "attribute"), ("x.shape = 1; return x", "attribute"),
        ("for i in range(10**6): pass", "iterations"), ("return torch.zeros(2**20, 2**20)", "elements"),
        ("return x.repeat(2**20, 2**20)", "elements"), ("return torch.arange(0, 1, 1e-12)", "elements"),
        ("x.shape; return x", "no effect"), ("__a = 1; return x", "two underscores"),
        ("return F.relu(x, __a=1)", "two underscores"), ("return self.f()(x)", "a layer or a function"),
        ("return b'a'", "plain constant"), ("return 1j", "plain constant"), ("return 2**31 * 2**31", "at most"),
        ("x: List['os'] = 1; return x", "annotation"), ("match x:\n        case 1: pass", "Match"),
        ("async def f(): pass", "AsyncFunctionDef"), ("pass", "no `return"),
    ],
)  # fmt: skip
def test_lines_that_are_refused(line, message):
    assert message in faults(check_forward(body(line), LAYERS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def forwrad(self, x): return x", "Did you mean 'forwrad'"), ("x = 1", "expected only"),
        ("", "no such method"), ("def forward(x): return x", "`self`"),
        ("def forward(self, *x): return x", "plain arguments"),
        ("def forward(self, x, /): return x", "plain arguments"),
        ("def forward(self, x=[]): return x", "constant as the default"),
        ("@torch.jit.script\ndef forward(self, x): return x", "decorators"),
        ("def forward(self, x: os): return x", "annotation"), ("def forward(self, x: 'os'): return x", "annotation"),
        ("def forward(self, torch): return torch", "taken"),
        ("def train(self): return 1\ndef forward(self, x): return x", "taken"),
        ("def forward(self, x): return x\n" * 2, "defined twice"),
        ("def forward(self, x) -> open('a'): return x", "annotation"),
        ("def __call__(self): pass\ndef forward(self, x): return x", "underscores"),
    ],
)  # fmt: skip
def test_definitions_that_are_refused(text, message):
    assert message in faults(check_forward(text, LAYERS))


def test_a_module_is_normalised():
    assert isinstance(module_of("nn.ReLU()"), Leaf)
    assert module_of("python: a.b:make") == Factory("a.b:make")
    sequence = module_of("[nn.ReLU(), [nn.Tanh()]]")
    assert isinstance(sequence, Sequence)
    assert isinstance(sequence.items[1], Sequence)
    nested = module_of(
        """
layers:
  block:
    layers: {fc: "nn.Linear(3, 3)", w: "nn.Parameter(torch.ones(3))"}
    forward: |
      def halve(self, x):
          return x / 2
      def forward(self, x, scale: float = 1.0):
          return self.halve(self.fc(x)) * self.w * scale
  many: [nn.ReLU(), {layers: {act: nn.Tanh()}, forward: "def forward(self, x): return self.act(x)"}]
forward: |
  def forward(self, x):
      return self.block.halve(self.block(x)) + self.block.fc.weight + self.many[1].act(x)
"""
    )
    assert isinstance(nested, Composite)
    block = nested.layers["block"]
    assert isinstance(block, Composite)
    assert (block.function.arguments, block.function.required) == (("x", "scale"), 1)
    assert block.layers["w"].is_parameter


@pytest.mark.parametrize(
    "text",
    [
        "nn.Parameter(torch.ones(3))", "[nn.Parameter(torch.ones(3))]", "[]", "{layers: {}}", "{python: os}",
        "{python: 'os:system', layers: {}}", "{python: [a]}", "{layers: [nn.ReLU()], forward: x}", "null", "{}",
        "{python: 'a b:c'}", "{layers: {a__b: nn.ReLU()}, forward: ''}",
        "{layers: {python: {python: 'os:system'}}, forward: 'def forward(self, x): return x'}",
    ],
)  # fmt: skip
def test_modules_that_are_refused(text):
    with pytest.raises(SpecError):
        module_of(text)


def test_a_layers_name_does_not_widen_what_a_tensor_may_do():
    inner = "{layers: {numpy: nn.ReLU(), tofile: nn.ReLU()}, forward: 'def forward(self, x): return x'}"
    for said in ("x.numpy()", "x.numpy().tofile('a')", "self.a.fc.weight.numpy()", "self.a.numpy.weight.tofile(x)"):
        with pytest.raises(SpecError, match="not allowed"):
            module_of(f'{{layers: {{a: {inner}}}, forward: "def forward(self, x): return {said}"}}')
    module_of(f"{{layers: {{a: {inner}}}, forward: 'def forward(self, x): return self.a.numpy(x)'}}")


@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from(["+", "-", "*", "//", "%"]))
def test_folding_is_pythons_arithmetic(a, b, sign):
    text = f"{a} {sign} ({b})"
    try:
        expected = eval(text)
    except ZeroDivisionError:
        expected = None
    assert fold(ast.parse(text, mode="eval").body) == expected


@given(st.text("aé漢\n ", max_size=20))
def test_offsets_count_characters(before):
    text = f"'''{before}'''; name"
    node = ast.parse(text).body[1]
    assert text[offset_of(text, node) :] == "name"


@given(st.text(max_size=60) | st.text("nn.Linear()[]{}*'\"=, 12self.xF:\n_lambda"))
def test_any_text_is_checked_without_an_exception(text):
    check_expression(text)
    check_forward(text, LAYERS)
    check_forward(body(f"return {text}"), LAYERS)
