"""The figures of a section."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

RATIO: Final = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure with a sample for each repetition. The median is compared with the goal, if there is one."""

    name: str
    samples: Sequence[float]
    unit: str = RATIO
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met. None without a goal."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "samples": list(self.samples),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.met,
        }


def ratio(name: str, of: Row, to: Row, at_least: float | None = None, at_most: float | None = None) -> Row:
    """`of` over `to`, repetition by repetition: each pair was measured under the same load."""
    samples = [a / b for a, b in zip(of.samples, to.samples, strict=True)]
    return Row(name, samples, at_least=at_least, at_most=at_most)


def repeated(times: int, measure: Callable[[], Mapping[str, float]], unit: str) -> dict[str, Row]:
    """Measure several times and return a row for each name."""
    runs = [measure() for _ in range(times)]
    return {name: Row(name, [run[name] for run in runs], unit) for name in runs[0]}


def cpu_rows(name: str, figures: Mapping[str, Row]) -> Iterator[Row]:
    """Rows of figures named "what, here" and perhaps "what, there", and the ratio of the two if there are both."""
    for key, row in figures.items():
        yield replace(row, name=f"{name}, {key}")
    for key, there in figures.items():
        if key.endswith(", there"):
            what = key.removesuffix(", there")
            yield ratio(f"{name}, {what}, here / there", figures[f"{what}, here"], there)


def number(value: float) -> str:
    """At least three significant digits, with spaces between thousands."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.{3 - len(str(int(value)))}f}"
