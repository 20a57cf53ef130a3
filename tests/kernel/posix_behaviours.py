"""How a file system on Linux behaves, in a table that is run on any: python posix_behaviours.py DIRECTORY [NAME…].

Each behaviour is tried in a subdirectory of its own; a line of JSON says of each how that went. The program needs
nothing but Python, so that it runs in a view as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    # The directory of this file has a package that is called as one of Python's own modules.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.kernel.posix import (
    attributes,
    content,
    directories,
    linking,
    mapping,
    naming,
    opening,
    ownership,
    processes,
    ranges,
    removing,
    renaming,
    symlinks,
    times,
    xattrs,
)
from tests.kernel.posix.table import BEHAVIOURS, LOWER, lay, run

__all__ = ["BEHAVIOURS", "LOWER", "NEW", "lay", "main"]

#: The themes: importing them fills the table.
THEMES = (
    opening, removing, renaming, linking, symlinks, attributes, ownership, times, content, ranges, mapping, directories,
    naming, xattrs, processes,
)  # fmt: skip

#: Those that want no lower tree.
NEW = [name for name in BEHAVIOURS if not name.startswith(LOWER)]


def main(arguments: list[str]) -> int:
    """Run those that are named, or all; with `--new` in place of names those that want no lower tree."""
    top, *names = arguments
    if names == ["--new"]:
        names = NEW
    failed = False
    for result in run(Path(top), names or list(BEHAVIOURS)):
        print(json.dumps(result), flush=True)
        failed |= not result["ok"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
