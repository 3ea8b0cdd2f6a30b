"""The pytest plug-in: collects `*.qspec.yaml`, one item per case and backend. Imports no torch until an item runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.backends import BUILTIN, REFERENCE, named, open_backend
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand, item_name, select
from conformance.errors import ConformanceError, SpecError, UsageError
from conformance.fingerprint import fingerprint
from conformance.interpreters import interpreters
from conformance.known_file import marked
from conformance.load import load
from conformance.record import Record, Verdict
from conformance.report.text import explain, headline
from conformance.shard import Shard, parse_shard
from conformance.spec import Mode

if TYPE_CHECKING:
    from conformance.pool import Acquaintances, Seat

SUFFIX = ".qspec.yaml"
_SEATS = pytest.StashKey[dict[str, "Seat"]]()
_ACQUAINTANCES = pytest.StashKey["Acquaintances"]()
_PYTHONS = pytest.StashKey[dict[str, str]]()
_RECORD = pytest.StashKey[str]()
_BACKENDS = pytest.StashKey[tuple[str, ...]]()
_SHARD = pytest.StashKey[Shard | None]()
_PLAN = pytest.StashKey["Planned"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite under a heading of their own."""
    group = parser.getgroup("conformance", "conformance of quantization backends")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME[:TARGET]",
        help="run the specs on this backend; repeatable; `all`: as for `conformance run` (default: qlib)",
    )
    group.addoption(
        "--python",
        dest="pythons",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="run the backend NAME under this interpreter, of another environment; repeatable",
    )
    group.addoption(
        "--mode",
        action="append",
        choices=[str(mode) for mode in Mode],
        help="run only cases of this mode; may be given several times",
    )
    group.addoption(
        "--shard", metavar="I/N", help="run one of N shares of the cases, as `conformance run --shard` does"
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
    try:
        asked = config.getoption("--backend") or ["qlib"]
        config.stash[_PYTHONS] = elsewhere = interpreters(config.getoption("pythons"), asked)
        config.stash[_BACKENDS] = named(asked, elsewhere)
        for backend in config.stash[_BACKENDS]:
            if (stem := backend.partition(":")[0]) in BUILTIN and stem not in elsewhere:
                open_backend(backend)
        config.stash[_SHARD] = parse_shard(text) if (text := config.getoption("--shard")) else None
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    path = config.getoption("--conformance-results")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(path), config), "conformance-recorder")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the worker processes that were started for backends of their own process."""
    for seat in config.stash.get(_SEATS, {}).values():
        seat.close()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect spec files."""
    if file_path.name.endswith(SUFFIX):
        return SpecFile.from_parent(parent, path=file_path)
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the share that `--shard` names of what -k and -m have left, and note the whole for the head of results."""
    chosen = [item for item in items if isinstance(item, CaseItem)]
    shard = config.stash[_SHARD]
    left = [item for item in items if not isinstance(item, CaseItem) or shard is None or shard.holds(item.case.id)]
    if config.getoption("--conformance-results"):
        count, backends = sum(isinstance(item, CaseItem) for item in left), config.stash[_BACKENDS]
        config.stash[_PLAN] = _planned(chosen, backends, count)
    if len(left) < len(items):
        kept = set(left)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = left


@dataclass(frozen=True)
class Planned:
    """What was collected: cases by id with their fingerprints, and how many records this share of them will give."""

    cases: Mapping[str, str]
    records: int


def _planned(chosen: Sequence[CaseItem], backends: Sequence[str], records: int) -> Planned:
    """The plan of a run; without cases where -k or -m leave some of a case's backends, which no head can say."""
    cases = {item.case.id: item.case for item in chosen}
    whole = len(chosen) == len(cases) * len(backends)
    return Planned({name: fingerprint(case) for name, case in cases.items()} if whole else {}, records)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report carry the record as text, which survives the way from xdist's workers, and the first the plan."""
    report = yield
    if report.when == "call" and _RECORD in item.stash:
        report.conformance_record = item.stash[_RECORD]  # type: ignore[attr-defined]
        if plan := item.config.stash.get(_PLAN, None):
            report.conformance_plan = json.dumps(asdict(plan))  # type: ignore[attr-defined]
            del item.config.stash[_PLAN]
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
        for backend in self.config.stash[_BACKENDS]:
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
        record = marked(found, _versions(self.config, self.backend))
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
    from conformance.pool import Job, Seat
    from conformance.run import apart

    seconds, known = float(item.config.getoption("--case-timeout")), _acquaintances(item.config)
    if apart(item.backend, known.terms):
        seat = item.config.stash.setdefault(_SEATS, {}).setdefault(item.backend, Seat(known))
        return seat.ask(Job(item.case, item.backend), seconds), str
    from conformance.engine import Limits, run_case
    from conformance.show import graphs_of

    limits = Limits(seconds, bool(item.config.getoption("--allow-python")), open_backend(REFERENCE))
    trial = run_case(item.case, open_backend(item.backend), item.backend, limits)
    return trial.record, lambda: graphs_of(trial)


def _acquaintances(config: pytest.Config) -> Acquaintances:
    """What this process knows of its backends."""
    from conformance.pool import Acquaintances, Terms

    options, elsewhere = ("--allow-python",) if config.getoption("--allow-python") else (), config.stash[_PYTHONS]
    return config.stash.setdefault(_ACQUAINTANCES, Acquaintances(Terms(options, elsewhere)))


def _versions(config: pytest.Config, backend: str) -> Mapping[str, str]:
    from conformance.run import introduced, versions_of

    return versions_of(introduced(backend, _acquaintances(config)))


class _Recorder:
    """Writes the records of a run, also those that xdist's workers send, in the process that reports."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self.path = path
        self.config = config
        self._context: Any = None
        self._writer: Any = None
        self._started = ""
        self._begun = False

    def pytest_sessionstart(self) -> None:
        """Open the file."""
        import datetime

        from conformance.store import writing

        self._context = writing(self.path)
        self._writer = self._context.__enter__()
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Append the record that came with a report; the plan that comes with the first goes into the head."""
        record = getattr(report, "conformance_record", None)
        if report.when != "call" or record is None:
            return
        if not self._begun:
            plan = Planned(**json.loads(getattr(report, "conformance_plan", '{"cases": {}, "records": 0}')))
            self._begin(plan, self._backends)
        self._writer.append(Record.from_json(json.loads(record)))

    def pytest_sessionfinish(self) -> None:
        """Close the file."""
        if not self._begun:
            self._begin(self.config.stash.get(_PLAN, Planned({}, 0)), ())
        self._context.__exit__(None, None, None)

    @property
    def _backends(self) -> tuple[str, ...]:
        return self.config.stash[_BACKENDS]

    def _begin(self, plan: Planned, opened: Sequence[str]) -> None:
        """Write the head. Where nothing was run, no backend is opened for the sake of its versions."""
        import sys

        from conformance.environment import environment
        from conformance.known_file import expected_today
        from conformance.record import Run
        from conformance.run import declared_as, introduced

        shard = self.config.stash[_SHARD]
        said = {name: declared_as(introduced(name, _acquaintances(self.config))) for name in opened}
        run = Run(
            environment=environment(),
            backends=self._backends,
            planned=plan.records,
            command=" ".join(["pytest", *sys.argv[1:]]),
            started=self._started,
            cases=plan.cases,
            shard=str(shard) if shard else None,
            declared=said,
            debt=tuple(expected_today(name, each.versions).debt for name, each in said.items()),
        )
        self._writer.head(run)
        self._begun = True


def parametrize(path: str | Path, modes: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Parametrize an ordinary test function over the cases of a spec file; the function takes an argument `case`.

    For tools that know test functions only. Raises SpecError for a file with mistakes.
    """
    cases = select(expand(load(Path(path), vocabulary())), modes=list(modes))
    return pytest.mark.parametrize("case", [pytest.param(case, id=item_name(case, "qlib")) for case in cases])


def check(case: Case, backend: str = "qlib") -> Record:
    """Run one case in this process; raises AssertionError with the findings where it is not native."""
    from conformance.engine import Limits, run_case

    opened, limits = open_backend(backend), Limits(reference=open_backend(REFERENCE))
    record = marked(run_case(case, opened, backend, limits).record, opened.about().versions)
    if record.failed:
        raise AssertionError(explain(record))
    return record
