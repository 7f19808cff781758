"""The folder of a training run: whose it is, and its files, each replaced as a whole and never half-written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch

import kizu
from kizu.errors import TrainingError
from kizu.settings import CHECKPOINT, RULES, SETTINGS, TrainingSettings, epoch_file, read_settings


def load_file(path: Path) -> dict[str, Any]:
    """Load a file of a run, weights only; raises TrainingError."""
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: there is no such file; train first, or check the folder") from error
    except Exception as error:  # a damaged file raises many kinds
        raise TrainingError(f"{path} cannot be loaded: {error}") from error
    return values


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is whole at any moment; on a failure the old one stays and nothing lies beside it."""
    with _replaced(path) as stream:
        stream.write(data)


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_file(values: Mapping[str, Any], path: Path) -> None:
    """Write what ``load_file`` reads; the file is whole at any moment."""
    with _replaced(path) as stream:  # straight into the file: buffered fakes can be gigabytes
        torch.save(dict(values), stream)


def holds_run(folder: Path) -> bool:
    """Whether a run has left a checkpoint in the folder."""
    return (folder / CHECKPOINT).exists()


def check(folder: Path, settings: TrainingSettings, resume: bool) -> None:
    """Raise TrainingError unless the folder is free, or with ``resume`` holds a run of these settings."""
    stands = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not stands.is_dir() or not os.access(stands, os.W_OK):
        raise TrainingError(f"{folder} cannot be the run's folder: {stands} is not a folder that can be written")
    if not resume:
        if holds_run(folder):
            raise TrainingError(f"{folder} holds a training run already; go on with --resume or name another folder")
        return
    held = read_settings(folder)
    allowed = ("epochs", "threads")
    names = [item.name for item in fields(held) if item.name not in allowed]
    changed = [name for name in names if getattr(held, name) != getattr(settings, name)]
    if changed:
        raise TrainingError(
            f"{folder} was trained with other settings ({', '.join(changed)}); resume with the same, or start anew "
            "in another folder"
        )
    if not holds_run(folder):
        raise TrainingError(f"{folder}: there is no {CHECKPOINT} to resume from; train without --resume")


def claim(folder: Path, settings: TrainingSettings, resume: bool) -> None:
    """Make the folder this run's own; what an earlier run without a checkpoint left there is removed."""
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        for rule in RULES:
            epoch_file(folder, rule).unlink(missing_ok=True)
    about = {
        "settings": settings.as_dict(),
        "versions": {"kizu": kizu.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }
    replace_file(folder / SETTINGS, json.dumps(about, indent=1).encode())
