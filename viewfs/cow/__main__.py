"""Compare a mounted image with the tree that it was made of: `python -m viewfs.cow DESCRIPTOR DIRECTORY`.

Runs in a view in which the image is mounted; the tree comes as a descriptor. Prints the first paths that differ, a line
each, and exits with 1 if any do.
"""

from __future__ import annotations

import os
import sys

from viewfs.cow.images import mismatches
from viewfs.cow.trees import Tree

_SHOWN = 10


def main() -> int:
    """The exit code."""
    tree, directory = int(sys.argv[1]), sys.argv[2]
    image = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    found = mismatches(Tree(tree), Tree(image))
    for change in found[:_SHOWN]:
        print(f"{os.fsdecode(change.path)!r}: {', '.join(sorted(change.aspects)) or change.kind}")
    return 1 if found else 0


sys.exit(main())
