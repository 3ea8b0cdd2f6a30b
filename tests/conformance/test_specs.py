from __future__ import annotations

import functools
import json
import math
import re
import textwrap
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest

from conformance.backends import open_backend
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand, item_name
from conformance.catalog import catalog
from conformance.engine import run_case
from conformance.load import SpecFile, discover, load, load_text
from conformance.places import bundled_specs
from conformance.source import Factory
from conformance.spec import json_schema
from conformance.vocabulary import Mode
from qlib.ops import OPS, When

# Fetching an item of a list is no step that a graph's operators are counted by.
UNNAMED = {"quantized::getitem"}
README = Path(__file__).parents[2] / "README.md"
MODELINE = "# yaml-language-server: $schema=schema.json"
# Words of a sentence that says what the spec does and not why it is needed.
EMPTY_WHY = re.compile(r"^(tests?|checks?|verif\w+|makes? sure|ensures?)\b", re.IGNORECASE)


@functools.cache
def files() -> tuple[SpecFile, ...]:
    return tuple(load(path, vocabulary()) for path in discover([bundled_specs()]))


@functools.cache
def cases() -> tuple[Case, ...]:
    return tuple(case for file in files() for case in expand(file))


@functools.cache
def specs() -> dict[tuple[str, str], tuple[Case, ...]]:
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases():
        found.setdefault((case.suite, case.spec_id), []).append(case)
    return {name: tuple(group) for name, group in found.items()}


def test_there_are_enough() -> None:
    assert len(specs()) >= 120
    assert len(cases()) >= 600


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.id for case in cases()).items() if count > 1] == []
    items = Counter((case.path, item_name(case, "qlib")) for case in cases())
    assert [name for name, count in items.items() if count > 1] == []


def test_names_can_be_typed() -> None:
    for case in cases():
        assert case.id.isprintable() and " " not in case.id, case.id
        assert len(case.id) <= 200, case.id


def test_a_suite_is_one_file_of_its_name() -> None:
    for file in files():
        assert Path(file.path).name == f"{file.suite}.qspec.yaml"
    assert len({file.suite for file in files()}) == len(files())


def test_every_spec_says_why_it_is_there() -> None:
    whys = {name: group[0].why for name, group in specs().items()}
    assert {name: why for name, why in whys.items() if len(why.split()) < 6 or EMPTY_WHY.match(why)} == {}


def test_every_row_of_the_operator_table_is_demanded_somewhere() -> None:
    demanded = {name for case in cases() for name, count in case.expect.ops.items() if count}
    assert sorted(OPS.keys() - demanded - UNNAMED) == []


def test_every_static_row_that_onnx_can_express_is_given_to_others_somewhere() -> None:
    """As a graph that is written out, or that the library makes of a module."""
    emitters = pytest.importorskip("qlib.onnx", exc_type=ImportError).EMITTERS
    static = {op.name for op in OPS.values() if op.when is When.STATIC and set(op.chain) <= emitters.keys()}
    given = [case for case in cases() if case.mode is Mode.NUMERICS]
    assert sorted(static - {name for case in given for name, count in case.expect.ops.items() if count} - UNNAMED) == []
    assert len(static) > 130


def test_there_are_a_thousand_graphs_to_be_run_as_they_are() -> None:
    given = [case for case in cases() if case.mode is Mode.NUMERICS]
    assert len(given) >= 1000
    scales = {scale for case in given for params in case.qparams.values() if params for scale in params.scale}
    assert {math.frexp(scale)[0] == 0.5 for scale in scales} == {True, False}
    points = {(p.dtype, z) for case in given for p in case.qparams.values() if p for z in p.zero_point}
    assert points >= {("uint8", 0), ("uint8", 1), ("uint8", 255), ("int8", -128), ("int8", 127)}


def test_every_case_asserts_operators_or_their_absence() -> None:
    assert [case.id for case in cases() if not case.expect.ops and not case.expect.absent] == []


def test_every_case_compares_numbers_unless_there_are_none() -> None:
    loose = [case for case in cases() if case.expect.accuracy is None and case.expect.debug_equal is None]
    assert [
        case.id for case in loose if not all(stated.shape and 0 in stated.shape for stated in case.expect.output)
    ] == []
    # What is written out in integers has no float model to be near to: each of its roundings is judged by itself.
    modules = [case for case in cases() if not case.qparams]
    assert len([case for case in modules if case.expect.accuracy is not None]) > 0.9 * len(modules)


def test_every_mode_capture_and_preset_is_used() -> None:
    assert {str(case.mode) for case in cases()} >= set(catalog("modes"))
    assert {str(mode) for mode in Mode} >= {str(case.mode) for case in cases()}
    assert {str(case.capture) for case in cases()} >= {"export", "trace"}
    named = "\n".join(case.yaml for case in cases())
    assert [name for name in catalog("qconfigs") if name != "default" and name not in named] == []


def test_no_bundled_spec_runs_python_of_its_own() -> None:
    assert [case.id for case in cases() if isinstance(case.module, Factory)] == []


def test_seeds_differ_between_specs_and_agree_within_a_variant() -> None:
    seeds: dict[int, set[tuple[object, ...]]] = {}
    for case in cases():
        seeds.setdefault(case.seed, set()).add((case.suite, case.spec_id, *case.parameters.items()))
    assert [variants for variants in seeds.values() if len(variants) > 1] == []


@pytest.mark.parametrize("path", discover([bundled_specs()]), ids=lambda path: path.stem)
def test_every_file_names_its_schema_in_its_first_line(path: Path) -> None:
    assert path.read_text().splitlines()[0] == MODELINE


def test_the_schema_file_is_that_of_the_program() -> None:
    assert json.loads((bundled_specs() / "schema.json").read_text()) == json_schema(), (
        "write it anew: conformance schema > specs/schema.json"
    )


def test_the_readmes_spec_is_valid_and_holds() -> None:
    after = README.read_text().partition(f"    {MODELINE}\n")[2]
    text = textwrap.dedent(
        "".join(takewhile(lambda line: not line.startswith("    $"), after.splitlines(keepends=True)))
    )
    found = expand(load_text(text, "README.qspec.yaml", vocabulary()))
    assert len(found) >= 8
    verdicts = {case.id: str(run_case(case, open_backend("qlib"), "qlib").record.verdict) for case in found}
    assert verdicts == dict.fromkeys(verdicts, "native")


def test_a_few_cases_of_each_file_hold() -> None:
    first = {case.suite: case for case in reversed(cases())}
    verdicts = {case.id: str(run_case(case, open_backend("qlib"), "qlib").record.verdict) for case in first.values()}
    assert verdicts == dict.fromkeys(verdicts, "native")
