"""What the tests of training and export share: tiny settings, and the comparison of two runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kizu.progress import Progress
from kizu.run_folder import load_file
from kizu.settings import CHECKPOINT, LOG, TrainingSettings

TINY = {"width": 4, "latent_dim": 8}


def tiny(data: Path, **changes: Any) -> TrainingSettings:
    """Settings of a run that takes a fraction of a second."""
    values: dict[str, Any] = {
        "data": str(data),
        "config": TINY,
        "size": 32,
        "epochs": 4,
        "batch_size": 4,
        "validate_every": 2,
        "autocast": "off",
        "threads": 1,
        "augmentation": ("horizontal_flip", "rotation"),
    }
    return TrainingSettings(**{**values, **changes})


class Watch(Progress):
    """Calls ``see(epoch, batch, values)`` after every batch and, with values, after every epoch."""

    def __init__(self, see: Any) -> None:
        self.see = see
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def reading(self, images: int) -> Any:
        yield lambda: None

    @contextmanager
    def training(self, epochs: int, batches: int) -> Any:
        def report(*, epoch: int, batch: int, losses: Mapping[str, Any], values: Any = None) -> None:
            self.see(epoch, batch, values)

        yield report


def read_log(run: Path) -> list[dict[str, str]]:
    """The rows of a run's log."""
    with (run / LOG).open(newline="") as stream:
        return list(csv.DictReader(stream))


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested values do not have the same bits."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
        return [] if same else [where]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if list(one) != list(other):
            return [f"{where}: {list(one)} {list(other)}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, Sequence) and not isinstance(one, str):
        if len(one) != len(other):
            return [f"{where}: {len(one)} {len(other)}"]
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    return [] if type(one) is type(other) and one == other else [f"{where}: {one!r} {other!r}"]


def without_seconds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def run_differences(one: Path, other: Path) -> list[str]:
    """Where two runs differ: files, networks, optimisers, generator, history, log; not in how long they took."""
    names = [sorted(path.name for path in run.iterdir()) for run in (one, other)]
    found = [] if names[0] == names[1] else [f"files: {names}"]
    for name in names[0]:
        if name.endswith(".pt") and (other / name).exists():
            a, b = (load_file(run / name) for run in (one, other))
            if name == CHECKPOINT:
                a, b = ({**value, "history": without_seconds(value["history"])} for value in (a, b))
            found += differences(a, b, name)
    return found + differences(without_seconds(read_log(one)), without_seconds(read_log(other)), LOG)
