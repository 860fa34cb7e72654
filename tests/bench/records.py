"""What was measured: records, written to a file as they come, and the table made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One figure. With `timeout`, the runs were ended at `median`, which is a lower bound; `note` says more."""

    scenario: str
    backend: str
    n: int
    metric: str
    median: float
    min: float
    max: float
    unit: str
    runs: int = 1
    timeout: bool = False
    note: str = ""

    @property
    def what(self) -> tuple[str, str, int, str]:
        """What it is the figure of."""
        return self.scenario, self.backend, self.n, self.metric

    @property
    def text(self) -> str:
        """For people: the median, and the spread of several runs."""
        if self.timeout:
            return f"> {_number(self.median)}"
        spread = f" ({_number(self.min)}–{_number(self.max)})" if self.runs > 1 else ""
        return f"{_number(self.median)}{spread}"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}" if abs(value) >= 0.001 else f"{value:.1e}"


@dataclass(frozen=True)
class Sample:
    """One run: what it took, or the limit at which it was ended."""

    value: float
    timeout: bool = False
    note: str = ""


class Results:
    """All records so far; `path` is written anew with each of them. With `keep`, those of earlier runs stay until replaced."""

    def __init__(self, path: Path, context: dict[str, object], *, keep: bool) -> None:
        self._path, self._context = path, context
        self.records: list[Record] = load(path) if keep and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, scenario: str, backend: str, n: int, metric: str, unit: str, samples: Sequence[Sample]) -> None:
        """The median of `samples`. Several runs that disagree about timing out are what the majority is."""
        values = sorted(sample.value for sample in samples)
        median = statistics.median(values)
        late = sum(sample.timeout for sample in samples) * 2 >= len(samples)
        notes = list(dict.fromkeys(sample.note for sample in samples if sample.note))
        record = Record(
            scenario, backend, n, metric, median, values[0], values[-1], unit, len(values), late, "; ".join(notes)
        )
        self.records = [old for old in self.records if old.what != record.what] + [record]
        self._write()
        note = f"  {record.note}" if record.note else ""
        print(f"  {scenario:22} {backend:16} n={n:<4} {metric}: {record.text} {unit}{note}", flush=True)

    def _write(self) -> None:
        whole = json.dumps([asdict(record) for record in self.records], indent=1)
        partial = self._path.with_suffix(".partial")
        partial.write_text(whole + "\n")
        partial.replace(self._path)  # Never half a file, whenever it is read.
        context = self._path.with_name(f"{self._path.stem}-context.json")
        context.write_text(json.dumps(self._context, indent=1) + "\n")


def load(path: Path) -> list[Record]:
    return [Record(**item) for item in json.loads(path.read_text())]
