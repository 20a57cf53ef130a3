"""The page: tables of what was measured, in Markdown, between two marks of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.aims import Aim, aims
from benchmarks.contenders import CONTENDERS, KERNEL, VIEWFS
from benchmarks.figures import Figures, Spread
from benchmarks.images import IMAGES, Image
from benchmarks.measurements import MEASUREMENTS, MEMORY, MOUNTING, title_of
from benchmarks.results import Results

__all__ = ["page_section", "put_between_marks", "write_page"]

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
_NEW_PAGE = f"# Benchmarks\n\n{BEGIN}\n{END}\n"
_FAIRNESS = """

All servers, and everything that reads, run as an ordinary account. Private memory leaves out what a server shares with
the process that it was forked from, which only viewfs has; the Pss of every process is what all of viewfs (front,
supervisor, agent and server), or the one process of another, really takes."""


def write_page(results: Results, page: Path, plot: str) -> None:
    """Replace the figures in the page, which is made if it isn't there. `plot` is the address of the picture."""
    old = page.read_text(encoding="utf-8") if page.exists() else _NEW_PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(put_between_marks(old, page_section(results, plot)), encoding="utf-8")


def put_between_marks(page: str, section: str) -> str:
    """The page with the section between the marks. Raises ValueError if it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{section.strip()}\n\n{END}{after}"


def page_section(results: Results, plot: str) -> str:
    figures = Figures(results)
    parts = [
        _machine(results),
        _aims(aims(figures)),
        f"## Compared\n\n![time of viewfs / time of the others, for each measurement]({plot})",
        _reading_help(results),
    ]
    parts += [_image(image, figures, results) for image in IMAGES if figures.contenders(image.name)]
    parts.append(_participants(figures))
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> str:
    lines = [header, ["---", *(["---:" if right else "---"] * (len(header) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(results: Results) -> str:
    settings = results.settings
    repetitions = settings["repetitions"]
    sentence = (
        f"Measured {repetitions} times, interleaved, another contender first each time."
        if repetitions > 1
        else "Measured once: these figures say that the harness works, and nothing more."
    )
    return f"## What it ran on\n\n{_table(('', ''), results.machine.items(), right=False)}\n\n{sentence}"


def _aims(found: Sequence[Aim]) -> str:
    rows = [(aim.what, f"≤ {aim.limit:g}{aim.unit}", *_verdict(aim)) for aim in found]
    return f"## Aims\n\n{_table(('aim', 'at most', 'found', ''), rows, right=False)}"


def _verdict(aim: Aim) -> tuple[str, str]:
    if aim.found is None or aim.excess is None:
        return "", "not measured"
    number = f"{aim.found:.2f}" if not aim.unit else f"{aim.found:.1f}{aim.unit}"
    percent = f"{abs(aim.excess):.0%} {'below' if aim.reached else 'over'}"
    verdict = f"reached, {percent}" if aim.reached else f"**missed**, {percent}"
    return number, f"{verdict} ({aim.detail})" if aim.detail else verdict


def _reading_help(results: Results) -> str:
    settings = results.settings
    recipe = settings["recipe"]
    small = recipe["directories"] * recipe["files_per_directory"]
    return f"""\
Milliseconds: the median (least–most); below it, for the others, **viewfs / it** as the ratio of the medians (least–most
of the ratios within one repetition). Below 1 viewfs takes less. *Cold*: the first time in a fresh mount, in which
nothing of what is read had been touched; the image itself is in the page cache. *Warm*: the same again in that mount.

{small:,} small files (100 B to 16 KiB) in {recipe["directories"]} directories; a huge directory of {recipe["names"]:,}
names; three files of {recipe["big_size"] >> 20} MiB: random bytes, text, sparse. stat: {recipe["sampled_names"]:,}
names; random reads: {recipe["sampled_reads"]:,}. Whoever takes more than {settings["timeout"]:g} s for a measurement is
not asked again, and who takes more than {settings["slow"]:g} s only once."""


def _image(image: Image, figures: Figures, results: Results) -> str:
    names = [one.name for one in CONTENDERS if one.name in figures.contenders(image.name)]
    parts = [f"## {image.title}"]
    if image.viewfs_type is None:
        parts.append("viewfs does not read this format: the same tree, for orientation.")
    parts += [f"Without {name}: {reason}." for name, reason in results.left_out.get(image.name, {}).items()]
    if rows := list(_times(image.name, names, figures, results.settings["timeout"])):
        parts.append(_table(("ms", *names), rows))
    if rows := list(_cpu(image.name, names, figures)):
        parts.append("Processor time in ms: of those who read + of the server.")
        parts.append(_table(("CPU ms", *names), rows))
    servers = [name for name in names if any(figures.spread(image.name, name, key, "memory") for key in MEMORY)]
    if rows := list(_memory(image.name, servers, figures)):
        parts.append(_table(("MiB", *servers), rows))
    return "\n\n".join(parts)


def _times(image: str, names: Sequence[str], figures: Figures, timeout: float) -> Iterator[list[str]]:
    for measurement in (*MOUNTING, *MEASUREMENTS):
        for phase in ("cold",) if measurement in MOUNTING else ("cold", "warm"):
            cells = [_time_cell(image, name, measurement, phase, figures, timeout) for name in names]
            if any(cells):
                title = title_of(measurement) if measurement in MOUNTING else f"{title_of(measurement)}, {phase}"
                yield [title, *cells]


def _time_cell(image: str, name: str, measurement: str, phase: str, figures: Figures, timeout: float) -> str:
    problem = figures.problem(image, name, measurement, phase)
    if problem == "timeout":
        bound = figures.bound(image, name, measurement, phase)
        return f"> {timeout:g} s" + (f"<br>**< {bound:.2g}**" if bound else "")
    if problem is not None:
        return f"failed: {problem}"
    spread = figures.spread(image, name, measurement, phase)
    if spread is None:
        return ""
    cell = _with_spread(spread, 1000)
    ratio = figures.ratio(image, name, measurement, phase) if name != VIEWFS.name else None
    if ratio is None:
        return cell
    reach = f" ({ratio.low:.2f}–{ratio.high:.2f})" if ratio.count > 1 else ""
    return f"{cell}<br>**{ratio.median:.2f}**{reach}"


def _with_spread(spread: Spread, factor: float) -> str:
    middle = _number(spread.median * factor)
    if spread.count == 1:
        return middle
    return f"{middle} ({_number(spread.low * factor)}–{_number(spread.high * factor)})"


def _number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cpu(image: str, names: Sequence[str], figures: Figures) -> Iterator[list[str]]:
    for measurement in MEASUREMENTS:
        for phase in ("cold", "warm"):
            pairs = [figures.cpu(image, name, measurement, phase) for name in names]
            if any(pairs):
                cells = (f"{p[0] * 1000:.0f} + {p[1] * 1000:.0f}" if p else "" for p in pairs)
                yield [f"{title_of(measurement)}, {phase}", *cells]


def _memory(image: str, names: Sequence[str], figures: Figures) -> Iterator[list[str]]:
    for key, title in MEMORY.items():
        spreads = [figures.spread(image, name, key, "memory") for name in names]
        if any(spreads):
            yield [title, *(_with_spread(spread, 1) if spread else "" for spread in spreads)]


def _participants(figures: Figures) -> str:
    seen = {name for image in IMAGES for name in figures.contenders(image.name)}
    lines = [f"- **{one.name}**: {one.note}." for one in CONTENDERS if one.name in seen]
    if KERNEL.name not in seen:
        lines.append("- The kernel’s own mount is left out: it needs root.")
    return "## Who was compared\n\n" + "\n".join(lines) + _FAIRNESS
