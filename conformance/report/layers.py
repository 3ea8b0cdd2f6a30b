"""What a model's layers say: where its forms part, and where the error against float comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from conformance.record import Layer


@dataclass(frozen=True)
class Story:
    """The two layers to look at, by their places: the first where debug and final part, and that of the largest drop.

    A drop is the SQNR of what a layer was computed from less its own: of several the lowest, so that a sum of a good
    and a bad tensor is not to blame for the bad one. None where there is no such layer.
    """

    parted: int | None
    dropped: int | None
    words: tuple[str, ...]


def story(layers: Sequence[Layer]) -> Story:
    """Find both layers, and say in words what is there."""
    parted = next((place for place, layer in enumerate(layers) if layer.differing), None)
    drops = _drops(layers)
    dropped = max(range(len(layers)), key=drops.__getitem__, default=None)
    if dropped is not None and drops[dropped] <= 0.0:
        dropped = None
    return Story(parted, dropped, (_parting(layers, parted), _drop(layers, dropped)))


def _drops(layers: Sequence[Layer]) -> list[float]:
    """How many dB each layer lies below what it was computed from; 0 where that is the input of the model."""
    by_name = {layer.name: layer for layer in layers}
    drops = []
    for layer in layers:
        before = _before(layer, by_name)
        own = -math.inf if math.isnan(layer.sqnr_db) else layer.sqnr_db
        drops.append(before - own if math.isfinite(before) else 0.0)
    return drops


def _before(layer: Layer, by_name: dict[str, Layer]) -> float:
    return min((by_name[name].sqnr_db for name in layer.made_of if name in by_name), default=math.inf)


def _parting(layers: Sequence[Layer], place: int | None) -> str:
    if place is None:
        compared = sum(layer.differing is not None for layer in layers)
        return f"Debug and final form agree at all {compared} layers that both have."
    layer = layers[place]
    kind = "numbers" if layer.scale is None else "integers"
    text = f"Debug and final form part first at {title(layer)}: {layer.differing} of {layer.elements} {kind} differ"
    if layer.tie is None:
        return f"{text}."
    return f"{text}; of the roundings of both there {layer.tie} are ties and {layer.wrong} wrong."


def _drop(layers: Sequence[Layer], place: int | None) -> str:
    if place is None:
        return "No layer is further from float than what it was computed from."
    layer = layers[place]
    before = _before(layer, {other.name: other for other in layers})
    drop = f"{before - layer.sqnr_db:.1f}"
    return f"The largest drop of SQNR is {drop} dB at {title(layer)}: from {before:.1f} dB to {layer.sqnr_db:.1f} dB."


def title(layer: Layer) -> str:
    """A layer in a sentence: its tensor, and what made it where."""
    place = where(layer)
    return f"{layer.tensor} ({layer.operator}, {place})" if place else f"{layer.tensor} ({layer.operator})"


def where(layer: Layer) -> str:
    """The module of a layer, else the line of its source; the text of a spec has no file to name."""
    return layer.module or re.sub(r"^<.*>:", "line ", layer.source)


def decibels(value: float | None) -> str:
    """An SQNR in a table's cell."""
    if value is None:
        return ""
    return "exact" if value == math.inf else f"{value:.1f}"


def step(layer: Layer) -> str:
    """Scale and zero point in a table's cell."""
    if layer.qmin is None:
        return "float"
    return "by row" if layer.scale is None else f"{layer.scale:.4g}, {layer.zero_point}"


def number(value: int | None) -> str:
    """A count in a table's cell."""
    return "" if value is None else str(value)
