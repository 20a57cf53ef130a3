"""`viewfs completion`: the script that makes a shell complete `viewfs` commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Example (in ~/.bashrc):
      eval "$(viewfs completion bash)"
    """
    from viewfs.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "viewfs", "_VIEWFS_COMPLETE").source())
