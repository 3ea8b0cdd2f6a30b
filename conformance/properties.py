"""What a case shows of a backend's arithmetic, beside its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from conformance.observation import Evidence

# Differences of so many quanta and more are counted together.
FAR = 9


def properties_of(evidence: Evidence) -> dict[str, str]:
    """The properties that a case could tell, by name; see `conformance.rounding` for what "rounding" may be."""
    rule = evidence.rule
    return {"rounding": rule.name} if rule is not None and (rule.ties or not rule.names) else {}


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
                exact = (rounding.real.round() + rounding.zero_point).clamp(rounding.qmin, rounding.qmax)
                yield rounding.given.double() - exact
        return
    reference = evidence.float_outputs if evidence.debug_outputs is None else evidence.debug_outputs
    for x, y, step in zip(reference, evidence.outputs, evidence.quanta, strict=False):
        if step is not None and x.shape == y.shape:
            yield (y.double() - x.double()) / step
