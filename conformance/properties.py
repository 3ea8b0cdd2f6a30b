"""What a case shows of a backend's arithmetic, beside its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from conformance.backend import About
from conformance.compare import stored
from conformance.observation import Evidence
from conformance.scheme import Scheme, decidable, identify
from conformance.spec import QConfigModel

# Differences of so many quanta and more are counted together.
FAR = 9


def properties_of(evidence: Evidence) -> dict[str, str]:
    """The properties that a case could tell, by name.

    See `conformance.rounding` for what "rounding" may be, `conformance.scheme` for "activation_scheme".
    """
    rule, scheme = evidence.rule, evidence.scheme
    rounding = {"rounding": rule.name} if rule is not None and rule.tells else {}
    return rounding | ({} if scheme is None else {"activation_scheme": scheme.name})


def scheme_of(evidence: Evidence) -> Scheme | None:
    """How a dynamic linear layer quantizes its input; None for all but one layer with one output and enough rows."""
    inputs, outputs = evidence.inputs_after_float, evidence.outputs
    alone = dict(evidence.float_ops) == {"aten::linear": 1} and len(inputs) == len(outputs) == 1
    if not alone or not outputs[0].is_floating_point() or not decidable(inputs[0]):
        return None
    return identify(inputs[0], outputs[0])


def said_of(about: About, qconfig: QConfigModel | None) -> Mapping[str, str]:
    """What a backend's declaration says of a case: it is made for the mode's own QConfig, and no word on another."""
    return about.properties if qconfig is None else {}


def histogram(evidence: Evidence) -> dict[str, int]:
    """Count the output's integers by how many quanta they lie off; differences of `FAR` and more are one entry.

    They are compared with the exact integers where the backend's roundings are explained, else with the debug form's,
    else with the float model's output. Outputs without a step are left out; NaN counts as far off.
    """
    counts: Counter[int] = Counter()
    for difference in _differences(evidence):
        steps = difference.nan_to_num(FAR, posinf=FAR, neginf=-FAR).round().clamp(-FAR, FAR)
        values, numbers = torch.unique(steps.long(), return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return {str(steps): counts[steps] for steps in sorted(counts)}


def _differences(evidence: Evidence) -> Iterator[Tensor]:
    if evidence.explained is not None and evidence.rule is not None:
        for rounding in evidence.explained.roundings:
            if rounding.zero_point is not None and rounding.given.shape == rounding.real.shape:
                exact = stored(rounding.real.round() + rounding.zero_point, rounding)
                yield rounding.given.double() - exact
        return
    reference = evidence.float_outputs if evidence.debug_outputs is None else evidence.debug_outputs
    for x, y, step in zip(reference, evidence.outputs, evidence.quanta, strict=False):
        if step is not None and x.shape == y.shape:
            yield (y.double() - x.double()) / step
