from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.case import expand
from conformance.errors import SpecError, UsageError
from conformance.load import discover, load, load_text
from conformance.vocabulary import Vocabulary, resolve_operator
from conformance.yamltree import Source, parse, plain, scalar_value

WORDS = Vocabulary(
    operators=frozenset({"quantized::linear", "quantized::linear_relu", "quantized::conv1d", "quantized::conv2d"}),
    float_operators=frozenset({"aten::linear", "aten::relu"}),
    aliases={"quantized::linear_with_relu": "quantized::linear_relu"},
    observers=frozenset({"min_max", "histogram", "fixed"}),
    qconfigs=frozenset({"default", "per_channel"}),
)
VALID = """\
spec: 1
suite: linear
cases:
  - id: linear_relu
    why: it must be one operator
    module:
      layers: {fc: "nn.Linear(30, 20)", act: nn.ReLU()}
      forward: |
        def forward(self, x):
            y = self.fc(x)
            return self.act(y)
    inputs: {x: {shape: [4, 30]}}
    modes: [static]
    capture: [export]
    expect:
      ops: {quantized::linear_relu: 1}
      accuracy: {sqnr_db: 30}
"""


def read(text):
    return load_text(text, "a.qspec.yaml", WORDS)


def mistakes(text):
    with pytest.raises(SpecError) as caught:
        read(text)
    return [(m.line, m.column, m.message) for m in caught.value.mistakes]


def test_a_valid_file_has_no_mistakes():
    (spec,) = read(VALID).cases
    assert spec.line == 4
    assert spec.variants[0].spec.why == "it must be one operator"
    assert spec.yaml.startswith("id: linear_relu\nwhy: ")
    assert spec.yaml.endswith("accuracy: {sqnr_db: 30}\n")
    assert "        y = self.fc(x)" in spec.yaml  # relative indentation is kept


# old text, new text, line, column, part of the message
MISTAKES = [
    ("spec: 1", "spec: 2", 1, 7, "expected 1, found 2"),
    ("spec: 1\n", "", 1, 1, "missing key 'spec'"),
    ("suite: linear", "suite: Linear!", 2, 8, "text that matches"),
    ("suite: linear", "siute: linear", 2, 1, "Did you mean 'suite'"),
    ("suite: linear", "suite: linear\ndefaults: {mods: [static]}", 3, 12, "Did you mean 'modes'"),
    ("suite: linear", "suite: linear\nsuite: b", 3, 1, "given twice"),
    ("id: linear_relu", "id: Linear", 4, 9, "text that matches"),
    ("    why: it must be one operator\n", "", 4, 5, "missing key 'why'"),
    ("why: it must be one operator", "why: ''", 5, 10, "at least 1 character"),
    ("why: it must be one operator", "why: 3", 5, 10, "expected text, found 3"),
    ("why: it must be one operator", "why: !x y", 5, 10, "tag"),
    ("why: it must be one operator", "why: &a y", 5, 10, "anchor &a"),
    ("why: it", "wyh: it", 5, 5, "Did you mean 'why'"),
    ("nn.Linear(30, 20)", "nn.Liner(30, 20)", 7, 21, "Did you mean 'nn.Linear'"),
    ("nn.Linear(30, 20)", "nn.Linear(30)", 7, 21, "missing argument out_features"),
    ("nn.Linear(30, 20)", "nn.Linear(30, 20, bais=True)", 7, 39, "Did you mean 'bias'"),
    ("nn.Linear(30, 20)", "nn.Linear(30, 2**21)", 7, 35, "at most 1048576"),
    ("nn.Linear(30, 20)", "nn.Linear(30, 20", 7, 30, "never closed"),
    ('fc: "nn', 'type: "nn', 7, 16, "taken by PyTorch"),
    ("act: nn.ReLU()", "act: 3", 7, 46, "expected a layer"),
    ("forward: |", "froward: |", 8, 7, "Did you mean 'forward'"),
    ("return self.act(y)", "return self.atc(y)", 11, 20, "Did you mean 'act'"),
    ("return self.act(y)", "return self.act(z)", 11, 29, "unknown name 'z'"),
    ("return self.act(y)", "return torch.load(y)", 11, 20, "torch.load"),
    ("return self.act(y)", "return y.__class__", 11, 20, "two underscores"),
    ("return self.act(y)", "return F.rleu(y)", 11, 20, "Did you mean 'relu'"),
    ("return self.act(y)", "é = 1; return self.atc(y)", 11, 27, "self.atc"),
    ("y = self.fc(x)", "import os", 10, 13, "import is not allowed"),
    ("inputs: {x:", "inputs: {z:", 12, 14, "no argument 'z'"),
    ("shape: [4, 30]", "shape: [4, -1]", 12, 29, "at least 0, found -1"),
    ("shape: [4, 30]", "shape: [4, a]", 12, 29, "whole number, found text 'a'"),
    ("shape: [4, 30]", "shape: [65536, 65536]", 12, 25, "elements"),
    ("shape: [4, 30]", "shape: 4", 12, 25, "expected a list, found 4"),
    ("shape: [4, 30]", "shapes: [4, 30]", 12, 18, "Did you mean 'shape'"),
    ("shape: [4, 30]", "shape: [4, 30], value: 3", 12, 34, "belongs to constant"),
    ("shape: [4, 30]", "shape: [4, 30], range: [1]", 12, 41, "two values"),
    ("shape: [4, 30]", "shape: [4, 30], range: [1, 0]", 12, 41, "[lowest, highest]"),
    ("shape: [4, 30]", "shape: [4, 30], dtype: int8, distribution: normal", 12, 61, "gives no int8"),
    ("shape: [4, 30]", "shape: [4, 30], dtype: flaot32", 12, 41, "Did you mean 'float32'"),
    ("modes: [static]", "modes: [statik]", 13, 13, "Did you mean 'static'"),
    ("modes: [static]", "modes: []", 13, 12, "at least 1"),
    ("modes: [static]", "modes: [static, static]", 13, 12, "once"),
    ("modes: [static]", "modes: static", 13, 12, "expected a list"),
    ("modes: [static]", "timeout: -1", 13, 14, "more than 0"),
    ("modes: [static]", "timeout: .nan", 13, 14, "finite"),
    ("modes: [static]", "calibration: 0", 13, 18, "at least 1"),
    ("modes: [static]", "calibration: {inputs: {y: {}}}", 13, 28, "no input 'y'"),
    ("modes: [static]", "qconfig: defualt", 13, 14, "Did you mean 'default'"),
    ("modes: [static]", "qconfig: {activation: {dtype: uint8, observer: minmax}, weight: null}", 13, 52, "'min_max'"),
    ("modes: [static]", "qconfig: {types: {nn.Lin: null}}", 13, 23, "Did you mean 'nn.Linear'"),
    ("modes: [static]", "qconfig: {modules: {fcc: null}}", 13, 25, "no layer 'fcc'. Did you mean 'fc'"),
    ("modes: [static]", "qconfig: {modules: {fc.inner: null, act: null, '0': null}}", 13, 52, "no layer '0'"),
    ("modes: [static]", "matrix: {a: [1, 2]}", 13, 14, "used nowhere"),
    ("capture: [export]", "capture: ['${a}']", 14, 16, "unknown matrix name 'a'"),
    ("quantized::linear_relu: 1", "quantized::linear_rleu: 1", 16, 13, "Did you mean 'quantized::linear_relu'"),
    ("quantized::linear_relu: 1", "aten::linera: 1", 16, 13, "Did you mean 'aten::linear'"),
    ("quantized::linear_relu: 1", "quantized::linear_relu: -1", 16, 37, "at least 0"),
    ("ops: {quantized::linear_relu: 1}", "opps: {}", 16, 7, "Did you mean 'ops'"),
    ("ops: {quantized::linear_relu: 1}", "ops: {static: {quantized::lin: 1}}", 16, 22, "unknown quantized operator"),
    ("ops: {quantized::linear_relu: 1}", "debug_equal: 1 step", 16, 20, "'0 quanta'"),
    ("ops: {quantized::linear_relu: 1}", "output: {dtype: float}", 16, 23, "Did you mean 'float"),
    ("accuracy: {sqnr_db: 30}", "accuracy: {sqnr_db: 0}", 17, 27, "more than 0"),
    ("accuracy: {sqnr_db: 30}", "accuracy: {}", 17, 17, "at least one of sqnr_db"),
    ("accuracy: {sqnr_db: 30}", "absent: [quantized::linear_with_relu]", 17, 15, "can't be absent and run"),
    ("accuracy: {sqnr_db: 30}", "accuracy: {sqnr_db: 30", 18, 1, "not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "message"), MISTAKES, ids=[m[1][:40] for m in MISTAKES])
def test_a_mistake_is_shown_where_it_stands(old, new, line, column, message):
    assert VALID.count(old) == 1
    found = mistakes(VALID.replace(old, new))
    assert (line, column) in [(at, col) for at, col, _ in found]
    assert message in " ".join(said for at, col, said in found if (at, col) == (line, column))


def test_all_mistakes_of_a_file_come_at_once_in_reading_order():
    text = VALID.replace("nn.ReLU()", "nn.Relu()").replace("sqnr_db: 30", "sqnr: 30").replace("why:", "wy:")
    assert [(line, column) for line, column, _ in mistakes(text)] == [(4, 5), (5, 5), (7, 46), (17, 18)]


def test_a_mistake_shows_its_line():
    with pytest.raises(SpecError) as caught:
        read(VALID.replace("self.act(y)", "self.atc(y)"))
    (mistake,) = caught.value.mistakes
    assert mistake.text == "            return self.atc(y)"
    assert mistake.text[mistake.column - 1 :].startswith("self.atc")


def test_a_mistake_in_many_combinations_is_said_once():
    text = VALID.replace("    modes:", "    matrix: {n: [1, 2, 3]}\n    modes:").replace("[4, 30]", "['${n}', -30]")
    assert [(line, column) for line, column, _ in mistakes(text)] == [(12, 34)]


def test_a_mistake_in_a_matrix_value_is_shown_in_the_matrix():
    text = VALID.replace("    modes:", "    matrix: {act: [nn.ReLU(), nn.Relu()]}\n    modes:")
    ((line, column, message),) = mistakes(text.replace("act: nn.ReLU()}", 'act: "${act}"}'))
    assert (line, column) == (13, 31)
    assert "nn.ReLU" in message


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3), ("1e3", 1000.0), ("0o17", 15), ("0x1F", 31), (".5", 0.5), ("-7", -7), ("+7", 7), ("010", 10),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("true", True), ("False", False), ("null", None),
        ("~", None), ("", None), ("1_000", "1_000"), ("12:30", "12:30"), ("2001-01-01", "2001-01-01"),
        ("-.inf", float("-inf")), ("9" * 5000, float("inf")), ("none", "none"),
    ],
)  # fmt: skip
def test_scalars_are_yaml_1_2(written, value):
    found = scalar_value(written)
    assert type(found) is type(value)
    assert found == value


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_every_number_reads_back(number):
    assert scalar_value(repr(number)) == number


def test_a_quoted_number_is_text():
    assert plain(parse(Source("a", "{a: '1', b: \"1\", c: 1}")).root) == {"a": "1", "b": "1", "c": 1}


@pytest.mark.parametrize(
    "text",
    ["[" * 60 + "]" * 60, "[" * 100_000, "a: &x [1]\nb: *x", "a: 1\n---\nb: 2", "", "- 1", "3", "{", "\x00", "a: b: c",
     "!!python/object/apply:os.system ['true']", "? [a]\n: 1", "a: \ud800", "%YAML 9.9\n---\na: 1"],
)  # fmt: skip
def test_hostile_or_broken_yaml_is_a_spec_error(text):
    with pytest.raises(SpecError):
        read(text)


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "a.qspec.yaml"
    path.write_text(VALID + "#" * 2**20)
    with pytest.raises(SpecError, match="1048576 bytes"):
        load(path, WORDS)


@pytest.mark.parametrize(
    "text",
    [
        "[" + "*a, " * 200_000 + "]", "a: {" + "".join(f"!x k{i}: 1, " for i in range(50_000)) + "}",
        VALID.replace("    modes:", f"    matrix: {{n: [{', '.join(map(str, range(4000)))}]}}\n    modes:")
        .replace("why: it", "why: " + "${x} ${n} " * 300),
    ],
    ids=["aliases", "tags", "placeholders"],
)  # fmt: skip
def test_a_file_full_of_mistakes_is_given_up(text):
    assert len(mistakes(text)) <= 2000


def test_load_reads_files_and_says_why_it_can_not(tmp_path):
    path = tmp_path / "a.qspec.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    assert load(path, WORDS).cases[0].variants[0].spec.id == "linear_relu"
    path.write_bytes(VALID.encode() + b"# \xff")
    with pytest.raises(SpecError, match=r"a\.qspec\.yaml:18:3: expected UTF-8"):
        load(path, WORDS)
    with pytest.raises(UsageError, match="can't read"):
        load(tmp_path / "b.qspec.yaml", WORDS)


def test_discover_finds_spec_files_only(tmp_path):
    for name in ("b/x.qspec.yaml", "a.qspec.yaml", "b/c.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert discover([tmp_path, tmp_path / "b"]) == [tmp_path / "a.qspec.yaml", tmp_path / "b/x.qspec.yaml"]
    with pytest.raises(UsageError, match="nowhere"):
        discover([tmp_path / "nowhere"])


def test_defaults_stand_under_each_case_and_the_case_wins():
    text = VALID.replace("cases:", "defaults: {calibration: 5, modes: [dynamic], timeout: 9}\ncases:")
    spec = read(text).cases[0].variants[0].spec
    assert (spec.calibration.batches, spec.modes, spec.timeout) == (5, ("static",), 9)


def test_ids_are_unique_in_a_file():
    case = VALID[VALID.index("  - id") :]
    assert mistakes(VALID + case)[0][:2] == (18, 9)


def test_operator_names():
    assert resolve_operator("quantized::linear_with_relu", WORDS) == "quantized::linear_relu"
    assert resolve_operator("aten::some_new_one", WORDS) == "aten::some_new_one"
    for wrong, right in (
        ("aten::linaer", "aten::linear"),
        ("quantized::conv3d", "quantized::conv"),
        ("relu", "expected an operator"),
    ):
        with pytest.raises(ValueError, match=right):
            resolve_operator(wrong, WORDS)


def load_or_refuse(text):
    try:
        expand(read(text))
    except SpecError as error:
        assert error.mistakes
        for mistake in error.mistakes:
            assert mistake.line >= 1
            assert mistake.column >= 1
            assert not mistake.text or mistake.column <= len(mistake.text) + 1
            str(mistake)


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.text() | st.text("{}[]:-,'\"|>&*!#\n a1$"))
def test_any_text_loads_or_is_a_spec_error(text):
    load_or_refuse(text)


@FUZZ
@given(st.data())
def test_any_mutation_of_a_valid_file_loads_or_is_a_spec_error(data):
    text = VALID.replace("    modes:", "    matrix: {n: [1, 2], include: [{n: 3}]}\n    timeout: ${n}\n    modes:")
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 12, len(text))))
        pieces = st.sampled_from(["[1]", "{a: b}", "null", "${n}", "9" * 50, ": ", "\n", "'", "true", ".inf", "- "])
        text = text[:start] + data.draw(pieces | st.text(max_size=4)) + text[end:]
    load_or_refuse(text)


def test_the_front_end_needs_no_torch():
    code = "import sys, conformance.load, conformance.case; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
