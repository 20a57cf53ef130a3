"""`viewfs mount`, `umount`, `insmod`, `rmmod`: each makes an epoch. `viewfs restart` makes none."""

from __future__ import annotations

import click

from viewfs.cli.arguments import complete_modules, module_option, session_option
from viewfs.cli.output import json_option
from viewfs.cli.quick import view
from viewfs.cli.quick.requests import absolute, load_request, mount_request, program_request
from viewfs.cli.quick.view import change, remove_module, unmount

__all__ = ["insmod", "mount", "restart", "rmmod", "umount"]


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
    change(session, "mount", as_json, mount_request(kind, absolute(source), directory, options))


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
    unmount(session, as_json, directory, lazy=lazy, force=force)


@click.command()
@module_option
@session_option
@json_option
@click.argument("module", shell_complete=complete_modules)
@click.argument("place", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def insmod(
    options: tuple[str, ...],
    session: str | None,
    as_json: bool,
    module: str,
    place: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Load MODULE at PLACE, or where it belongs: a name, a .py file (and :CLASS if it has several), or
    PACKAGE.MODULE:CLASS. With ARGUMENTS it is a program that speaks FUSE; {} among them stands for PLACE.

    \b
    Examples:
      viewfs insmod hello
      viewfs insmod ./mymodule.py /my/place
      viewfs insmod squashfuse /mnt -- disk.squashfs {}
    """
    if arguments and place is not None:
        request = program_request(module, place, options, arguments)
    else:
        request = load_request(module, place, options)
    change(session, "mount", as_json, request)


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
    remove_module(session, as_json, module, lazy=lazy, force=force)


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
    view.restart(session, as_json, module)
