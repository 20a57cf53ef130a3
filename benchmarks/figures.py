"""Medians, spreads and ratios of what was measured. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.results import Results

__all__ = ["Figures", "Spread", "ratio_of", "spread_of"]

VIEWFS = "viewfs"


@dataclass(frozen=True)
class Spread:
    """The middle of some values, and how far they reach."""

    median: float
    low: float
    high: float
    count: int


def spread_of(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(median(values), min(values), max(values), len(values))


def ratio_of(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    """Of the medians; its spread is that of the ratios within each repetition that has both."""
    pairs = [ours[repetition] / theirs[repetition] for repetition in ours if theirs.get(repetition)]
    if not pairs:
        return None
    return Spread(median(ours.values()) / median(theirs.values()), min(pairs), max(pairs), len(pairs))


class Figures:
    """The samples of a run, by image, contender, measurement and phase."""

    def __init__(self, results: Results) -> None:
        self._timeout: float = results.settings["timeout"]
        self._values: dict[tuple[str, str, str, str], dict[int, float]] = defaultdict(dict)
        self._cpu: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
        self._problems: dict[tuple[str, str, str, str], str] = {}
        self._contenders: dict[str, list[str]] = defaultdict(list)
        for sample in results.samples:
            key = (sample.image, sample.contender, sample.measurement, sample.phase)
            if sample.contender not in self._contenders[sample.image]:
                self._contenders[sample.image].append(sample.contender)
            if sample.value is not None:
                self._values[key][sample.repetition] = sample.value
                if sample.reader_cpu is not None:
                    self._cpu[key].append((sample.reader_cpu, sample.server_cpu or 0.0))
            elif sample.problem is not None:
                self._problems[key] = sample.problem

    def contenders(self, image: str) -> list[str]:
        """Those that have a sample."""
        return self._contenders[image]

    def problem(self, image: str, contender: str, measurement: str, phase: str) -> str | None:
        """Why there is no figure, or why it is not to be trusted: once failed is failed."""
        return self._problems.get((image, contender, measurement, phase))

    def spread(self, image: str, contender: str, measurement: str, phase: str) -> Spread | None:
        values = self._values.get((image, contender, measurement, phase))
        if not values or self.problem(image, contender, measurement, phase):
            return None
        return spread_of(list(values.values()))

    def ratio(self, image: str, other: str, measurement: str, phase: str) -> Spread | None:
        """viewfs / other: below 1 viewfs takes less."""
        if not all(self.spread(image, name, measurement, phase) for name in (VIEWFS, other)):
            return None
        ours, theirs = (self._values[image, name, measurement, phase] for name in (VIEWFS, other))
        return ratio_of(ours, theirs)

    def bound(self, image: str, other: str, measurement: str, phase: str) -> float | None:
        """What viewfs / other is below, where the other took longer than anybody may."""
        ours = self.spread(image, VIEWFS, measurement, phase)
        late = self.problem(image, other, measurement, phase) == "timeout"
        return ours.median / self._timeout if ours and late else None

    def cpu(self, image: str, contender: str, measurement: str, phase: str) -> tuple[float, float] | None:
        """Median processor seconds: reader, server."""
        pairs = self._cpu.get((image, contender, measurement, phase))
        return (median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)) if pairs else None
