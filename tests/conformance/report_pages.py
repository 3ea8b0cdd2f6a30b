"""What the tests of the reports share: a hostile record, and reading a page's data back."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from synthetic_records import make_record, make_subject

from conformance.record import Finding, Outcome, Record, Run, Verdict
from conformance.report import FORMATS

HOSTILE = "</script><img src=x onerror=alert(1)> \"'`|` @everyone \x1b[31m\x00 & ]]> <!-- ${{7*7}}"


def hostile_record(text: str = HOSTILE) -> Record:
    subject = replace(make_subject(0), case=text, why=text, yaml=text, parameters={text: text}, path=text)
    finding = Finding(text, Outcome.FAILED, text, text)
    return replace(
        make_record(subject, verdict=Verdict.WRONG), findings=(finding,), error=text, executed_ops={text: 1}, stage=text
    )


def index_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', page, re.S)
    assert found is not None
    index: dict[str, Any] = json.loads(found[1])
    return index


def details_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="text/plain" id="details">(.*?)</script>', page, re.S)
    assert found is not None
    details: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(found[1])))
    return details


def told(name: str, run: Run, records: Sequence[Record]) -> str:
    """What a reader of one format can get to see, on one line: of a page its packed details too."""
    text = import_module(FORMATS[name][0]).render(run, records)
    packed = json.dumps(details_of(text), ensure_ascii=False) if name == "html" else ""
    return " ".join(f"{text} {packed}".split())
