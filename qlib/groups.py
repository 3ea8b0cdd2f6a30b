"""Union-find: things that share something, whatever the order in which that is said."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Groups(Generic[T]):
    """Disjoint groups; each is known by the member that leads it, and what was never joined leads itself."""

    def __init__(self, parent: Mapping[T, T] | None = None) -> None:
        self._parent: dict[T, T] = dict(parent or {})

    def copy(self) -> Groups[T]:
        """The same groups, to be changed on their own."""
        return Groups(self._parent)

    def find(self, member: T) -> T:
        """The leader of the group of `member`."""
        while (parent := self._parent.get(member, member)) != member:
            self._parent[member] = self._parent.get(parent, parent)
            member = parent
        return member

    def union(self, leader: T, member: T) -> None:
        """Put both into one group, led by the first one's leader."""
        self._parent[self.find(member)] = self.find(leader)
