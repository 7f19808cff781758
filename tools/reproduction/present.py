"""The page of an experiment: its summary in markdown, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kizu.run_folder import replace_file
from reproduction import figures, results
from reproduction.experiments import Experiment
from reproduction.runs import Planned

_EXPLAINED = (
    "AUROC on the test images, which neither training nor the choice of an epoch has seen, mean ± standard deviation "
    "over the runs. *End of training*, *labelled rule* and *good rule* are the last epoch, the one best on labelled "
    "validation images and the one best on good validation images alone; *worst* is the end of the worst run. *Drop*: "
    "by how much the validation AUROC at the end is below its best of all epochs; *worst test drop*: by how much the "
    "test AUROC at the end is below that of the epoch that the labelled rule picked."
)


@dataclass(frozen=True)
class Page:
    """What was written of an experiment: its table and its files."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    files: Sequence[Path]


def page(experiment: Experiment, rows: Sequence[Planned], output: Path, folder: Path) -> Page:
    """Write the summary and the figures of an experiment, of all rows that its CSV file holds."""
    table = folder / f"{experiment.name}.csv"
    lines = results.lines_of(results.read_rows(table), list(experiment.labelled_variants()), experiment.data)
    parts = [f"# {experiment.name}\n", f"{experiment.title}.\n"]
    if experiment.text:
        parts.append(f"{experiment.text}\n")
    head: Sequence[str] = ()
    body: Sequence[Sequence[str]] = ()
    files = []
    if lines:
        head, body = results.table_of(lines)
        figures.areas(lines, folder / f"{experiment.name}.png")
        files = [table, folder / f"{experiment.name}.png"]
        parts += [f"{results.markdown(head, body)}", f"{_EXPLAINED}\n", _provenance(lines)]
        parts.append(f"![{experiment.name}]({experiment.name}.png)\n")
    path = folder / f"{experiment.name}.md"
    replace_file(path, "\n".join(parts).encode())
    return Page(head, body, [path, *files])


def _provenance(lines: Sequence[results.Line]) -> str:
    rows = [row for line in lines for row in line.rows]

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows if name in row}))

    dirty = " (changed)" if any(row.get("dirty") == "True" for row in rows) else ""
    longest = max(row["seconds"] for row in rows)
    return (
        f"Trained by revision {all_of('revision')}{dirty} with torch {all_of('torch')} on {all_of('processor')}, one "
        f"core a run, {longest / 60:.0f} min the longest; seeds {all_of('seed')}.\n"
    )
