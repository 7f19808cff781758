"""Results: a row a run in a CSV file, and the table over seeds made of it."""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kizu.run_folder import replace_file
from reproduction.page import Table
from reproduction.runs import Planned

RULES = ("last", "labelled", "good")
KEY = ("data", "variant", "seed")
COLUMNS = (
    "experiment",
    *KEY,
    "changes",
    *(f"test_{rule}" for rule in RULES),
    "test_best",  # the best of the rules' epochs
    "test_drop",  # from the epoch that the labelled rule picked to the end
    "validation_best",
    "validation_last",
    "validation_drop",
    "scoring",  # these four: with the score chosen on validation images, where something is chosen
    "weight",
    "validation_chosen",
    "test_chosen",
    *(f"epoch_{rule}" for rule in RULES),
    "epochs",
    *(f"test_{rule}_{part}" for rule in RULES for part in ("seen", "unseen")),
    "train_images",
    "test_good_images",
    "test_seen_images",
    "test_anomalous_images",
    "seconds",
    "kizu",
    "revision",
    "dirty",
    "torch",
    "processor",
    "date",
    "recipe",
    "digest",
)
CHOSEN = ("scoring", "weight", "validation_chosen", "test_chosen")  # columns only of files that have such rows
STAMP = ("revision", "dirty", "kizu", "torch", "processor", "date")
_TEXTS = {*STAMP, "experiment", "data", "variant", "images", "changes", "scoring", "recipe", "digest"}
Row = dict[str, Any]


def row_of(planned: Planned, evaluation: Mapping[str, Any]) -> Row:
    """The row of a finished run."""
    row: Row = {
        **{name: value for name, value in evaluation.items() if name in COLUMNS},
        "experiment": planned.experiment,
        "data": planned.data,
        "variant": planned.variant,
        "seed": planned.seed,
        "changes": json.dumps(planned.changes, sort_keys=True),
        "recipe": planned.run.recipe,
    }
    tests = [row[f"test_{rule}"] for rule in RULES if f"test_{rule}" in row]
    if tests:
        row["test_best"] = max(tests)
    for name, best, last in (
        ("test_drop", "test_labelled", "test_last"),
        ("validation_drop", "validation_best", "validation_last"),
    ):
        if best in row and last in row:
            row[name] = row[best] - row[last]
    return row


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, numbers as numbers, without what is empty; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: _parse(name, text) for name, text in row.items() if text} for row in csv.DictReader(stream)]


def _parse(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    try:
        return int(text)
    except ValueError:
        return float(text)


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write a CSV file; it is whole at any moment."""
    columns = [name for name in columns if name not in CHOSEN or any(name in row for row in rows)]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, stream.getvalue().encode())


def merge_rows(
    path: Path, rows: Sequence[Row], *, lock: Path, key: Sequence[str] = KEY, columns: Sequence[str] = COLUMNS
) -> list[Row]:
    """Add rows to a CSV file in place of those with their keys; all rows that it then holds.

    Rows of other seeds of a variant go too where they came of other settings: their mean would mean nothing.
    """
    new = {tuple(row[name] for name in key) for row in rows}
    recipes = {(row["data"], row["variant"]): row["recipe"] for row in rows if "recipe" in row}
    with locked(lock):
        kept = []
        for held in read_rows(path):
            recipe = held.get("recipe")
            current = recipes.get((held.get("data"), held["variant"]), recipe)
            if tuple(held[name] for name in key) not in new and recipe == current:
                kept.append(held)
        merged = sorted([*kept, *rows], key=lambda row: tuple(row[name] for name in key))
        write_rows(path, merged, columns)
    return merged


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock against other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Line:
    """A line of the summary: a variant's runs, on one data set or (data "all") on all."""

    data: str
    variant: str
    rows: tuple[Row, ...]

    def mean_sd(self, name: str) -> str:
        """Mean and, of several runs, standard deviation of a column; a dash if no run has it."""
        values = self.values(name)
        if not values:
            return "–"
        return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

    def values(self, name: str) -> list[float]:
        """A column's values."""
        return [row[name] for row in self.rows if name in row]

    def worst(self, name: str) -> str:
        """The greatest value of a column."""
        return f"{max(self.values(name)):.3f}" if self.values(name) else "–"

    def least(self, name: str) -> str:
        """The smallest value of a column."""
        return f"{min(self.values(name)):.3f}" if self.values(name) else "–"


def lines_of(rows: Sequence[Row], variants: Sequence[str], data_order: Sequence[str]) -> list[Line]:
    """The summary's lines, in the order of the experiment."""
    found = list(dict.fromkeys(row["data"] for row in rows))
    data = [name for name in data_order if name in found] + sorted(set(found) - set(data_order))
    lines = []
    for name in data:
        for variant in variants:
            lines.append(Line(name, variant, tuple(r for r in rows if (r["data"], r["variant"]) == (name, variant))))
    if len(data) > 1:
        lines += [Line("all", variant, tuple(r for r in rows if r["variant"] == variant)) for variant in variants]
    return [line for line in lines if line.rows]


def table_of(lines: Sequence[Line]) -> Table:
    """The summary's table."""
    head = [
        "data",
        "variant",
        "runs",
        "end of training",
        "worst",
        "labelled rule",
        "good rule",
        "drop",
        "worst drop",
        "worst test drop",
    ]
    parts = [part for part in ("seen", "unseen") if any(line.values(f"test_last_{part}") for line in lines)]
    body = [
        [
            line.data,
            line.variant,
            str(len(line.rows)),
            line.mean_sd("test_last"),
            line.least("test_last"),
            line.mean_sd("test_labelled"),
            line.mean_sd("test_good"),
            line.mean_sd("validation_drop"),
            line.worst("validation_drop"),
            line.worst("test_drop"),
            *(line.mean_sd(f"test_last_{part}") for part in parts),
        ]
        for line in lines
    ]
    return Table(head + [f"end, {part} parts" for part in parts], body)


def provenance_of(rows: Sequence[Row]) -> str:
    """Who trained what the rows say, on what and for how long."""

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows if name in row}))

    dirty = " (changed)" if any(row.get("dirty") == "True" for row in rows) else ""
    longest = max(row["seconds"] for row in rows)
    return (
        f"Trained by revision {all_of('revision')}{dirty} with torch {all_of('torch')} on {all_of('processor')}, one "
        f"core a run, {longest / 60:.1f} min the longest; seeds {all_of('seed')}."
    )
