"""Known failures: which cases of a backend are expected to fail, how, why, and for how long.

- case: linear::huge_sum            # suite and spec; or a whole case id, with its brackets
  mode: static                      # optional: only these modes, one or a list
  capture: [export, trace]          # optional: only these captures
  where: {bias: true, n: [1, 2]}    # optional: only these values of the spec's matrix
  target: reference                 # optional: only these targets of the backend, as in `--backend qlib:reference`
  verdict: wrong
  stage: judge                      # optional
  reason: the bias is rounded to 16 bits
  link: https://example.org/issues/1        # optional
  versions: {torch: ">=2.13,<2.14"}         # optional: versions that the backend must say of itself
  expires: 2027-01-31               # optional: the last day on which this holds
  since: 2026-01-31                 # optional: the day on which it was written

Everything is compared whole; there are no wildcards.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from conformance.backends import target_of
from conformance.frozenmap import FrozenMap
from conformance.record import Debt, Record, Subject, Verdict
from conformance.spec import Capture, Mode


def _listed(value: object) -> object:
    """One value stands for the list of it."""
    return value if isinstance(value, list | tuple) else (value,)


def _failing(verdict: Verdict) -> Verdict:
    if verdict is Verdict.NATIVE:
        raise ValueError("expected the verdict of a failure, found 'native': remove the entry")
    return verdict


def _date(value: object) -> object:
    # What else pydantic takes for a date, such as a number of seconds, is a slip here.
    if isinstance(value, str) or value is None or type(value) is datetime.date:
        try:
            return datetime.date.fromisoformat(value) if isinstance(value, str) else value
        except ValueError:
            pass
    raise ValueError(f"expected a date such as 2027-01-31, found {value!r}")


def _specifiers(value: Mapping[str, str]) -> FrozenMap[str, str]:
    for name, text in value.items():
        try:
            SpecifierSet(text)
        except InvalidSpecifier:
            raise ValueError(f"expected versions of {name} such as '>=1.20,<1.32', found {text!r}") from None
    return FrozenMap(value)


Day = Annotated[datetime.date, BeforeValidator(_date)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]


class Known(BaseModel):
    """One expected failure, of every case that it names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: Text = Field(description="Suite and spec, as linear::linear_relu, or a whole case id.")
    mode: Annotated[tuple[Mode, ...], BeforeValidator(_listed), Field(min_length=1)] | None = None
    capture: Annotated[tuple[Capture, ...], BeforeValidator(_listed), Field(min_length=1)] | None = None
    where: Annotated[Mapping[str, Texts], AfterValidator(FrozenMap)] = Field(
        default_factory=FrozenMap, description="Matrix value or values by name, as in the spec or in the case's id."
    )
    target: Texts | None = Field(None, description="Of the backend, as in --backend qlib:reference.")
    verdict: Annotated[Verdict, AfterValidator(_failing)]
    stage: Text | None = Field(None, description="The step that fails; left out, any.")
    reason: Text
    link: Text | None = None
    versions: Annotated[Mapping[str, str], AfterValidator(_specifiers)] = Field(
        default_factory=FrozenMap, description="Package to versions such as '>=1.20,<1.32'."
    )
    expires: Day | None = Field(None, description="The last day on which this holds.")
    since: Day | None = Field(None, description="The day on which this was written.")

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_choose(cls, data: Any) -> Any:
        if isinstance(data, dict) and "[" in str(data.get("case", "")):
            doubled = [key for key in ("mode", "capture", "where") if key in data]
            if doubled:
                raise ValueError(f"the case's id says which it is: remove {' and '.join(doubled)}, or the brackets")
        return data

    def names(self, subject: Subject, backend: str) -> bool:
        """Whether this is about the case on this backend."""
        return self.chooses(subject) and (self.target is None or target_of(backend) in self.target)

    def chooses(self, subject: Subject) -> bool:
        """Whether this is about the case, whatever the backend's target."""
        if "[" in self.case:
            return self.case == subject.case
        return (
            self.case == f"{subject.family}::{subject.spec}"
            and (self.mode is None or subject.mode in self.mode)
            and (self.capture is None or subject.capture in self.capture)
            and all(subject.parameters.get(name) in values for name, values in self.where.items())
        )

    def matches(self, record: Record) -> bool:
        """Whether the record is the failure that is expected here: the verdict and, where one is named, the step."""
        named = self.names(record.subject, record.backend)
        return named and record.verdict is self.verdict and self.stage in (None, record.stage)

    def expired(self, today: datetime.date) -> bool:
        """Whether its last day is over."""
        return self.expires is not None and today > self.expires

    def fits(self, versions: Mapping[str, str]) -> bool:
        """Whether it is for these versions, which a backend says of itself; one that it does not say fits nothing."""
        return all(_within(versions.get(name), text) for name, text in self.versions.items())

    @property
    def text(self) -> str:
        """Reason and link for a report."""
        return f"{self.reason} ({self.link})" if self.link else self.reason


def _within(version: str | None, specifiers: str) -> bool:
    try:
        return version is not None and SpecifierSet(specifiers).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def known_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a file of known failures as it is written, single values included."""
    entry = Known.model_json_schema()
    definitions: dict[str, Any] = entry.pop("$defs")
    definitions["Verdict"]["enum"].remove(str(Verdict.NATIVE))
    for definition in definitions.values():
        definition.pop("description", None)
    properties = entry["properties"]
    for name in ("mode", "capture", "target"):
        listed = properties[name]["anyOf"][0]
        listed["minItems"] = listed.pop("minLength")
        properties[name]["anyOf"] = [listed["items"], listed]
    value = {"type": ["string", "number", "boolean", "null"]}
    properties["where"]["additionalProperties"] = {"anyOf": [value, {"type": "array", "minItems": 1}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Known failures of a backend",
        "description": "Which conformance cases are expected to fail, how, why, and for how long.",
        "type": ["array", "null"],
        "items": entry,
        "$defs": definitions,
    }


@dataclass(frozen=True)
class Expected:
    """A backend's known failures on one day: those that hold, those that have expired, and the count of all."""

    holding: tuple[Known, ...]
    expired: tuple[Known, ...]
    debt: Debt


def expected(entries: Sequence[Known], backend: str, versions: Mapping[str, str], today: datetime.date) -> Expected:
    """Sort a backend's entries by whether they hold for its versions and on this day."""
    target = target_of(backend)
    own = [entry for entry in entries if entry.target is None or target in entry.target]
    fitting = [entry for entry in own if entry.fits(versions)]
    expired = tuple(entry for entry in fitting if entry.expired(today))
    dates = [entry.since for entry in own if entry.since is not None]
    debt = Debt(backend, len(own), len(expired), len(own) - len(fitting), min(dates).isoformat() if dates else None)
    return Expected(tuple(entry for entry in fitting if not entry.expired(today)), expired, debt)


def apply(record: Record, known: Expected) -> Record:
    """Mark a record that fails as expected with the reason; one that was expected to fail and passes is marked too.

    A failure whose entry has expired is marked as `lapsed`, and counts as any other. Earlier marks are not heeded.
    """
    record = replace(record, known=None, lapsed=None)
    if entry := _first(known.holding, record):
        return replace(record, known=entry.text)
    if record.verdict is Verdict.NATIVE:
        for each in known.holding:
            if each.names(record.subject, record.backend):
                return replace(record, known=f"expected {each.verdict}: {each.text}")
    if entry := _first(known.expired, record):
        return replace(record, lapsed=f"known until {entry.expires}: {entry.text}")
    return record


def _first(entries: Iterable[Known], record: Record) -> Known | None:
    return next((entry for entry in entries if entry.matches(record)), None)
