"""`python -m viewfs` is `viewfs`."""

from viewfs.cli.main import main

main()
