from __future__ import annotations

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.case import expand, find_case, item_name, select
from conformance.errors import SpecError, UsageError
from conformance.load import load_text
from conformance.matrix import combinations, short_text
from conformance.vocabulary import Vocabulary
from conformance.yamltree import Source, parse, plain

WORDS = Vocabulary(frozenset({"quantized::conv1d", "quantized::conv2d"}), frozenset(), {}, frozenset(), frozenset())
TEXT = """\
spec: 1
suite: conv
cases:
  - id: conv
    why: both dimensions
    matrix:
      dim: [1, 2]
      act: [nn.ReLU(), nn.ReLU(inplace=True)]
      bias: [true]
    module: ["nn.Conv${dim}d(3, 4, 1, bias=${bias})", "${act}"]
    inputs: {x: {shape: [1, 3, 8], range: [-1, "${dim}"]}}
    modes: [static, dynamic]
    expect: {ops: {"quantized::conv${dim}d": 1}, debug_equal: {dynamic: none}}
  - id: plain
    why: no matrix
    module: nn.ReLU()
    inputs: {x: {shape: [2]}}
    capture: [script]
    expect: {debug_equal: 0 quanta}
"""


def cases(text=TEXT):
    return expand(load_text(text, "specs/conv.qspec.yaml", WORDS))


def combos(matrix):
    found = []
    rows = [{name: plain(value) for name, value in row.items()} for row in combinations(tree(matrix), found)]
    return rows, [mistake.message for mistake in found]


def tree(text):
    return parse(Source("a", text)).root


def test_ids_in_their_order():
    assert [case.id for case in cases()][:5] == [
        "conv::conv[static-export-dim=1-act=ReLU()-bias=true]",
        "conv::conv[static-trace-dim=1-act=ReLU()-bias=true]",
        "conv::conv[dynamic-export-dim=1-act=ReLU()-bias=true]",
        "conv::conv[dynamic-trace-dim=1-act=ReLU()-bias=true]",
        "conv::conv[static-export-dim=1-act=ReLU(inplace=True)-bias=true]",
    ]
    assert cases()[-1].id == "conv::plain[static-script]"
    assert len({case.id for case in cases()}) == len(cases()) == 17


def test_ids_and_seeds_are_stable():
    # Published results are compared by these: a change of either makes all of them worthless.
    assert (cases()[-1].id, cases()[-1].seed) == ("conv::plain[static-script]", PLAIN_SEED)
    assert cases()[0].seed == FIRST_SEED


PLAIN_SEED = int.from_bytes(hashlib.sha256(b"conv::plain[]").digest()[:4], "big")
FIRST_SEED = int.from_bytes(hashlib.sha256(b"conv::conv[dim=1-act=ReLU()-bias=true]").digest()[:4], "big")


def test_the_seed_is_the_same_for_modes_and_captures_only():
    seeds = {}
    for case in cases():
        seeds.setdefault((case.spec_id, *case.parameters.values()), set()).add(case.seed)
    assert all(len(each) == 1 for each in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds) == 5


def test_values_are_put_in_with_their_types():
    case = cases()[0]
    assert case.inputs["x"].range == (-1.0, 1.0)
    assert dict(case.expect.ops) == {"quantized::conv1d": 1}
    assert case.module.items[0].expression.text == "nn.Conv1d(3, 4, 1, bias=True)"
    assert [case.expect.debug_equal for case in cases()[:4]] == [0.0, 0.0, None, None]


def test_a_case_is_immutable_and_travels():
    case = cases()[0]
    assert pickle.loads(pickle.dumps(case)) == case
    assert len({*cases(), *cases()}) == 17
    with pytest.raises(TypeError):
        case.inputs["x"] = None
    with pytest.raises(AttributeError):
        case.seed = 1


def test_select():
    assert {case.mode for case in select(cases(), modes=["dynamic"])} == {"dynamic"}
    assert [case.spec_id for case in select(cases(), captures=["script"])] == ["plain"]
    assert len(select(cases(), modes=["static"], captures=["trace"], text="dim=2")) == 2
    assert select(cases()) == cases()


@pytest.mark.parametrize("backend", ["qlib", "qlib:reference", "onnx-runtime"])
def test_every_case_is_found_by_each_of_its_names(backend):
    for case in cases():
        item = item_name(case, backend)
        for name in (
            case.id,
            case.id.partition("::")[2],
            item,
            f"specs/conv.qspec.yaml::{item}",
            f"conv.qspec.yaml::{item}",
        ):
            assert find_case(cases(), name) == case


def test_item_name():
    assert item_name(cases()[0], "qlib") == "conv[qlib-static-export-dim=1-act=ReLU()-bias=true]"


def test_find_case_takes_a_unique_beginning_and_explains_the_rest():
    assert find_case(cases(), "plain").spec_id == "plain"
    assert find_case(cases(), "conv::pl").spec_id == "plain"
    with pytest.raises(UsageError, match="16 cases fit"):
        find_case(cases(), "conv[")
    with pytest.raises(UsageError, match="Did you mean 'plain"):
        find_case(cases(), "plian[static-script]")
    with pytest.raises(UsageError, match="no case"):
        find_case(cases(), "other.qspec.yaml::plain[qlib-static-script]")


def test_exclude_removes_what_matches_all_its_keys():
    rows, mistakes = combos("{a: [1, 2], b: [x, y], exclude: [{a: 1, b: x}, {b: y, a: 2}]}")
    assert (rows, mistakes) == ([{"a": 1, "b": "y"}, {"a": 2, "b": "x"}], [])


def test_include_extends_what_it_does_not_contradict():
    rows, _ = combos("{a: [1, 2], include: [{a: 1, c: 5}, {a: 3, c: 6}, {d: 7}]}")
    assert rows == [{"a": 1, "c": 5, "d": 7}, {"a": 2, "d": 7}, {"a": 3, "c": 6}]


def test_includes_that_name_no_list_meet_every_combination():
    rows, _ = combos("{a: [1, 2], include: [{b: x, c: 1}, {b: y, c: 2}]}")
    assert rows == [{"a": a, **pair} for a in (1, 2) for pair in ({"b": "x", "c": 1}, {"b": "y", "c": 2})]


def test_include_alone_is_a_list_of_combinations():
    assert combos("{include: [{a: 1}, {a: 2}]}")[0] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("{a: [1], exclude: [{a: true}]}", "no combination matches"), ("{a: [1], exclude: [{a: 1}]}", "found none"),
        ("{a: []}", "list of values"), ("{a: 1}", "list of values"), ("[1]", "mapping"), ("{A: [1]}", "a name of"),
        ("{a: [1, 1]}", "two values"), ("{a: [nn.ReLU(), ReLU()]}", "two values"), ("{a: ['${b}']}", "placeholder"),
        ("{a: [1], include: {a: 2}}", "list of mappings"), ("{}", "found none"),
        ("{" + ", ".join(f"{name}: [1, 2, 3, 4, 5, 6, 7, 8]" for name in "abcde") + "}", "at most 4096"),
    ],
)  # fmt: skip
def test_wrong_matrices(matrix, message):
    rows, mistakes = combos(matrix)
    assert any(message in mistake for mistake in mistakes), (rows, mistakes)


def test_too_many_cases_are_refused():
    numbers = ", ".join(map(str, range(1500)))
    text = TEXT.replace("dim: [1, 2]", f"dim: [1]\n      n: [{numbers}]").replace("both", "${n}")
    with pytest.raises(SpecError, match="at most 4096 cases"):
        cases(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("true", "true"), ("null", "null"), ("1e-3", "0.001"), ("nn.ReLU( inplace = True )", "ReLU(inplace=True)"),
        ("[1, [2, a b]]", "(1,(2,ab))"), ("'a[0]'", "a(0)"), ("{dtype: int8, axis: 0}", "{dtype:int8,axis:0}"),
    ],
)  # fmt: skip
def test_short_texts(value, text):
    assert short_text(tree(value)) == text


@given(st.text(max_size=80))
def test_short_texts_are_short_and_printable(value):
    text = short_text(tree("a: 1").entries[0][0].__class__(Source("a", ""), 0, 0, value, ()))
    assert 1 <= len(text) <= 46
    assert text.isascii()
    assert not set(text) & set("[] \n")


def test_long_values_are_told_apart():
    one, two = (short_text(tree(f"'{'a' * 60}{end}'")) for end in "bc")
    assert one != two
    assert one[:40] == two[:40] == "a" * 40
