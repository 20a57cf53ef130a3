"""What commands run in a view in which an image is mounted:

    python -m viewfs.cow compare DESCRIPTOR DIRECTORY    compare the image with the tree that it was made of
    python -m viewfs.cow owners DIRECTORY                print the owners that it has (`viewfs.cow.export.owners`)

The image is mounted on DIRECTORY, and DESCRIPTOR is the open root of the tree. The first command prints the first paths
that differ, a line each, and exits with 1 if any do.
"""

from __future__ import annotations

import os
import sys

from viewfs.cow.compare.trees import Tree
from viewfs.cow.export.images import mismatches
from viewfs.cow.export.owners import print_owners

_SHOWN = 10


def main() -> int:
    """Run the command that the arguments name; returns the exit code."""
    what, *descriptors, directory = sys.argv[1:]
    image = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if what == "owners":
        print_owners(image, sys.stdout.buffer)
        return 0
    found = mismatches(Tree(int(descriptors[0])), Tree(image))
    for change in found[:_SHOWN]:
        print(f"{os.fsdecode(change.path)!r}: {', '.join(sorted(change.aspects)) or change.kind}")
    return 1 if found else 0


sys.exit(main())
