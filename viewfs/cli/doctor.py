"""`viewfs doctor`: each step of opening a view, how it went, and what to do about the first that fails."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from viewfs.cli.output import json_option
from viewfs.cli.quick.messages import printable
from viewfs.cli.quick.tables import print_json
from viewfs.doctor import STEPS, Facts, Step, examine, works
from viewfs.errors import MachineError

__all__ = ["doctor"]

#: State → mark, the same where the output's encoding lacks it, colour.
_MARKS = {
    "ok": ("✓", "ok", "green"),
    "failed": ("✗", "FAILED", "red"),
    "warning": ("!", "!", "yellow"),
    "skipped": ("–", "-", "bright_black"),
}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Try, step by step, what opening a view takes; say which step fails and what to do.

    The exit status is 0 if this machine can run viewfs, 3 if it can't. Nothing is left behind.

    \b
    Examples:
      viewfs doctor
      viewfs doctor --json
    """
    facts = Facts.read()
    steps = examine(facts)
    if as_json:
        print_json(ok=works(steps), steps=[asdict(step) for step in steps], facts=asdict(facts))
    else:
        _print(steps)
    if not works(steps):
        sys.exit(MachineError.exit_code)


def _print(steps: list[Step]) -> None:
    plain = _can_print("".join(mark for mark, _plain, _colour in _MARKS.values()))
    width = max(len(step.title) for step in steps)
    for step in steps:
        mark, instead, colour = _MARKS[step.state]
        shown = click.style(mark if plain else f"{instead:6}", fg=colour, bold=step.state == "failed" or None)
        line = f"{step.title:{width}}  {printable(step.detail)}".rstrip()
        click.echo(f"{shown} {click.style(line, dim=True) if step.state == 'skipped' else line}")
    failed = next((step for step in steps if step.state == "failed"), None)
    for step in steps:
        if step.state == "warning" and failed is None:
            click.echo(f"\nWithout the {step.title}, {STEPS[step.name].needed_for} will not work here. To change that:")
            _print_remedy(step)
    click.echo()
    if failed is None:
        click.echo(click.style("This machine can run viewfs.", fg="green"))
        return
    _print_remedy(failed)
    click.echo(f"\n{click.style('This machine cannot run viewfs:', fg='red')} {printable(failed.detail)}.")


def _print_remedy(step: Step) -> None:
    for line in step.remedy:
        click.echo(printable(line))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
