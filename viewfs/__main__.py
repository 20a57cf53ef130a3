"""`python -m viewfs` is `viewfs`; and what the script starts that pip makes."""

import sys
from typing import NoReturn

from viewfs.cli.quick import door

__all__ = ["main"]


def main() -> NoReturn:
    """The program."""
    door.main(sys.argv[1:])


if __name__ == "__main__":
    main()
