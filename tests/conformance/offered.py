"""A distribution made up for a test, which offers backends as entry points to this process and to its children."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

MODULE = '''\
"""Backends of a made-up distribution: the bundled library with something changed."""

import dataclasses, os, signal, time

from conformance.backends import open_backend
from conformance.errors import Unsupported


@dataclasses.dataclass(frozen=True)
class Changed:
    act: object
    lacks: frozenset = frozenset()

    def about(self):
        return dataclasses.replace(open_backend("qlib").about(), name="odd", lacks=self.lacks)

    def quantize(self, task, stage):
        with stage("lower"):
            self.act(task)
        return open_backend("qlib").quantize(task, stage)


def bias(task):
    return task.module[0].bias is None if hasattr(task.module, "__getitem__") else True


def chatty(target):
    """Prints to standard output, by Python and below it."""
    def act(task):
        print("python says hello")
        os.write(1, b"native code says hello\\n")
    return Changed(act)


chatty.targets = ("loud", "quiet")


def moody(target):
    """Is killed where a layer has a bias."""
    return Changed(lambda task: None if bias(task) else os.kill(os.getpid(), signal.SIGKILL))


def slow(target):
    """Takes its time."""
    return Changed(lambda task: time.sleep(0.1))


def modest(target):
    """Declares not to have linear_relu, and has not."""
    def act(task):
        raise Unsupported("no kernel")
    return Changed(act, frozenset({"quantized::linear_relu"}))


def dead(target):
    """Dies when it is opened in a worker."""
    if "conformance.worker" in str(getattr(__import__("__main__").__spec__, "name", "")):
        os._exit(9)
    return Changed(lambda task: None)
'''
NAMES = ("chatty", "moody", "slow", "modest", "dead")


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer the backends above, `uninstalled` whose package is missing, and one that would hide the bundled library."""
    (folder / "odd_backends_of_test.py").write_text(MODULE)
    info = folder / "odd_backends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-backends\nVersion: 1.0\n")
    points = [f"{name} = odd_backends_of_test:{name}" for name in NAMES]
    points += ["uninstalled = no_such_package_of_test.backend:make", "qlib = odd_backends_of_test:dead"]
    points += ["renamed = odd_backends_of_test:no_such_function"]
    (info / "entry_points.txt").write_text("\n".join(["[conformance.backends]", *points, ""]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "odd_backends_of_test", raising=False)  # another test's, of another folder
