"""What one backend's records show of it: which operators by mode, types and granularity, and how it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from conformance.identified import contradicts
from conformance.record import Declared, Record, Verdict

QUANTIZED: Final = "quantized::"
# They stand at the borders of every quantized graph, and say nothing of a case.
BORDERS: Final = frozenset({"quantize_per_tensor", "dequantize_per_tensor", "quantize_per_channel", "dequantize"})
DYNAMIC: Final = "_dynamic"
SEVERAL: Final = "several operators"


class Column(NamedTuple):
    """One way to quantize; the last two are empty in results of older versions."""

    mode: str
    dtype: str
    granularity: str

    def __str__(self) -> str:
        return " · ".join(filter(None, self))


# Operators with the ways of quantizing that they are expected in.
Asked = frozenset[tuple[str, Column]]


class Cell(NamedTuple):
    """How many records are native, of those that are scored; `unsupported` of these the backend declares it lacks."""

    native: int
    scored: int
    unsupported: int


@dataclass(frozen=True)
class Coverage:
    """The operators that are asked for, by how they are quantized; a row has a cell for each column, None: no case."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]

    def never_asked(self) -> list[str]:
        """The empty cells in words, one line for each column that has any."""
        return self._listed(lambda cell: cell is None)

    def never_native(self) -> list[str]:
        """The cells that have cases none of which is native, one line for each column that has any."""
        return self._listed(lambda cell: cell is not None and cell.native == 0)

    def _listed(self, wanted: Callable[[Cell | None], bool]) -> list[str]:
        lines = []
        for place, column in enumerate(self.columns):
            names = [name for name, cells in self.rows if wanted(cells[place])]
            lines += [f"{column}: {', '.join(names)}"] if names else []
        return lines


@dataclass(frozen=True)
class Capability:
    """Something a backend declares, or does not, beside what its records show; counts as in `Cell`."""

    kind: str
    name: str
    declared: bool
    native: int
    scored: int

    @property
    def verdict(self) -> str:
        """Whether declared and shown agree, in words."""
        if not self.scored:
            return "no case"
        if self.declared:
            return "as declared" if self.native else "declared, and never native"
        return "native though not declared" if self.native else "as declared"


@dataclass(frozen=True)
class Lack:
    """An operator or feature that a backend declares it lacks: records refused for it, and records that it ran in."""

    name: str
    refused: int
    ran: int


@dataclass(frozen=True)
class Property:
    """How a backend computes one operator, such as its rounding: the values seen, each with its number of records."""

    name: str
    operator: str
    declared: str
    seen: Mapping[str, int]

    @property
    def contradicted(self) -> bool:
        """Whether something that was seen excludes what the backend says of itself."""
        return bool(self.declared) and any(contradicts(value, self.declared) for value in self.seen)


def short(name: str) -> str:
    """An operator's name without its namespace and its mode, which a column says."""
    return name.removeprefix(QUANTIZED).removesuffix(DYNAMIC)


def operators(names: Mapping[str, int]) -> list[str]:
    """The quantized operators among `names` in short form, but for those at the borders."""
    found = (short(name) for name, count in names.items() if count and name.startswith(QUANTIZED))
    return sorted({name for name in found if name not in BORDERS})


def asked(records: Iterable[Record]) -> Asked:
    """The operators that any backend's records expect, each with the ways of quantizing that it is expected in."""
    return frozenset((name, _column(record)) for record in records for name in operators(record.expected_ops))


def coverage(own: Sequence[Record], asked: Asked) -> Coverage:
    """Count the records of one backend by expected operator and way of quantizing.

    Rows and columns are those of all that is `asked`, of whatever backend, so that the tables of a report are alike. A
    record that expects several operators counts for each.
    """
    counted: dict[tuple[str, Column], list[Record]] = {}
    for record in own:
        if record.verdict is not Verdict.ERROR:
            for name in operators(record.expected_ops):
                counted.setdefault((name, _column(record)), []).append(record)
    columns = tuple(sorted({column for _, column in asked}))
    rows = tuple(
        (name, tuple(_cell(counted.get((name, column), ())) for column in columns))
        for name in sorted({name for name, _ in asked})
    )
    return Coverage(columns, rows)


def _column(record: Record) -> Column:
    subject = record.subject
    return Column(subject.mode, subject.dtype, subject.granularity)


def _cell(records: Sequence[Record]) -> Cell | None:
    if not records:
        return None
    verdicts = [record.verdict for record in records]
    return Cell(verdicts.count(Verdict.NATIVE), len(records), verdicts.count(Verdict.UNSUPPORTED))


def capabilities(said: Declared, records: Sequence[Record]) -> list[Capability]:
    """Modes and captures of one backend's `records`, and those that it declares without any case."""
    kinds = (("mode", said.modes), ("capture", said.captures))
    found = []
    for kind, declared in kinds:
        cells: dict[str, list[Record]] = {name: [] for name in declared}
        for record in records:
            if record.verdict is not Verdict.ERROR:
                cells.setdefault(getattr(record.subject, kind), []).append(record)
        for name in sorted(cells):
            native = sum(record.verdict is Verdict.NATIVE for record in cells[name])
            found.append(Capability(kind, name, name in declared, native, len(cells[name])))
    return found


def lacks(said: Declared, records: Sequence[Record]) -> list[Lack]:
    """What a backend declares that it lacks, beside what its `records` show of that."""
    refusals = [record for record in records if record.verdict is Verdict.UNSUPPORTED]
    return [
        Lack(
            name,
            sum(name in record.expected_ops or name in (record.error or "") for record in refusals),
            sum(name in record.executed_ops for record in records),
        )
        for name in said.lacks
    ]


def properties(said: Declared, records: Sequence[Record]) -> list[Property]:
    """How a backend computes, by property and executed operator; cases of several operators stand together."""
    seen: dict[tuple[str, str], dict[str, int]] = {}
    for record in records:
        executed = operators(record.executed_ops)
        operator = executed[0] if len(executed) == 1 else SEVERAL if executed else "none"
        for name, value in record.properties.items():
            counts = seen.setdefault((name, operator), {})
            counts[value] = counts.get(value, 0) + 1
    unseen = {(name, "none") for name in said.properties if not any(name == other for other, _ in seen)}
    return [
        Property(name, operator, said.properties.get(name, ""), dict(sorted(seen.get((name, operator), {}).items())))
        for name, operator in sorted({*seen, *unseen})
    ]
