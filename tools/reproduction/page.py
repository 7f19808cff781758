"""What the pages of experiments are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reproduction.experiments import Experiment
from reproduction.runs import Planned, Run


@dataclass(frozen=True)
class Context:
    """What a page is made from.

    Attributes:
        experiment: the experiment.
        rows: what this call of the command has brought to its end.
        seeds: of this call.
        output: where the runs lie.
        folder: where results go.
    """

    experiment: Experiment
    rows: Sequence[Planned]
    seeds: Sequence[int]
    output: Path
    folder: Path

    def file(self, ending: str) -> Path:
        """A file of results: the experiment's name with an ending."""
        return self.folder / f"{self.experiment.name}{ending}"

    @property
    def lock(self) -> Path:
        """What is locked while its CSV files are changed."""
        return self.output / f"{self.experiment.name}.lock"

    def of_first_seed(self) -> list[tuple[str, str, Run]]:
        """Data, variant and run of the first seed of which runs are finished."""
        first = next((seed for seed in self.seeds if any(row.seed == seed for row in self.rows)), None)
        return [(row.data, row.variant, row.run) for row in self.rows if row.seed == first]


@dataclass(frozen=True)
class Table:
    """A table of text."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in markdown."""
        rows = [self.head, ["---"] * len(self.head), *self.body]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@dataclass(frozen=True)
class Section:
    """A part of a page: a table, text, figures; in this order, each may be missing."""

    table: Table | None = None
    text: str = ""
    figures: Sequence[Path] = ()
    files: Sequence[Path] = field(default=())  # others that belong to it

    def markdown(self) -> str:
        """The section in markdown."""
        parts = [self.table.markdown()] if self.table else []
        parts += [f"{self.text}\n"] if self.text else []
        parts += [f"![{path.stem}]({path.name})\n" for path in self.figures]
        return "\n".join(parts)
