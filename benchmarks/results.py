"""What was measured, as it is kept in results.json: one sample a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Results", "Sample"]


@dataclass(frozen=True)
class Sample:
    """One contender, one measurement, one repetition."""

    image: str
    contender: str
    measurement: str
    #: cold, warm, or memory.
    phase: str
    repetition: int
    #: Seconds, or MiB of memory; None where there is none.
    value: float | None = None
    #: Why there is none: "timeout", or what went wrong.
    problem: str | None = None
    #: Processor seconds of the processes that read, and of those that serve.
    reader_cpu: float | None = None
    server_cpu: float | None = None


@dataclass
class Results:
    """One run."""

    #: What it ran on: title → text.
    machine: dict[str, str]
    #: repetitions, timeout, slow (all numbers), and the recipe of the data set.
    settings: dict[str, Any]
    #: image → contender → why it was left out.
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def save(self, path: Path) -> None:
        samples = ",\n".join("  " + json.dumps(_without_nothing(asdict(sample))) for sample in self.samples)
        head = json.dumps(
            {"schema": 1, "machine": self.machine, "settings": self.settings, "left_out": self.left_out},
            indent=1,
            ensure_ascii=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{head[:-2]},\n "samples": [\n{samples}\n ]\n}}\n', encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        document = json.loads(path.read_text(encoding="utf-8"))
        samples = [Sample(**sample) for sample in document["samples"]]
        return cls(document["machine"], document["settings"], document["left_out"], samples)


def _without_nothing(sample: dict[str, Any]) -> dict[str, Any]:
    there = {key: value for key, value in sample.items() if value is not None}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in there.items()}
