"""Measuring as an ordinary account: root only installs, and writes the page."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["as_account", "parser"]


def parser(program: str) -> argparse.ArgumentParser:
    """The arguments that tools/bench gives."""
    arguments = argparse.ArgumentParser(prog=program)
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--account")
    arguments.add_argument("--repository", type=Path, required=True)
    arguments.add_argument("--base", type=Path, required=True)
    arguments.add_argument("--figures-only", action="store_true", help=argparse.SUPPRESS)
    return arguments


def as_account(module: str, arguments: argparse.Namespace) -> Any:
    """What `module` measures when the account runs it; None where this process is to measure itself."""
    if not arguments.account or os.getuid() != 0:
        return None
    home = Path(f"~{arguments.account}").expanduser()
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")} | {"HOME": str(home)}
    command = [
        *("runuser", "-u", arguments.account, "--", sys.executable, "-m", module, "--figures-only"),
        *(f"--repetitions={arguments.repetitions}", f"--repository={arguments.repository}", f"--base={home}"),
    ]
    done = subprocess.run(command, env=environment, cwd=home, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)
