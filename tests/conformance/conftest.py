"""Fixtures that several files of these tests use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import Command, Said
from small_specs import LINEAR, cases_of, written

from conformance import __main__ as command_line
from conformance.backends import open_backend
from conformance.engine import run_case
from conformance.record import Verdict


@pytest.fixture
def conformance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run the command line in this process, in an empty folder."""

    def run(*arguments: object) -> Said:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["conformance", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of a few small specs."""
    return written(tmp_path)


@pytest.fixture(scope="module")
def warm() -> None:
    """Have all of torch that a case needs imported: what is imported within a pytester session is dropped after it."""
    for case in cases_of(LINEAR):
        assert run_case(case, open_backend("qlib"), "qlib").record.verdict is Verdict.NATIVE
