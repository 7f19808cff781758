"""Prediction times: from the seconds of single frames to rows, tables and points of a figure."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from systems import ALGAN, SYSTEMS, System

RECORDS = pytest.StashKey[list[dict[str, Any]]]()  # {"system", "runtime", "seconds"} of each benchmark of a run
LABELS = {"torch": "PyTorch eager", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
# A quantile is given where at least one frame lies beyond it.
QUANTILES = {"p50": (50, 1), "p90": (90, 10), "p99": (99, 100)}


@dataclass(frozen=True)
class Row:
    """A system's time on one runtime: "torch", or an engine and a precision, joined by an underscore.

    Attributes:
        rounds: single frames that were timed.
        p50, p90, p99: milliseconds from a frame to its score; None where there were too few frames.
    """

    system: str
    runtime: str
    rounds: int
    p50: float
    p90: float | None = None
    p99: float | None = None


def condensed(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """A row for each system and runtime, in their order."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for record in records:
        seconds.setdefault((record["system"], record["runtime"]), []).extend(record["seconds"])
    rows = []
    for system in SYSTEMS:
        for (name, runtime), values in seconds.items():
            if name == system.name:
                found = {
                    key: float(f"{np.percentile(values, percent) * 1e3:.4g}")
                    for key, (percent, least) in QUANTILES.items()
                    if len(values) >= least
                }
                rows.append(Row(name, runtime, len(values), **found))
    return rows


def ratio(row: Row, rows: Iterable[Row]) -> float | None:
    """The row's median over ALGAN-image's on the same runtime; None if that was not measured."""
    found = [other.p50 for other in rows if other.system == ALGAN.name and other.runtime == row.runtime]
    return row.p50 / found[0] if found else None


def shown(milliseconds: float) -> str:
    """Three digits, never as a power of ten."""
    return f"{float(f'{milliseconds:.3g}'):g}"


def runtime_label(runtime: str) -> str:
    """As tables call it."""
    if runtime == "torch":
        return LABELS[runtime]
    engine, precision = runtime.rsplit("_", 1)
    return f"{LABELS.get(engine, engine)} {precision}"


def text(rows: Sequence[Row]) -> str:
    """The rows as a table for a terminal, by runtime."""
    head = ("", "", "p50 ms", "p90", "p99", "rounds", f"/ {ALGAN.label}")
    lines: list[tuple[str, ...]] = [head]
    for runtime in dict.fromkeys(row.runtime for row in rows):
        for row in rows:
            if row.runtime == runtime:
                label = next(system.label for system in SYSTEMS if system.name == row.system)
                times = ("-" if value is None else shown(value) for value in (row.p50, row.p90, row.p99))
                times_algan = ratio(row, rows)
                share = "-" if times_algan is None else f"{times_algan:.2f}"
                lines.append((runtime_label(runtime), label, *times, str(row.rounds), share))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = (
        [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table: a line a runtime, a column a system, cells of p50 / p90 / p99 and the ratio."""
    present = [system for system in SYSTEMS if any(row.system == system.name for row in rows)]
    lines = [
        "| ms a frame | " + " | ".join(system.label for system in present) + " |",
        "|---" * (len(present) + 1) + "|",
    ]
    for runtime in dict.fromkeys(row.runtime for row in rows):
        by_system = {row.system: row for row in rows if row.runtime == runtime}
        cells = [_cell(by_system.get(system.name), rows) for system in present]
        lines.append(f"| {runtime_label(runtime)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row | None, rows: Sequence[Row]) -> str:
    if row is None:
        return ""
    times = " / ".join(shown(value) for value in (row.p50, row.p90, row.p99) if value is not None)
    if row.system == ALGAN.name:
        return times
    times_algan = ratio(row, rows)
    return times if times_algan is None else f"{times} ({times_algan:.1f}×)"


# AUROCs


def system_of(variant: str) -> str | None:
    """The trained system that a variant of an experiment names, as in ``System.alike``; None if it names none."""
    words = set(re.sub(r"[^a-z]+", " ", variant.lower()).split())
    consistent = "_consistency" if "consistency" in words and not words & {"without", "no"} else ""
    if words & {"autoencoder", "ae"}:
        return "autoencoder"
    if "fanogan" in words or {"f", "anogan"} <= words:
        return "f_anogan"
    if "anogan" in words:
        return "anogan"
    if "projection" in words:
        return f"bigan_projection{consistent}"
    if "egbad" in words or words & {"concat", "concatenation"}:
        return f"bigan_concat{consistent}"
    return "algan_image" if words & {"algan", "line"} else None


@dataclass(frozen=True)
class Area:
    """A system's AUROC on MNIST: the mean over digits of the mean over seeds."""

    system: str
    auroc: float
    digits: int
    runs: int
    steps: int = 0  # of its search


def areas(files: Iterable[tuple[Path, str, Sequence[str] | None]]) -> list[Area]:
    """The AUROCs of the systems that experiments' CSV files have rows of.

    Args:
        files: a file, which may be missing, the column of the AUROC, and the variants taken (None: all that name a
            system).
    """
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for path, column, variants in files:
        if not path.exists():
            continue
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                variant, value = row.get("variant") or "", row.get(column) or ""
                system = system_of(variant)
                taken = variant in variants if variants is not None else system != ALGAN.name
                if system is None or not taken or not value:
                    continue
                steps = json.loads(row.get("changes") or "{}").get("steps", 0)
                found.setdefault((system, steps), {}).setdefault(row.get("data") or "", []).append(float(value))
    return [
        Area(
            system,
            fmean(fmean(values) for values in by_digit.values()),
            len(by_digit),
            sum(len(values) for values in by_digit.values()),
            steps,
        )
        for (system, steps), by_digit in found.items()
    ]


def measured_system(area: Area) -> System | None:
    """The measured system that takes as long as this trained one; None if there is none of as many steps."""
    return next((system for system in SYSTEMS if area.system in system.alike and system.steps == area.steps), None)
