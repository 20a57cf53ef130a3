"""`viewfs inspect`: what a source is made of, without mounting it."""

from __future__ import annotations

import click

from viewfs.cli.arguments import complete_modules, module_option
from viewfs.cli.output import json_option
from viewfs.cli.quick.requests import module_name, module_path, split_options
from viewfs.cli.quick.tables import print_json, print_table
from viewfs.modules.framework.registry import find_module
from viewfs.modules.framework.sources import open_source
from viewfs.session.agent.inspection import describe_source, find_by_content

__all__ = ["inspect"]


@click.command()
@click.option("-t", "--type", "kind", metavar="TYPE", shell_complete=complete_modules, help="Take it for this type.")
@module_option
@json_option
@click.argument("source")
def inspect(kind: str | None, options: tuple[str, ...], as_json: bool, source: str) -> None:
    """What SOURCE is made of, layer by layer: the file, and the file system that is found in it.

    \b
    Example:
      viewfs inspect disk.img
    """
    opened = open_source(source)
    try:
        name = None if kind is None else module_name(kind)
        found = (
            find_by_content(opened, source, split_options(options))
            if name is None
            else find_module(name, module_path())
        )
        module = found.module()
        layers = [{"type": "file", "size": f"{opened.size} bytes"}]
        layers.append({"type": module.name} | describe_source(module, opened, source, split_options(options)))
    finally:
        opened.close()
    if as_json:
        print_json(source=source, layers=layers)
        return
    rows = []
    for layer in layers:
        rows.append((layer.pop("type"), "", ""))
        rows += [("", name, value) for name, value in layer.items() if value]
    print_table(("LAYER", "", ""), rows)
