"""The command line: `viewfs` and its subcommands, for people and (with --json) for scripts."""
