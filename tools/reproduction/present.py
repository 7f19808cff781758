"""The page of an experiment: its summary in markdown, and its figures."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from kizu.run_folder import replace_file
from reproduction import figures, results
from reproduction.page import Context, Section, Table

_EXPLAINED = (
    "AUROC on the test images, which neither training nor the choice of an epoch has seen, mean ± standard deviation "
    "over the runs. *End of training*, *labelled rule* and *good rule* are the last epoch, the one best on labelled "
    "validation images and the one best on good validation images alone; *worst* is the end of the worst run. *Drop*: "
    "by how much the validation AUROC at the end is below its best of all epochs; *worst test drop*: by how much the "
    "test AUROC at the end is below that of the epoch that the labelled rule picked."
)


def write_page(context: Context) -> tuple[list[Table], list[Path]]:
    """Write the summary and the figures of an experiment; its tables and files."""
    experiment = context.experiment
    sections = []
    if context.rows and not experiment.search:
        sections.append(_areas(context))
    if experiment.present and (context.rows or not experiment.data):
        module = importlib.import_module(f"reproduction.{experiment.present}")
        made: Sequence[Section] = module.sections(context)
        sections += made
    command = f"    .venv/bin/python tools/reproduce.py {experiment.name}\n"
    parts = [f"# {experiment.name}\n", f"{experiment.title}.\n", *([f"{experiment.text}\n"] if experiment.text else [])]
    page = context.file(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    replace_file(page, "\n".join([*parts, command, *(section.markdown() for section in sections)]).encode())
    files = [path for section in sections for path in (*section.files, *section.figures)]
    return [section.table for section in sections if section.table], [page, *files]


def _areas(context: Context) -> Section:
    """The AUROCs of all rows that the CSV file holds."""
    file, figure = context.file(".csv"), context.file(".png")
    labels = list(context.experiment.labelled_variants())
    lines = results.lines_of(results.read_rows(file), labels, context.experiment.data)
    figures.areas(lines, figure)
    text = f"{_EXPLAINED}\n\n{results.provenance_of([row for line in lines for row in line.rows])}"
    return Section(results.table_of(lines), text, [figure], [file])
