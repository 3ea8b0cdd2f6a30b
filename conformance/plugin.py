"""The pytest plug-in: collects `*.qspec.yaml`, one item per case and backend. Imports no torch until an item runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.backends import open_backend
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand, item_name, select
from conformance.errors import ConformanceError, SpecError, UsageError
from conformance.known_file import marked
from conformance.load import load
from conformance.record import Record, Verdict
from conformance.report.text import explain, headline
from conformance.spec import Mode

if TYPE_CHECKING:
    from conformance.pool import Worker

SUFFIX = ".qspec.yaml"
_WORKERS = pytest.StashKey[dict[str, "Worker"]]()
_RECORD = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite under a heading of their own."""
    group = parser.getgroup("conformance", "conformance of quantization backends")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME[:TARGET]",
        help="run the specs on this backend; may be given several times (default: qlib)",
    )
    group.addoption(
        "--mode",
        action="append",
        choices=[str(mode) for mode in Mode],
        help="run only cases of this mode; may be given several times",
    )
    group.addoption(
        "--allow-python", action="store_true", help="let specs import modules by 'python: package.module:factory'"
    )
    group.addoption(
        "--case-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="deadline of a case in a worker process (default: 60)",
    )
    group.addoption(
        "--conformance-results", metavar="FILE", help="append each record to this results file (JSON lines)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers that `-m` selects by, and the writer of results."""
    for mode in Mode:
        config.addinivalue_line("markers", f"{mode}: a conformance case of this quantization mode")
    for line in ("capture_export", "capture_trace", "capture_script"):
        config.addinivalue_line("markers", f"{line}: a conformance case captured in this way")
    config.addinivalue_line("markers", "conformance(suite): a conformance case; the argument is its suite")
    for backend in config.getoption("--backend") or ():
        try:
            open_backend(backend)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error
    path = config.getoption("--conformance-results")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(path), config), "conformance-recorder")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the worker processes that were started for backends of their own process."""
    for worker in config.stash.get(_WORKERS, {}).values():
        worker.stop()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect spec files."""
    if file_path.name.endswith(SUFFIX):
        return SpecFile.from_parent(parent, path=file_path)
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report carry the record as text, which survives the way from xdist's workers."""
    report = yield
    if report.when == "call" and _RECORD in item.stash:
        report.conformance_record = item.stash[_RECORD]  # type: ignore[attr-defined]
    return report


class SpecFile(pytest.File):
    """One spec file; its items are the cases, once for each backend."""

    def collect(self) -> Iterator[pytest.Item]:
        """Read the file; a spec error is a collection error with the lines shown."""
        try:
            cases = expand(load(self.path, vocabulary()))
        except SpecError as error:
            raise self.CollectError(str(error)) from error
        modes = self.config.getoption("--mode") or []
        for backend in self.config.getoption("--backend") or ["qlib"]:
            for case in select(cases, modes=modes):
                name = item_name(case, backend)
                # Given as text, so that pytest reads the brackets as it will when it comes back to it for --lf.
                yield CaseItem.from_parent(self, name=name, nodeid=f"{self.nodeid}::{name}", case=case, backend=backend)


class CaseFailure(Exception):  # noqa: N818  (what pytest calls it)
    """A record that fails its case."""

    def __init__(self, record: Record, graphs: str) -> None:
        self.record = record
        self.graphs = graphs
        super().__init__(headline(record))


class CaseItem(pytest.Item):
    """One case on one backend."""

    def __init__(self, *, case: Case, backend: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case
        self.backend = backend
        for marker in (str(case.mode), f"capture_{case.capture}"):
            self.add_marker(marker)
        self.add_marker(pytest.mark.conformance(case.suite))

    def runtest(self) -> None:
        """Run the case and raise where the record fails it; unsupported cases skip, known failures xfail strictly."""
        found, graphs = _run(self)
        record = marked(found, open_backend(self.backend).about().versions)
        self.stash[_RECORD] = json.dumps(record.to_json())
        if record.verdict is Verdict.UNSUPPORTED and record.known is None:
            pytest.skip(f"unsupported: {record.error}")
        if record.failed:
            raise CaseFailure(record, graphs())
        if record.known is not None:
            pytest.xfail(record.known)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """One short line first, then expected and got, then the graph; other errors as usual."""
        if isinstance(excinfo.value, CaseFailure):
            return explain(excinfo.value.record) + excinfo.value.graphs
        if isinstance(excinfo.value, ConformanceError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """The spec's place in its file."""
        return self.path, self.case.line - 1, self.name


def _run(item: CaseItem) -> tuple[Record, Callable[[], str]]:
    """The record, and a function that gives the graphs where the case ran in this process."""
    from conformance.backend import Process

    backend = open_backend(item.backend)
    allow_python = bool(item.config.getoption("--allow-python"))
    if backend.about().process is Process.OWN:
        seconds = item.case.timeout or float(item.config.getoption("--case-timeout"))
        return _worker(item, allow_python).ask(item.case, seconds), str
    from conformance.engine import Limits, run_case
    from conformance.show import graphs_of

    seconds = float(item.config.getoption("--case-timeout"))
    trial = run_case(item.case, backend, item.backend, Limits(seconds, allow_python))
    return trial.record, lambda: graphs_of(trial)


def _worker(item: CaseItem, allow_python: bool) -> Worker:
    """This process's worker for the item's backend, started again where the last case took it down."""
    from conformance import pool

    workers = item.config.stash.setdefault(_WORKERS, {})
    if item.backend not in workers or not workers[item.backend].alive:
        workers[item.backend] = pool.start(item.backend, ["--allow-python"] if allow_python else [])
    return workers[item.backend]


class _Recorder:
    """Writes the records of a run, also those that xdist's workers send, in the process that reports."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self.path = path
        self.config = config
        self._context: Any = None
        self._writer: Any = None

    def pytest_sessionstart(self) -> None:
        """Open the file and write its head."""
        import datetime
        import sys

        from conformance.environment import environment
        from conformance.record import Run
        from conformance.store import writing

        self._context = writing(self.path)
        self._writer = self._context.__enter__()
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        backends = tuple(self.config.getoption("--backend") or ["qlib"])
        self._writer.head(Run(environment(), backends, 0, " ".join(["pytest", *sys.argv[1:]]), started))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Append the record that came with a report."""
        if report.when != "call":
            return
        record = getattr(report, "conformance_record", None)
        if record is not None:
            self._writer.append(Record.from_json(json.loads(record)))

    def pytest_sessionfinish(self) -> None:
        """Close the file."""
        self._context.__exit__(None, None, None)


def parametrize(path: str | Path, modes: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Parametrize an ordinary test function over the cases of a spec file; the function takes an argument `case`.

    For tools that know test functions only. Raises SpecError for a file with mistakes.
    """
    cases = select(expand(load(Path(path), vocabulary())), modes=list(modes))
    return pytest.mark.parametrize("case", [pytest.param(case, id=item_name(case, "qlib")) for case in cases])


def check(case: Case, backend: str = "qlib") -> Record:
    """Run one case in this process; raises AssertionError with the findings where it is not native."""
    from conformance.engine import run_case

    opened = open_backend(backend)
    record = marked(run_case(case, opened, backend).record, opened.about().versions)
    if record.failed:
        raise AssertionError(explain(record))
    return record
