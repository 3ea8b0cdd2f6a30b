"""What is said of a property that was told from numbers: the answer, the few that fit, or that the data can't tell."""

from __future__ import annotations

from collections.abc import Collection, Sequence

UNDECIDED = "undecided"
NONE_OF_THEM = "none of them"
_OR = " or "


def named(fitting: Sequence[str], known: Collection[str]) -> str:
    """The answers that fit, out of all that are `known`; "undecided" where all do, "none of them" where none does."""
    if len(fitting) == len(known):
        return UNDECIDED
    return _OR.join(fitting) or NONE_OF_THEM


def answers(shown: str) -> tuple[str, ...]:
    """The answers that `named` has put together."""
    return tuple(shown.split(_OR))


def contradicts(shown: str, said: str) -> bool:
    """Whether what was told, as `named` puts it, excludes what a backend says of itself."""
    return shown != UNDECIDED and said not in answers(shown)
