"""Entry point of `python -m viewfs`, and of the script that pip makes."""

import sys
from typing import NoReturn

from viewfs.cli.quick import door

__all__ = ["main"]


def main() -> NoReturn:
    """Run the program with the arguments of this process."""
    door.main(sys.argv[1:])


if __name__ == "__main__":
    main()
