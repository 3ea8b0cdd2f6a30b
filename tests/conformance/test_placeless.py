from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_records import make_records, make_run

from conformance.placeless import placeless
from conformance.store import Results


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('File "/home/me/.tox/py/lib/python3.11/site-packages/torch/nn/x.py", line 3', 'File "torch/nn/x.py", line 3'),
        ('File "/opt/py-3.12/lib/python3.12/json/decoder.py", line 3', 'File "json/decoder.py", line 3'),
        ('File "/tmp/conformance-a1b2/conformance/engine.py"', 'File "conformance/engine.py"'),
        ("/home/me/suite/specs/linear.qspec.yaml:3", "specs/linear.qspec.yaml:3"),
        ("/home/me/suite/.tox/py/lib/python3.11/site-packages/conformance/x.py", "conformance/x.py"),
        ("a/b of /c, 3/4 and https://example.org/x", "a/b of /c, 3/4 and https://example.org/x"),
    ],
)
def test_files_are_named_from_their_package_on(text: str, expected: str) -> None:
    (record,) = make_records(1, ("qlib",))
    given = replace(record, error=text, stderr=f"{text}\n{text}", subject=replace(record.subject, path=text))
    results = Results(replace(make_run(1, ("qlib",)), command=f"run {text}"), (given,))
    found = placeless(results, Path("/home/me/suite"))
    (shown,) = found.records
    assert (shown.error, shown.stderr, shown.subject.path) == (expected, f"{expected}\n{expected}", expected)
    assert found.run.command == f"run {expected}"


def test_what_names_no_file_stays_as_it_is() -> None:
    results = Results(make_run(24), tuple(make_records(24)))
    assert placeless(results, Path("/home/me/suite")) == results
