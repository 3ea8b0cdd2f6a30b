"""What the machine and the installed packages are; asked once a run."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from conformance.record import Environment

SHOWN = ("torch", "numpy", "onnxruntime", "openvino", "torchao", "executorch")


def installed(packages: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The versions of those packages that are installed, and the names of those that are missing; imports none."""
    versions, missing = {}, []
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    return versions, tuple(missing)


@functools.cache
def suite_version() -> str:
    """The version of the installed distribution."""
    try:
        return metadata.version("quant-conformance")
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> Environment:
    """Versions, processor and the best instruction set for 8-bit arithmetic; does not import the packages."""
    return Environment(
        suite=suite_version(),
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        cpu=_processor(),
        isa=_instruction_set(),
        packages=installed(SHOWN)[0],
    )


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _processor() -> str:
    return f"{_cpuinfo('model name') or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _instruction_set() -> str:
    """The flags that decide which int8 kernels a library picks, best first; a cap set for oneDNN is named too."""
    flags = _cpuinfo("flags").split()
    names = {
        "amx_int8": "AMX-INT8",
        "avx512_vnni": "AVX512-VNNI",
        "avx_vnni": "AVX-VNNI",
        "avx512f": "AVX512",
        "avx2": "AVX2",
    }
    found = next((name for flag, name in names.items() if flag in flags), platform.machine())
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{found} (capped: {cap})" if cap else found
