from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from conformance.backend import Explanation
from conformance.checks import CHECKS, correctness, judge, verdict
from conformance.compare import Rounding, sqnr_db
from conformance.observation import Evidence
from conformance.record import Finding, Layer, Outcome, Verdict
from conformance.rounding import RULES, Rule
from conformance.scheme import Scheme
from conformance.spec import Accuracy, LayerBounds, ModeExpect, Output

STEP = 0.25
FLOATS = torch.tensor([0.30, -0.55, 1.02])
RIGHT = torch.round(FLOATS / STEP) * STEP
REAL = (FLOATS / STEP).double()


def explanation(stored: torch.Tensor) -> Explanation:
    return Explanation((Rounding("q", "linear", REAL, stored, REAL.abs(), 0, -128, 127),), ((stored * STEP).double(),))


def layer(sqnr: float) -> Layer:
    return Layer(
        "q",
        "relu",
        "quantized::linear_relu",
        "fc",
        "",
        "relu",
        (),
        -0.55,
        1.02,
        STEP,
        0,
        -128,
        127,
        0,
        sqnr,
        sqnr,
        3,
        0,
        0,
        0,
    )


def evidence() -> Evidence:
    good = explanation(torch.round(REAL))
    return Evidence(
        float_outputs=(FLOATS,),
        outputs=(RIGHT,),
        repeated=(RIGHT.clone(),),
        debug_outputs=(RIGHT.clone(),),
        quanta=(STEP,),
        float_ops={"aten::linear": 1, "aten::relu": 1},
        ops={"quantized::linear_relu": 1},
        sequence=("quantized::linear_relu",),
        explained=good,
        debug_explained=good,
        inputs_after_float=(FLOATS,),
        inputs_after=(FLOATS.clone(),),
        layers=(layer(48.0), layer(20.0)),
        rule=Rule(("half_even",), 3),
        declared={"rounding": "half_even"},
    )


EXPECT = ModeExpect(
    ops={"quantized::linear_relu": 1},
    absent=("aten::linear", "aten::relu"),
    order=("quantized::linear_relu",),
    accuracy=Accuracy(sqnr_db=10.0),
    output=(Output(dtype="float32", shape=(3,)),),
    layers=LayerBounds(sqnr_db=20.0),
)


def outcomes(found: tuple[Finding, ...]) -> dict[str, Outcome]:
    return {finding.check: finding.outcome for finding in found}


def test_honest_evidence_is_native_and_every_check_was_made() -> None:
    findings = judge(evidence(), EXPECT)
    assert outcomes(findings) == dict.fromkeys(CHECKS, Outcome.HELD)
    assert verdict(findings) is Verdict.NATIVE


LIES = {
    "structure": (replace(evidence(), outputs=(RIGHT[:2],)), Verdict.WRONG),
    "repeatable": (replace(evidence(), repeated=(RIGHT + STEP,)), Verdict.WRONG),
    "inputs": (replace(evidence(), inputs_after=(FLOATS + 1,)), Verdict.WRONG),
    "really_ran": (
        replace(evidence(), outputs=(FLOATS,), repeated=(FLOATS,), debug_outputs=None, explained=None, quanta=(None,)),
        Verdict.FALLBACK,
    ),
    "ops": (replace(evidence(), ops={"quantized::linear": 1, "quantized::relu": 1}), Verdict.FALLBACK),
    "absent": (replace(evidence(), ops={"quantized::linear_relu": 1, "aten::relu": 1}), Verdict.FALLBACK),
    "order": (replace(evidence(), sequence=("quantized::linear",)), Verdict.FALLBACK),
    "debug_equal": (replace(evidence(), explained=explanation(torch.round(REAL) + 1), rule=None), Verdict.WRONG),
    "rounding": (replace(evidence(), rule=Rule((), 3)), Verdict.WRONG),
    "accuracy": (
        replace(evidence(), outputs=(RIGHT * 0,), repeated=(RIGHT * 0,), explained=None, debug_outputs=None),
        Verdict.WRONG,
    ),
    "output": (
        replace(evidence(), float_outputs=(FLOATS.double(),), outputs=(RIGHT.double(),), repeated=(RIGHT.double(),)),
        Verdict.WRONG,
    ),
    "layers": (replace(evidence(), layers=(layer(48.0), layer(19.9), layer(30.0))), Verdict.WRONG),
    "declared": (replace(evidence(), declared={"rounding": "half_away"}), Verdict.FALLBACK),
}


def test_there_is_a_lie_for_every_check() -> None:
    assert set(LIES) == set(CHECKS)


@pytest.mark.parametrize("check", LIES)
def test_every_check_catches_its_lie(check: str) -> None:
    lie, expected = LIES[check]
    findings = judge(lie, EXPECT)
    assert outcomes(findings)[check] is Outcome.FAILED
    assert verdict(findings) is expected


@pytest.mark.parametrize("outputs", [(), (RIGHT, RIGHT), (RIGHT.double(),), (RIGHT.int(),), (RIGHT[None],)])
def test_outputs_of_another_number_shape_or_type_are_wrong_and_not_compared(outputs: tuple[torch.Tensor, ...]) -> None:
    found = judge(replace(evidence(), outputs=outputs, repeated=outputs), EXPECT)
    assert outcomes(found) == {"structure": Outcome.FAILED}
    assert found[0].expected == "outputs float32[3]"


def test_a_step_is_told_of_every_output_or_none() -> None:
    (found,) = judge(replace(evidence(), quanta=(STEP, STEP)), EXPECT)
    assert (found.check, found.expected, found.got) == ("structure", "steps of 1 outputs", "steps of 2")


def test_an_output_that_its_own_integers_do_not_explain_is_wrong() -> None:
    shifted = (RIGHT + STEP,)
    found = judge(replace(evidence(), outputs=shifted, repeated=shifted), replace(EXPECT, accuracy=None))
    assert outcomes(found)["debug_equal"] is Outcome.FAILED


def test_integers_that_a_rule_explains_need_not_be_this_suites_own() -> None:
    shifted = explanation(torch.round(REAL) + 1)
    outputs = (RIGHT + STEP,)
    found = replace(evidence(), explained=shifted, outputs=outputs, repeated=outputs)
    assert outcomes(judge(found, EXPECT))["debug_equal"] is Outcome.HELD
    assert outcomes(judge(replace(found, rule=Rule((), 3)), EXPECT))["debug_equal"] is Outcome.FAILED


def test_without_ties_there_is_no_rule_to_demand() -> None:
    assert "rounding" not in outcomes(judge(replace(evidence(), rule=Rule(("half_even", "half_up"), 0)), EXPECT))


# What 8 bits of this step hold exactly, and what they can't: 280 steps, and between them.
ON_GRID, TOO_FAR = torch.tensor([0.25, -0.5, 1.0]), torch.tensor([0.25, 70.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "held"),
        ({"native_ops": {}}, "failed"),
        ({"float_outputs": (FLOATS,)}, "failed"),
        ({"float_outputs": (TOO_FAR,)}, "failed"),
        ({"quanta": (None,)}, "failed"),
        ({"quanta": (None,), "reference_sqnr_db": 40.0}, "failed"),
        ({"quanta": (None,), "reference_sqnr_db": math.inf}, "held"),
        ({"quanta": (None,), "reference_sqnr_db": math.inf, "native_ops": {}}, "failed"),
        ({"quanta": (None,), "reference_sqnr_db": math.inf, "reference_ops": {"aten::linear": 1}}, "failed"),
    ],
)
def test_floats_that_8_bits_hold_exactly_accuse_nobody_who_names_what_ran(
    changes: dict[str, object], outcome: str
) -> None:
    bare = replace(
        evidence(),
        float_outputs=(ON_GRID,),
        native_ops={"QGemm": 1},
        reference_ops={"quantized::linear_relu": 1},
        debug_outputs=None,
        explained=None,
    )
    found = replace(bare, **changes)
    same = replace(found, outputs=found.float_outputs, repeated=found.float_outputs)
    assert outcomes(judge(same, EXPECT))["really_ran"] is Outcome(outcome)


def test_substrings_of_operator_names_satisfy_nothing() -> None:
    found = judge(evidence(), ModeExpect(ops={"quantized::linear": 1}))
    assert outcomes(found)["ops"] is Outcome.FAILED


def test_an_operator_more_than_expected_fails() -> None:
    found = judge(replace(evidence(), ops={"quantized::linear_relu": 2}), ModeExpect(ops={"quantized::linear_relu": 1}))
    assert outcomes(found)["ops"] is Outcome.FAILED


def test_absent_must_have_been_in_the_float_graph() -> None:
    found = judge(evidence(), ModeExpect(absent=("aten::tanh",)))
    assert outcomes(found)["absent"] is Outcome.VACUOUS
    assert verdict(found) is Verdict.VACUOUS


def test_nothing_stated_is_vacuous() -> None:
    bare = replace(evidence(), debug_outputs=None, explained=None, debug_explained=None)
    assert verdict(judge(bare, ModeExpect(debug_equal=None))) is Verdict.VACUOUS


def test_a_bound_that_zeros_would_meet_is_vacuous() -> None:
    found = judge(evidence(), ModeExpect(accuracy=Accuracy(max_abs=5.0)))
    assert outcomes(found)["accuracy"] is Outcome.VACUOUS


def test_accuracy_of_empty_outputs_is_vacuous() -> None:
    nothing = torch.zeros(0, 3)
    empty = replace(evidence(), float_outputs=(nothing,), outputs=(nothing,), repeated=(nothing,))
    found = judge(empty, ModeExpect(accuracy=Accuracy(sqnr_db=10.0), debug_equal=None))
    assert outcomes(found)["accuracy"] is Outcome.VACUOUS


@pytest.mark.parametrize("quanta", [(STEP,), (None,)])
def test_infinities_at_the_same_places_are_equal(quanta: tuple[float | None, ...]) -> None:
    right = RIGHT.clone()
    right[1] = math.inf
    explained = replace(explanation(torch.round(REAL)), outputs=(right.double(),))
    held = replace(evidence(), outputs=(right,), debug_outputs=(right,), quanta=quanta)
    held = replace(held, explained=explained, debug_explained=explained)
    assert outcomes(judge(held, EXPECT))["debug_equal"] is Outcome.HELD
    for other in (-math.inf, math.nan, 0.5):
        wrong = right.clone()
        wrong[1] = other
        found = judge(replace(held, outputs=(wrong,)), EXPECT)
        assert outcomes(found)["debug_equal"] is Outcome.FAILED
    off = right.clone()
    off[0] += 2 * STEP
    assert outcomes(judge(replace(held, outputs=(off,)), EXPECT))["debug_equal"] is Outcome.FAILED


def test_nan_fails_the_accuracy() -> None:
    broken = (RIGHT * float("nan"),)
    found = judge(replace(evidence(), outputs=broken, repeated=broken), EXPECT)
    assert outcomes(found)["accuracy"] is Outcome.FAILED


def test_wrong_operators_without_a_value_check_are_wrong() -> None:
    bare = replace(evidence(), ops={"aten::linear": 1}, debug_outputs=None)
    assert verdict(judge(bare, ModeExpect(ops={"quantized::linear": 1}))) is Verdict.WRONG


@pytest.mark.parametrize("stated", [{}, {"output": (Output(shape=(0, 3)),)}, {"accuracy": Accuracy(sqnr_db=10.0)}])
def test_other_operators_on_an_empty_batch_are_a_fallback(stated: dict[str, object]) -> None:
    nothing = torch.zeros(0, 3)
    empty = replace(evidence(), ops={"aten::linear": 1}, debug_outputs=None, explained=None)
    empty = replace(empty, float_outputs=(nothing,), outputs=(nothing,), repeated=(nothing,))
    expect = ModeExpect(ops={"quantized::linear": 1}, **stated)
    assert verdict(judge(empty, expect), correctness(empty)) is Verdict.FALLBACK
    misshapen = replace(empty, outputs=(nothing.T,), repeated=(nothing.T,))
    assert verdict(judge(misshapen, expect), correctness(misshapen)) is Verdict.WRONG


LAYERS = ModeExpect(debug_equal=None, layers=LayerBounds(sqnr_db=20.0))


def test_a_layer_that_is_not_a_number_fails() -> None:
    found = judge(replace(evidence(), layers=(layer(48.0), layer(math.nan))), LAYERS)
    assert outcomes(found)["layers"] is Outcome.FAILED


def test_without_a_final_form_of_a_layer_the_debug_form_is_judged() -> None:
    only_debug = replace(layer(19.9), sqnr_final_db=None)
    assert outcomes(judge(replace(evidence(), layers=(only_debug,)), LAYERS))["layers"] is Outcome.FAILED
    good = replace(layer(19.9), sqnr_final_db=20.0)
    assert outcomes(judge(replace(evidence(), layers=(good,)), LAYERS))["layers"] is Outcome.HELD


@pytest.mark.parametrize("layers", [(), (replace(layer(math.inf), low=0.0, high=0.0),)])
def test_layers_that_hold_nothing_are_vacuous(layers: tuple[Layer, ...]) -> None:
    assert outcomes(judge(replace(evidence(), layers=layers), LAYERS))["layers"] is Outcome.VACUOUS


def test_a_backend_that_cannot_tell_layers_is_not_judged_by_them() -> None:
    found = judge(replace(evidence(), layers=None), LAYERS)
    assert "layers" not in outcomes(found)
    assert verdict(found) is Verdict.VACUOUS


def rule_of(shown: str) -> Rule:
    return Rule(tuple(name for name in RULES if name in shown.split(" or ")), 3)


@pytest.mark.parametrize("shown", ["half_up", "half_up or half_away"])
def test_a_property_shown_otherwise_than_declared_fails_and_says_both(shown: str) -> None:
    found = judge(replace(evidence(), rule=rule_of(shown)), EXPECT)
    finding = next(finding for finding in found if finding.check == "declared")
    assert finding.outcome is Outcome.FAILED
    assert (finding.expected, finding.got) == ("rounding half_even as declared", f"rounding {shown}")


def test_what_is_undecided_contradicts_no_declaration() -> None:
    found = judge(replace(evidence(), rule=Rule(tuple(RULES), 1)), EXPECT)
    assert outcomes(found)["declared"] is Outcome.HELD


def test_only_what_is_both_shown_and_declared_is_compared() -> None:
    for other in (replace(evidence(), rule=None), replace(evidence(), declared={"activation_scheme": "none"})):
        assert "declared" not in outcomes(judge(other, EXPECT))


def test_the_activation_scheme_is_compared_likewise() -> None:
    dynamic = replace(evidence(), rule=None, scheme=Scheme(("none",)), declared={"activation_scheme": "none"})
    assert outcomes(judge(dynamic, EXPECT))["declared"] is Outcome.HELD
    lying = replace(dynamic, declared={"activation_scheme": "per_row_symmetric"})
    assert outcomes(judge(lying, EXPECT))["declared"] is Outcome.FAILED


def test_a_declaration_that_holds_shows_nothing_by_itself() -> None:
    assert verdict(judge(evidence(), ModeExpect(debug_equal=None))) is Verdict.VACUOUS


def beside(reference: float | None, **bounds: float) -> Finding:
    expect = ModeExpect(accuracy=Accuracy(below_reference_db=1.0, **bounds), debug_equal=None)
    found = judge(replace(evidence(), reference_sqnr_db=reference), expect)
    return next(finding for finding in found if finding.check == "accuracy")


OWN = sqnr_db([FLOATS], [RIGHT])


@pytest.mark.parametrize(("better", "outcome"), [(-5, "held"), (0, "held"), (0.5, "held"), (2, "failed")])
def test_so_many_decibels_below_the_reference_are_allowed(better: float, outcome: str) -> None:
    finding = beside(OWN + better)
    assert finding.outcome is Outcome(outcome)
    assert f"at most 1 dB below the reference, which has {OWN + better:.4g}" in finding.expected


@pytest.mark.parametrize(("floor", "outcome"), [(OWN - 1, "held"), (OWN + 1, "failed")])
def test_a_floor_of_the_spec_counts_beside_the_reference(floor: float, outcome: str) -> None:
    assert beside(OWN - 9, sqnr_db=floor).outcome is Outcome(outcome)
    assert beside(OWN + 9, sqnr_db=floor).outcome is Outcome.FAILED
    assert beside(None, sqnr_db=floor).outcome is Outcome(outcome)


def test_without_a_reference_the_comparison_alone_is_vacuous() -> None:
    assert beside(None).outcome is Outcome.VACUOUS


def test_a_reference_that_zeros_would_match_is_vacuous() -> None:
    assert beside(0.5).outcome is Outcome.VACUOUS


def test_beside_an_exact_reference_an_error_of_float32_is_none() -> None:
    assert beside(math.inf).outcome is Outcome.FAILED
    for outputs in ((FLOATS,), (FLOATS * (1 + 2.0**-22),)):
        near = replace(evidence(), outputs=outputs, reference_sqnr_db=math.inf)
        found = judge(near, ModeExpect(accuracy=Accuracy(below_reference_db=1.0)))
        assert outcomes(found)["accuracy"] is Outcome.HELD


@pytest.mark.parametrize(
    ("difference", "step", "held"),
    [
        (0.0, STEP, True),
        (STEP, STEP, False),
        (1e-6, None, True),  # as two orders of adding up part
        (1e-3, None, False),  # as a step of 8 bits in one term does
        (math.nan, None, False),
    ],
)
def test_forms_that_nothing_explains_differ_by_no_more_than_sums(
    difference: float, step: float | None, held: bool
) -> None:
    bare = replace(
        evidence(), explained=None, debug_explained=None, quanta=(step,), debug_outputs=(RIGHT + difference,)
    )
    finding = CHECKS["debug_equal"].run(bare, ModeExpect(debug_equal=0.0))
    assert finding is not None and (finding.outcome is Outcome.HELD) is held
    assert ("results in float" in finding.got) is (step is None) and ("quanta" in finding.got) is (step is not None)
