"""Size and speed of the HTML report: 2,000 cases on 12 backends, opened in headless Chromium.

    PYTHONPATH=.:tests/conformance python benchmarks/report.py [--rounds 5] [--cases 2000]

The results are those that the tests of the reports make up. A fresh browser with a profile of its own opens the page
from a server on this machine for each round, and the page's own clock (`performance.now`, milliseconds since the
navigation began) is read at three points, each after a whole frame was drawn and the main thread was free again. A
page of one case, opened in turn with it, shows what the machine itself takes:

    interactive   the matrix with its first family is there, and its filters work
    whole         every row is there, and what the panels and the search need is unpacked
    filter        from choosing a filter to the frame that shows it, by itself
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from urllib.parse import parse_qs, urlparse

from synthetic_records import TWELVE, make_records, make_run
from tabulate import tabulate

from conformance.report import html

POINTS = ("interactive", "whole", "filter")
PROBE = """
<script>
const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))));
(async () => {
  const interactive = await drawn();
  await ready;
  const whole = await drawn();
  const before = performance.now();
  location.hash = "#verdict=wrong";
  await new Promise((done) => addEventListener("hashchange", done, { once: true }));
  const filter = (await drawn()) - before;
  fetch(`/done?${new URLSearchParams({ interactive, whole, filter })}`);
})();
</script>
"""
SECONDS = 60.0


def served(page: bytes, told: Queue[dict[str, float]]) -> HTTPServer:
    """A server of one page, which puts into `told` what the page tells it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlparse(self.path).query)
            if query:
                told.put({name: float(query[name][0]) for name in POINTS})
            body = page if self.path == "/" else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the figures are the output."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def opened(chromium: str, server: HTTPServer, told: Queue[dict[str, float]]) -> dict[str, float]:
    """Open the page once in a browser of its own; raises queue.Empty where it tells nothing in time."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        command = [chromium, *flags.split(), f"--user-data-dir={profile}", "--remote-debugging-port=0", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return told.get(timeout=SECONDS)
        finally:
            browser.terminate()
            browser.wait()


def probed(cases: int) -> bytes:
    """The page of so many cases with the probe in it; its policy allows its own script alone, so that it has to go."""
    start = time.perf_counter()
    page = html.render(make_run(cases, TWELVE), make_records(cases, TWELVE))
    spent = time.perf_counter() - start
    print(f"{cases} cases, {len(TWELVE)} backends: {len(page.encode()) / 1e6:.2f} MB, made in {spent:.1f} s")
    return re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"{PROBE}</body>").encode()


def main(rounds: int, cases: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("expected chromium on the PATH, found none")
    sizes = (1, cases)
    told: Queue[dict[str, float]] = Queue()
    servers = [served(probed(size), told) for size in sizes]
    found = [[opened(chromium, server, told) for server in servers] for _ in range(rounds)]
    rows = []
    for name in POINTS:
        small, large = ([each[place][name] for each in found] for place in range(2))
        rows.append([name, *(round(f(large)) for f in (statistics.median, min, max)), round(statistics.median(small))])
    heads = ["milliseconds", "median", "least", "most", "median of a page of one case"]
    print(tabulate(rows, headers=heads, tablefmt="github"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=2000)
    given = parser.parse_args()
    main(given.rounds, given.cases)
