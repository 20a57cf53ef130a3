"""The order of everything: each repetition asks every contender for every group, and each time another goes first."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

from benchmarks.contenders import Contender, contenders_of
from benchmarks.dataset import Recipe
from benchmarks.images import Image
from benchmarks.machine import describe_machine
from benchmarks.measurements import GROUPS, MEASUREMENTS, MEMORY, MOUNTING
from benchmarks.results import Results, Sample
from benchmarks.stage import Outcome, Stage

__all__ = ["Plan", "run"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    images: tuple[Image, ...]
    #: Names of measurements; those of mounting among them.
    measurements: Collection[str]
    repetitions: int
    timeout: float
    #: Who takes longer than so many seconds for a measurement is asked once only.
    slow: float
    recipe: Recipe

    def wanted(self, group: str) -> list[str]:
        if group in MOUNTING:
            return [group] if group in self.measurements else []
        return [name for name, one in MEASUREMENTS.items() if one.group == group and name in self.measurements]


class _Run:
    def __init__(self, plan: Plan, stage: Stage, say: Say) -> None:
        self._plan = plan
        self._stage = stage
        self._say = say
        self._taking_part: dict[str, list[Contender]] = {}
        #: Image, contender, measurement: not to be asked for again.
        self._enough: set[tuple[str, str, str]] = set()
        self.results = Results(
            describe_machine(),
            {
                "repetitions": plan.repetitions,
                "timeout": plan.timeout,
                "slow": plan.slow,
                "recipe": asdict(plan.recipe),
            },
        )

    def probe(self) -> None:
        for image in self._plan.images:
            self._taking_part[image.name] = []
            self.results.left_out[image.name] = {}
            for contender in contenders_of(image):
                obstacle = self._stage.check(contender, image)
                if obstacle is None:
                    self._taking_part[image.name].append(contender)
                else:
                    self.results.left_out[image.name][contender.name] = obstacle
                    self._say(f"{image.title}: without {contender.name}: {obstacle}")

    def repeat(self, repetition: int) -> None:
        for image in self._plan.images:
            contenders = self._taking_part[image.name]
            first = repetition % len(contenders) if contenders else 0
            memory: dict[str, dict[str, float]] = {}
            for group in GROUPS:
                for contender in contenders[first:] + contenders[:first]:
                    names = self._still_wanted(image, contender, group)
                    if not names:
                        continue
                    outcome = self._measure(image, contender, group, names)
                    self._take(image, contender, repetition, names, outcome)
                    largest = memory.setdefault(contender.name, {})
                    for name, value in _memory_values(outcome):
                        largest[name] = max(value, largest.get(name, 0))
            self.results.samples += [
                Sample(image.name, contender, name, "memory", repetition, value)
                for contender, values in memory.items()
                for name, value in values.items()
            ]

    def _still_wanted(self, image: Image, contender: Contender, group: str) -> list[str]:
        wanted = self._plan.wanted(group)
        return [name for name in wanted if (image.name, contender.name, name) not in self._enough]

    def _measure(self, image: Image, contender: Contender, group: str, names: list[str]) -> Outcome:
        """Where nothing could be measured at all, that is what is said of each measurement."""
        try:
            outcome = self._stage.measure(contender, image, group, names)
        except RuntimeError as error:
            return _failed(names, str(error))
        mounting = next((entry for entry in outcome.measurements if entry["measurement"] == "mount"), {})
        if "seconds" not in mounting and mounting and group != "mount":
            return _failed(names, f"mounting: {mounting.get('failed', 'takes too long')}")
        return outcome

    def _take(self, image: Image, contender: Contender, repetition: int, names: list[str], outcome: Outcome) -> None:
        said = []
        for entry in outcome.measurements:
            name = entry["measurement"]
            if name not in names and not ("mount" in names and name in MOUNTING):
                continue  # a mount that was made for something else
            seconds = entry.get("seconds")
            problem = "timeout" if "timeout" in entry else entry.get("failed")
            if seconds is None or seconds > self._plan.slow:
                self._enough.add((image.name, contender.name, name))
            self.results.samples.append(
                Sample(image.name, contender.name, name, entry["phase"], repetition, seconds, problem,
                       entry.get("reader_cpu"), entry.get("server_cpu"))
            )  # fmt: skip
            said.append(f"{name} {entry['phase']} {problem or f'{seconds:.3f}'}")
        self._say(f"{image.title}, {contender.name}: {', '.join(said)}")


def _failed(names: list[str], reason: str) -> Outcome:
    return Outcome([{"measurement": name, "phase": "cold", "failed": reason} for name in names], {})


def _memory_values(outcome: Outcome) -> list[tuple[str, float]]:
    named = [("idle_" + name, value) for name, value in outcome.memory.get("idle", {}).items()]
    named += list(outcome.memory.get("after", {}).items())
    return [(name, value) for name, value in named if name in MEMORY]


def run(plan: Plan, stage: Stage, say: Say) -> Results:
    """Measure all of it."""
    running = _Run(plan, stage, say)
    running.probe()
    for repetition in range(plan.repetitions):
        say(f"repetition {repetition + 1} of {plan.repetitions}")
        running.repeat(repetition)
    return running.results
