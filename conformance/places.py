"""Where the suite's own files are: in a checkout beside the package, in an installation within it."""

from __future__ import annotations

from pathlib import Path


def bundled_specs() -> Path:
    """The folder with the suite's specs."""
    package = Path(__file__).resolve().parent
    installed = package / "_specs"
    return installed if installed.is_dir() else package.parent / "specs"
