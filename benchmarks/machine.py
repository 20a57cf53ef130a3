"""What the benchmark runs on, in words for the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import viewfs

__all__ = ["describe_machine"]

_PACKAGES = ("fuse2fs", "squashfuse", "archivemount", "fuse3", "squashfs-tools", "tar", "findutils")


def describe_machine() -> dict[str, str]:
    """Title → text."""
    return {
        "Date": time.strftime("%Y-%m-%d"),
        "Kernel": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Processor": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "Memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.1f} GiB",
        "viewfs": f"{viewfs.__version__}, Python {platform.python_version()}",
        "Others": ", ".join(filter(None, (*map(_debian_version, _PACKAGES), _python_version("ratarmount")))),
        "Load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _field(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _colon, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _debian_version(package: str) -> str:
    command = ["dpkg-query", "-W", "-f", "${Version}", package]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except FileNotFoundError:
        return ""
    return f"{package} {done.stdout}" if done.returncode == 0 and done.stdout else ""


def _python_version(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return ""
