"""Seconds of the harness's own beside a backend's, for each case in a warm worker.

    python benchmarks/overhead.py [--backend onnxruntime] [--cases 60] [--rounds 3] [SPECS ...]

What is timed here is the round trip: from the request to the record, read and checked. Of it the worker's record says
the seconds of each step. Counted as the harness's own are `build` (the module, its inputs and calibration batches, and
a copy), `judge`, and what is in the round trip and in no step: the protocol, JSON in both directions, threads set, what
about() costs. Counted as the backend's are `quantize` and `compile`. `capture` is by itself: for a backend that wants
ONNX it is the bundled library that captures the module and writes it. So is `run`, which calls the float module and
three times the backend's model. Unsupported cases are left out. A case's time is the median of its rounds, after one
that warms up; the shares are of the sums over all cases.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing
from pathlib import Path

from tabulate import tabulate

from conformance.case import Case
from conformance.command import cases_of
from conformance.pool import Acquaintances, Job, Seat
from conformance.record import Record, Verdict

OURS = ("build", "judge")
PARTS = ("build", "capture", "quantize", "compile", "run", "judge", "rest")
SECONDS = 60.0


def timed(seat: Seat, job: Job) -> tuple[Record, dict[str, float]]:
    """One round trip: the record, and its seconds by step with `rest` for what is in none."""
    start = time.perf_counter()
    record = seat.ask(job, SECONDS)
    trip = time.perf_counter() - start
    return record, {**record.seconds, "rest": trip - sum(record.seconds.values())}


def sample(cases: tuple[Case, ...], count: int) -> list[Case]:
    """So many cases, spread evenly."""
    return [cases[number * len(cases) // count] for number in range(min(count, len(cases)))]


def measured(backend: str, cases: list[Case], rounds: int) -> list[dict[str, float]]:
    """The median seconds of each case that the backend ran, by part."""
    seat, found = Seat(Acquaintances()), []
    with closing(seat):
        for case in cases:
            job = Job(case, backend)
            warm, _ = timed(seat, job)
            if warm.verdict in (Verdict.UNSUPPORTED, Verdict.CRASH, Verdict.TIMEOUT, Verdict.ERROR):
                continue
            times = [timed(seat, job)[1] for _ in range(rounds)]
            found.append({part: statistics.median(each.get(part, 0.0) for each in times) for part in PARTS})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    modes = ("static", "dynamic")
    times = measured(options.backend, sample(cases_of(options.specs, modes), options.cases), options.rounds)
    rows = []
    for part in PARTS:
        values = [1000 * each[part] for each in times]
        rows.append(
            [part, statistics.median(values), statistics.quantiles(values, n=10)[-1], sum(values) / len(values)]
        )
    print(f"{options.backend}: {len(times)} cases, {options.rounds} rounds; milliseconds")
    print(tabulate(rows, ["part", "median", "90 %", "mean"], floatfmt=".2f"))
    ours = [sum(each[part] for part in (*OURS, "rest")) for each in times]
    theirs = [each["quantize"] + each["compile"] for each in times]
    whole = sum(sum(each.values()) for each in times)
    print(f"\nthe harness's own: {1000 * statistics.median(ours):.1f} ms a case in the median, ", end="")
    print(f"{100 * sum(ours) / whole:.0f} % of all, {100 * sum(ours) / sum(theirs):.0f} % of quantize and compile")


if __name__ == "__main__":
    main()
