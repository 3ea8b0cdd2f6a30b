"""Results without the folders of the machine that they were made on, as they are published."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from conformance.record import Record
from conformance.store import Results

# Up to where packages, Python's own modules, or the suite's links for another interpreter begin.
_FOLDERS = re.compile(
    r"(?:/[^\s/\\\"':,()]+)*/(?:site-packages/|lib/python3\.\d+/|conformance-\w+/(?=conformance/|qlib/))"
)


def placeless(results: Results, root: Path) -> Results:
    """Results whose texts, such as tracebacks and the command, name files from `root` or from their package on."""
    records = tuple(Record.from_json(json.loads(_short(json.dumps(each.to_json()), root))) for each in results.records)
    return replace(results, run=replace(results.run, command=_short(results.run.command, root)), records=records)


def _short(text: str, root: Path) -> str:
    return _FOLDERS.sub("", text).replace(f"{root}/", "")
