"""`viewfs mount`, `umount`, `insmod`, `rmmod`: each makes an epoch. `viewfs restart` makes none."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import click

from viewfs.cli.arguments import (
    absolute,
    complete_modules,
    load_request,
    module_option,
    resolved,
    session_option,
    split_options,
)
from viewfs.cli.main import tell
from viewfs.cli.output import json_option, print_json
from viewfs.session.client import find_session

__all__ = ["insmod", "mount", "restart", "rmmod", "umount"]


def _change(session_name: str | None, operation: str, as_json: bool, arguments: dict[str, Any]) -> None:
    with closing(find_session(session_name)) as session:
        result = session.request(operation, **arguments)
    if as_json:
        print_json(**result)
    else:
        tell(f"epoch {result['epoch']}: {arguments.get('operation', operation)} {result['path']}")


@click.command()
@click.option(
    "-t",
    "--type",
    "kind",
    metavar="TYPE",
    shell_complete=complete_modules,
    help="The module; by default found from the content.",
)
@module_option
@session_option
@json_option
@click.argument("source")
@click.argument("directory")
def mount(
    kind: str | None, options: tuple[str, ...], session: str | None, as_json: bool, source: str, directory: str
) -> None:
    """Mount SOURCE (an image, a directory) on DIRECTORY, which need not exist.

    A type that needs no source takes any word for it, as mount(8) does.

    \b
    Examples:
      viewfs mount disk.img /mnt
      viewfs mount -t tmp -o size=64M none /scratch
    """
    arguments = {
        "type": absolute(kind) if kind is not None and kind.endswith(".py") else kind,
        "source": absolute(source),
        "path": absolute(directory),
        "options": split_options(options),
        "cwd": os.getcwd(),
        "operation": "mount",
    }
    _change(session, "mount", as_json, arguments)


@click.command()
@click.option("-l", "--lazy", is_flag=True, help="Take it out of the view now, though processes still use it.")
@click.option("-f", "--force", is_flag=True, help="The same, and end its server: whoever waits for it gets an error.")
@session_option
@json_option
@click.argument("directory")
def umount(lazy: bool, force: bool, session: str | None, as_json: bool, directory: str) -> None:
    """Take the newest mount on DIRECTORY out of the view. What a later mount was made from goes on working for it.

    \b
    Examples:
      viewfs umount /mnt
      viewfs umount --force /mnt
    """
    path = resolved(directory)
    _change(session, "umount", as_json, {"path": path, "lazy": lazy, "force": force})


@click.command()
@module_option
@session_option
@json_option
@click.argument("module", shell_complete=complete_modules)
@click.argument("place", required=False)
def insmod(options: tuple[str, ...], session: str | None, as_json: bool, module: str, place: str | None) -> None:
    """Load MODULE (a name, or a .py file) at PLACE, or where it belongs.

    \b
    Examples:
      viewfs insmod hello
      viewfs insmod ./mymodule.py /my/place
    """
    _change(session, "mount", as_json, load_request(module, place, list(options)))


@click.command()
@click.option("-l", "--lazy", is_flag=True, help="Take it out of the view now, though processes still use it.")
@click.option("-f", "--force", is_flag=True, help="The same, and end its server: whoever waits for it gets an error.")
@session_option
@json_option
@click.argument("module")
def rmmod(lazy: bool, force: bool, session: str | None, as_json: bool, module: str) -> None:
    """Remove MODULE, named as `viewfs lsmod` shows it or by the place where it is.

    \b
    Example:
      viewfs rmmod hello
    """
    arguments: dict[str, Any] = {"module": module, "lazy": lazy, "force": force, "operation": "rmmod"}
    if "/" in module:
        arguments["path"] = resolved(module)
    _change(session, "umount", as_json, arguments)


@click.command()
@session_option
@json_option
@click.argument("module")
def restart(session: str | None, as_json: bool, module: str) -> None:
    """Have a new server go on with what MODULE has mounted, named as `viewfs lsmod` shows it or by its place.

    It runs the module's code as it is now. Who reads an image doesn't notice. Of a module that computes its files
    those that are open are lost.

    \b
    Example:
      viewfs restart /mnt
    """
    arguments: dict[str, Any] = {"module": module}
    if "/" in module:
        arguments["path"] = resolved(module)
    with closing(find_session(session)) as found:
        result = found.request("restart", **arguments)
    if as_json:
        print_json(**result)
    else:
        tell(f"restarted: {result['path']} (process {result['server']})")
