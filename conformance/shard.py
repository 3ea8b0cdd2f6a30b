"""A share of a run: which of its cases one of several machines runs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from conformance.errors import UsageError

_TEXT = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


@dataclass(frozen=True)
class Shard:
    """The share `index` of `count`, counted from 1."""

    index: int
    count: int

    def holds(self, case: str) -> bool:
        """Whether the case of this id belongs to the share: by a hash of the id, so everywhere and always the same."""
        number = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big")
        return number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read a share such as `2/3`; raises UsageError for what is none."""
    found = _TEXT.fullmatch(text)
    if found and 1 <= int(found[1]) <= int(found[2]):
        return Shard(int(found[1]), int(found[2]))
    raise UsageError(f"expected a shard as i/n with i from 1 to n, such as 2/3, found {text!r}")
