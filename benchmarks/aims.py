"""What viewfs wants to reach, and whether it does. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.contenders import KERNEL, VIEWFS
from benchmarks.dataset import BIG_FILES
from benchmarks.figures import Figures
from benchmarks.images import IMAGES
from benchmarks.measurements import MEASUREMENTS, title_of

__all__ = ["Aim", "aims"]

_READ = tuple(f"read-{name}" for name in BIG_FILES)
_VIEWFS_IMAGES = tuple(image for image in IMAGES if image.viewfs_type is not None)


@dataclass(frozen=True)
class Aim:
    """One thing to reach."""

    what: str
    limit: float
    #: Behind the numbers: "" for a ratio, otherwise a unit.
    unit: str
    #: None if it was not measured.
    found: float | None
    #: What else has to be known.
    detail: str = ""

    @property
    def reached(self) -> bool:
        return self.found is not None and self.found <= self.limit

    @property
    def excess(self) -> float | None:
        """By how much the limit is exceeded, as a part of it; negative: how much is left."""
        return None if self.found is None else self.found / self.limit - 1


def aims(figures: Figures) -> list[Aim]:
    """In the order of the report. Images without a sample of viewfs' are left out."""
    images = [image for image in _VIEWFS_IMAGES if VIEWFS.name in figures.contenders(image.name)]
    found: list[Aim] = []
    for image in images:
        for measurement in ("find", "find-small", "small"):
            found.append(_against_best_server(figures, image.name, image.title, measurement))
    for image in images:
        found.append(_warm(figures, image.name, image.title))
    for image in images:
        found += _in_order(figures, image.name, image.title)
    for image in images:
        mounting = figures.spread(image.name, VIEWFS.name, "mount", "cold")
        idle = figures.spread(image.name, VIEWFS.name, "idle_private", "memory")
        found.append(
            Aim(f"{image.title}: {title_of('mount')}", 60, " ms", mounting.median * 1000 if mounting else None)
        )
        found.append(Aim(f"{image.title}: {title_of('idle_private')}", 40, " MiB", idle.median if idle else None))
    return found


def _against_best_server(figures: Figures, image: str, title: str, measurement: str) -> Aim:
    """Where all others were too slow to be measured, what the ratio is below."""
    what = f"{title}: {title_of(measurement)}, cold, to the best other FUSE server"
    others = [name for name in figures.contenders(image) if name not in (VIEWFS.name, KERNEL.name)]
    medians = {
        name: spread.median
        for name in others
        if (spread := figures.spread(image, name, measurement, "cold")) is not None
    }
    if medians:
        best = min(medians, key=lambda name: medians[name])
        ratio = figures.ratio(image, best, measurement, "cold")
        return Aim(what, 0.7, "", ratio.median if ratio else None, best)
    bounds = [bound for name in others if (bound := figures.bound(image, name, measurement, "cold")) is not None]
    return Aim(what, 0.7, "", max(bounds, default=None), "all others took too long" if bounds else "")


def _warm(figures: Figures, image: str, title: str) -> Aim:
    """The worst of all measurements decides."""
    ratios = {
        name: ratio.median
        for name in MEASUREMENTS
        if (ratio := figures.ratio(image, KERNEL.name, name, "warm")) is not None
    }
    limit = 1.1
    over = sorted((name for name in ratios if ratios[name] > limit), key=lambda name: -ratios[name])
    within = f"{len(ratios) - len(over)} of {len(ratios)} within"
    misses = ", ".join(f"{title_of(name)} {ratios[name]:.2f}" for name in over)
    detail = (f"{within}; not: {misses}" if over else within) if ratios else ""
    worst = max(ratios.values(), default=None)
    return Aim(f"{title}: anything warm, to the kernel’s own mount", limit, "", worst, detail)


def _in_order(figures: Figures, image: str, title: str) -> Iterator[Aim]:
    limits = {KERNEL.name: 1.3, "fuse2fs": 0.8} if image == "ext4" else {"squashfuse_ll": 1.0}
    for other, limit in limits.items():
        for measurement in _READ:
            ratio = figures.ratio(image, other, measurement, "cold")
            what = f"{title}: {title_of(measurement)}, cold, to {other}"
            yield Aim(what, limit, "", ratio.median if ratio else None)
