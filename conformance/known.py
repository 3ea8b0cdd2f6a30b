"""Known failures: one YAML file per backend says which cases are expected to fail, how, and why.

- case: linear::huge_*          # a case id, or a pattern with * and ?
  verdict: wrong
  stage: judge                  # optional
  reason: the bias is rounded to 16 bits
  link: https://example.org/issues/1      # optional
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from conformance.errors import Mistake, SpecError
from conformance.places import bundled_specs
from conformance.record import Record, Verdict


class Known(BaseModel):
    """One expected failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str = Field(min_length=1)
    verdict: Verdict
    stage: str | None = None
    reason: str = Field(min_length=1)
    link: str | None = None

    def matches(self, record: Record) -> bool:
        """Whether the record is the failure that is expected here: the verdict and, where one is named, the step."""
        return self.names(record) and record.verdict is self.verdict and self.stage in (None, record.stage)

    def names(self, record: Record) -> bool:
        """Whether the record's case is one that this is about."""
        # Brackets stand in every case id, so they are not special here.
        return fnmatchcase(record.subject.case, self.case.replace("[", "[[]"))

    @property
    def text(self) -> str:
        """Reason and link for a report."""
        return f"{self.reason} ({self.link})" if self.link else self.reason


def load_known(path: Path) -> tuple[Known, ...]:
    """Read a file of known failures; a missing file is an empty one. Raises SpecError for what does not fit."""
    if not path.exists():
        return ()
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return tuple(TypeAdapter(list[Known]).validate_python(yaml.safe_load(text) or []))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SpecError([Mistake(str(path), line, column, f"not valid YAML: {error.problem}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError([Mistake(str(path), 1, 1, f"not valid YAML: {error}")]) from error
    except ValidationError as error:
        root = yaml.compose(text, yaml.SafeLoader)
        raise SpecError([_mistake(str(path), root, found["loc"], found["msg"]) for found in error.errors()]) from error


def _mistake(path: str, root: yaml.Node | None, place: tuple[int | str, ...], said: str) -> Mistake:
    """What pydantic said of an entry, at the key or the entry that it is about."""
    node = root
    if isinstance(root, yaml.SequenceNode) and place:
        node = root.value[int(place[0])]
    if isinstance(node, yaml.MappingNode):
        node = next((key for key, _ in node.value if key.value in place[1:]), node)
    line, column = (node.start_mark.line + 1, node.start_mark.column + 1) if node is not None else (1, 1)
    what = f"{'.'.join(map(str, place))}: {said}"
    return Mistake(path, line, column, f"expected a list of known failures; {what}")


def known_for(backend: str) -> tuple[Known, ...]:
    """The known failures of a backend, from the suite's own specs."""
    stem = backend.partition(":")[0]
    return load_known(bundled_specs() / "expected" / f"{stem}.yaml")


def apply(record: Record, known: Sequence[Known]) -> Record:
    """Mark a record that fails as expected with the reason; one that was expected to fail and passes is marked too."""
    for entry in known:
        if entry.matches(record):
            return replace(record, known=entry.text)
        if entry.names(record) and record.verdict is Verdict.NATIVE:
            return replace(record, known=f"expected {entry.verdict}: {entry.text}")
    return record
