"""The benchmark's arithmetic and its page. (That it measures is seen by running it: tools/bench --quick.)"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.aims import Aim, aims
from benchmarks.dataset import QUICK, Tree, make_tree
from benchmarks.figures import Figures, Spread, ratio_of, spread_of
from benchmarks.measurements import GROUPS, MEASUREMENTS
from benchmarks.report import page_section, put_between_marks, write_page
from benchmarks.results import Results, Sample

SETTINGS = {
    "repetitions": 3,
    "timeout": 60,
    "slow": 10,
    "recipe": {
        "directories": 2,
        "files_per_directory": 3,
        "names": 4,
        "big_size": 1 << 20,
        "sampled_names": 5,
        "sampled_reads": 6,
    },
}


def results(*samples: Sample) -> Results:
    return Results({"Kernel": "a kernel"}, SETTINGS, {"ext4": {"ratarmount": "it says no"}}, list(samples))


def series(contender: str, measurement: str, phase: str, *seconds: float, image: str = "ext4") -> list[Sample]:
    return [
        Sample(image, contender, measurement, phase, number, value, None, 0.5, 0.25)
        for number, value in enumerate(seconds)
    ]


EXAMPLE = results(
    *series("viewfs", "find", "cold", 1.0, 2.0, 3.0),
    *series("fuse2fs", "find", "cold", 4.0, 5.0, 6.0),
    *series("kernel", "find", "cold", 1.0, 1.0, 1.0),
    *series("viewfs", "small", "warm", 0.2),
    *series("kernel", "small", "warm", 0.1),
    *series("viewfs", "stat-huge", "warm", 0.1),
    *series("kernel", "stat-huge", "warm", 0.1),
    *series("viewfs", "small", "cold", 3.0),
    *series("viewfs", "mount", "cold", 0.05),
    *series("viewfs", "idle_private", "memory", 50.0),
    Sample("ext4", "fuse2fs", "small", "cold", 0, None, "timeout"),
    Sample("ext4", "fuse2fs", "pages", "cold", 0, None, "no such thing"),
)


def test_the_spread_of_values() -> None:
    assert spread_of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_within_repetitions() -> None:
    assert ratio_of({0: 1.0, 1: 2.0, 2: 6.0}, {0: 2.0, 1: 4.0, 2: 4.0}) == Spread(0.5, 0.5, 1.5, 3)


def test_repetitions_that_only_one_of_them_has_are_in_no_pair() -> None:
    assert ratio_of({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0}) == Spread(1.0, 0.5, 0.5, 1)
    assert ratio_of({0: 1.0}, {1: 1.0}) is None


def test_who_failed_once_has_no_figure() -> None:
    figures = Figures(
        results(*series("viewfs", "find", "cold", 1.0), Sample("ext4", "viewfs", "find", "cold", 1, None, "died"))
    )
    assert figures.spread("ext4", "viewfs", "find", "cold") is None
    assert figures.problem("ext4", "viewfs", "find", "cold") == "died"


def test_who_was_too_slow_gives_a_bound() -> None:
    figures = Figures(EXAMPLE)
    assert figures.ratio("ext4", "fuse2fs", "small", "cold") is None
    assert figures.bound("ext4", "fuse2fs", "small", "cold") == 3.0 / 60
    assert figures.bound("ext4", "fuse2fs", "find", "cold") is None


def found(text: str) -> Aim:
    (aim,) = [aim for aim in aims(Figures(EXAMPLE)) if text in aim.what]
    return aim


def test_an_aim_is_reached_or_missed_by_a_part_of_its_limit() -> None:
    best = found("`find -ls` of the whole tree, cold")
    assert (best.found, best.detail, best.reached) == (0.4, "fuse2fs", True)
    assert found("`tar` of the small files, cold").found == 3.0 / 60
    idle = found("private memory of the idle server")
    assert not idle.reached
    assert idle.excess == 0.25
    assert found("mounting, until the first byte").found == pytest.approx(50)


def test_the_worst_measurement_decides_what_is_warm() -> None:
    warm = found("anything warm")
    assert warm.found == 2.0
    assert not warm.reached
    assert warm.detail == "1 of 2 within; not: `tar` of the small files 2.00"


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    aim = found("reading the text file in order, cold, to kernel")
    assert (aim.found, aim.reached, aim.excess) == (None, False, None)


def test_the_tables() -> None:
    section = page_section(EXAMPLE, "plot.svg")
    assert (
        "| `find -ls` of the whole tree, cold | 2 000 (1 000–3 000) | 5 000 (4 000–6 000)<br>**0.40** (0.25–0.50) "
        "| 1 000 (1 000–1 000)<br>**2.00** (1.00–3.00) |"
    ) in section
    assert "| `tar` of the small files, cold | 3 000 | > 60 s<br>**< 0.05** |  |" in section
    assert "failed: no such thing" in section
    assert "| `find -ls` of the whole tree, cold | 500 + 250 | 500 + 250 | 500 + 250 |" in section
    assert "| `tar` of the small files, warm | 500 + 250 |  | 500 + 250 |" in section
    assert "| private memory of the idle server | 50.0 |" in section
    assert "Without ratarmount: it says no." in section
    assert "| a kernel |" in section


def test_the_section_is_put_between_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = "# Title\n\nbefore\n\n<!-- figures -->\nold\n<!-- /figures -->\n\nafter\n"
    once = put_between_marks(page, "new")
    assert once == "# Title\n\nbefore\n\n<!-- figures -->\n\nnew\n\n<!-- /figures -->\n\nafter\n"
    assert put_between_marks(once, "new") == once
    with pytest.raises(ValueError):
        put_between_marks("# Title\n", "new")
    write_page(EXAMPLE, tmp_path / "docs/page.md", "plot.svg")
    assert (tmp_path / "docs/page.md").read_text().startswith("# Benchmarks\n\n<!-- figures -->\n\n## What it ran on")


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    EXAMPLE.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == EXAMPLE


def test_every_measurement_is_in_a_group() -> None:
    assert {measurement.group for measurement in MEASUREMENTS.values()} | {"mount", "session"} == set(GROUPS)


def test_the_tree_is_the_same_each_time(tmp_path: Path) -> None:
    recipe = replace(
        QUICK, directories=2, files_per_directory=15, big_size=1 << 20, names=20, sampled_names=10, sampled_reads=5
    )
    trees = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        trees.append(make_tree(recipe, tmp_path / name))
    assert trees[0] == trees[1]
    trees[0].save(tmp_path / "manifest")
    assert Tree.load(tmp_path / "manifest") == trees[0]
    assert len(list((tmp_path / "one/huge").iterdir())) == 20
    assert (tmp_path / "one/big/sparse").stat().st_size == 1 << 20
