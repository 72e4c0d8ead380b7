"""What was wrong with the labels of a training set: counted before training starts, with an example each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class LabelReport:
    """Counts over all labels of a data set."""

    found: int = 0
    """Labels looked at: polygons, segments, or labelled objects and classes of rasters."""
    used: int = 0
    """Those that training will learn from."""
    problems: Counter[str] = field(default_factory=Counter)
    """How often each thing was wrong, by a short description."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first case of each problem: where it is."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what is unusual, though not wrong."""

    def bad(self, problem: str, where: str, count: int = 1) -> None:
        """Count a problem."""
        if count:
            self.problems[problem] += count
            self.examples.setdefault(problem, where)

    def include(self, other: LabelReport) -> None:
        """Add the counts of another part of the data."""
        self.found += other.found
        self.used += other.used
        for problem, count in other.problems.items():
            self.bad(problem, other.examples[problem], count)
        self.notes += [note for note in other.notes if note not in self.notes]

    def lines(self) -> list[str]:
        """One line for people per finding."""
        head = f"{self.used:,} of {self.found:,} labels can be used"
        rows = [
            f"{count:,} {problem} (first: {self.examples[problem]})"
            for problem, count in self.problems.most_common()
        ]
        return [head, *rows, *self.notes]

    def to_json(self) -> dict[str, object]:
        """The counts for a file."""
        return {
            "found": self.found,
            "used": self.used,
            "problems": dict(self.problems),
            "examples": self.examples,
            "notes": self.notes,
        }
