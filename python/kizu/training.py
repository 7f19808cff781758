"""Training: seed, loop, validation, checkpoints, resume.

A run is a folder: ``settings.json``, ``log.csv`` (one row an epoch), ``checkpoint.pt`` (where to resume) and
``epoch-<rule>.pt`` (the network at the epoch that each rule picked). Each is replaced as a whole, never half-written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kizu import run_folder
from kizu.data import Augmentation, Split
from kizu.data.prepared import PreparedImages
from kizu.engine import default_threads
from kizu.errors import TrainingError
from kizu.method import Method, TrainingState
from kizu.progress import Progress, no_progress
from kizu.run_folder import load_file, replace_file, save_file
from kizu.settings import CHECKPOINT, LOG, TrainingSettings, epoch_file
from kizu.validation import Validation

_SAVE_EVERY = 300.0  # seconds after which a checkpoint is written between validations


@dataclass(frozen=True)
class Picked:
    """The epoch that a rule picked, and the rule's value there."""

    epoch: int
    value: float


@dataclass(frozen=True)
class Outcome:
    """How a call of ``train`` ended.

    Attributes:
        folder: the run.
        epochs: epochs that are complete.
        finished: False if it was interrupted; ``train(..., resume=True)`` goes on.
        picked: the epoch of each rule that could be applied.
    """

    folder: Path
    epochs: int
    finished: bool
    picked: Mapping[str, Picked]


def train(
    settings: TrainingSettings,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Outcome:
    """Train a method and keep the run in ``folder``.

    Args:
        settings: what to train on what.
        folder: the run's folder; made if needed.
        resume: go on from the folder's checkpoint; the result is bit for bit that of an unbroken run.
        progress: is told of epochs and losses.

    Returns:
        The outcome; an interrupt (Ctrl-C) ends the step in hand, writes a checkpoint and returns normally.

    Raises:
        TrainingError: bad settings, a folder that holds another run, nothing to resume.
        DataError: the data cannot be used.
    """
    folder = Path(folder)
    run_folder.check(folder, settings, resume)
    dataset = settings.dataset()
    split = settings.divide(dataset)
    spec = settings.prepare(dataset)
    method = settings.create(spec)
    if settings.epochs < method.first_scored_epoch:
        name, lower = method.scored_after, settings.epochs // 2
        raise TrainingError(
            f"with its {name} of {method.first_scored_epoch - 1} {settings.method} can score from epoch "
            f"{method.first_scored_epoch} on, but epochs is {settings.epochs}; train longer"
            + (f", or lower it: kizu train --set {name}={lower}" if lower else "")
        )
    batch_size = min(settings.batch_size, len(split.train))
    if batch_size < method.least_batch:
        raise TrainingError(
            f"{settings.method} trains on batches of at least {method.least_batch} images, but batch_size is "
            f"{settings.batch_size} and there are {len(split.train)} training images; give it more"
        )
    method.start(batches=len(split.train) // batch_size, batch_size=batch_size)
    progress.note(describe(split))
    threads = settings.threads or default_threads()
    with _torch_settings(threads):
        with progress.reading(len(split.train) + len(split.validation)) as step:
            images = PreparedImages.read(split.train, spec, threads=threads, progress=step)
            rng = _rng(settings.seed, 0)
            validation = Validation.read(split, spec, threads=threads, rng=rng, progress=step)
        names = [sample.name for sample in split.train]
        run = _Run(settings, folder, method, images, names, validation, dataset.augmentation, batch_size)
        if resume:
            run.load()
        run_folder.claim(folder, settings, resume)
        return run.go(progress)


def describe(split: Split) -> str:
    """How many images each part of a split holds, and which false-reject rates its calibration allows to promise."""
    counts = ", ".join(f"{len(getattr(split, part))} {part}" for part in ("train", "validation", "calibration", "test"))
    parts = len({sample.group for sample in split.calibration})
    promise = f"{parts} calibration parts allow a false-reject rate of {1 / (parts + 1):.2g} or more to be promised"
    return f"images: {counts}; {promise if parts else 'without calibration images no threshold can be promised'}"


class _Run:
    """One training in progress."""

    def __init__(
        self,
        settings: TrainingSettings,
        folder: Path,
        method: Method,
        images: PreparedImages,
        names: list[str],
        validation: Validation,
        augmentation: Augmentation,
        batch_size: int,
    ) -> None:
        self.settings, self.folder, self.method = settings, folder, method
        self.images, self.names = images, names
        self.validation, self.augmentation, self.batch_size = validation, augmentation, batch_size
        self.batches = len(images) // batch_size  # what is left over of a shuffled epoch is not used
        self.digests = [hashlib.sha256(images.images.data).hexdigest(), validation.digest]
        self.state = TrainingState(
            epoch=1,
            batch_index=0,
            optimizers=method.optimizers(),
            generator=torch.Generator().manual_seed(settings.seed),
            autocast=settings.autocast == "bf16" or (settings.autocast == "auto" and has_bf16()),
        )
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, tuple[float, int]] = {}  # of the epoch in hand: a loss's sum, and over how many batches
        self.picked: dict[str, Picked] = {}
        self.interrupted = False
        self.saved = time.monotonic()

    def go(self, progress: Progress) -> Outcome:
        settings, state = self.settings, self.state
        self.method.train()
        with self._interrupts(), progress.training(settings.epochs, self.batches) as report:
            while state.epoch <= settings.epochs and not self.interrupted:
                self._epoch(report)
        if self.interrupted or not run_folder.holds_run(self.folder):
            self.save()
        return Outcome(self.folder, state.epoch - 1, state.epoch > settings.epochs, dict(self.picked))

    def _epoch(self, report: Any) -> None:
        state = self.state
        started = time.monotonic()
        order = _rng(self.settings.seed, state.epoch).permutation(len(self.images))
        while state.batch_index < self.batches:
            if self.interrupted:
                return
            losses = self._step(order)
            report(epoch=state.epoch, batch=state.batch_index, losses=losses)
            if time.monotonic() - self.saved > _SAVE_EVERY:
                self.save()
        last = state.epoch == self.settings.epochs
        scores = state.epoch >= self.method.first_scored_epoch
        validated = scores and (last or state.epoch % self.settings.validate_every == 0)
        row: dict[str, float] = {"epoch": state.epoch}
        row |= {name: total / count for name, (total, count) in self.sums.items()}
        if validated:
            row |= {f"val_auroc_{name}": value for name, value in self._validate().items()}
        row["seconds"] = round(time.monotonic() - started, 3)
        self.history.append(row)
        self.sums = {}
        state.epoch, state.batch_index = state.epoch + 1, 0
        report(epoch=state.epoch - 1, batch=self.batches, losses={}, values=row)
        self._write_log()
        if validated or last:
            self.save()

    def _step(self, order: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Train on the next batch of the epoch, whose images come in this order."""
        state, j = self.state, self.state.batch_index
        rng = _rng(self.settings.seed, state.epoch, j + 1)
        indices = order[j * self.batch_size : (j + 1) * self.batch_size]
        batch = torch.from_numpy(self.images.batch(indices, self.augmentation, rng))
        losses = self.method.training_step(batch, state)
        bad = [name for name, value in losses.items() if not torch.isfinite(value)]
        if bad:
            raise self._diverged(f"{', '.join(bad)} is not finite in epoch {state.epoch}, batch {j + 1}")
        for name, value in losses.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + float(value), count + 1
        state.batch_index += 1
        return losses

    def _validate(self) -> dict[str, float]:
        try:
            values = self.validation.values(self.method)
        except TrainingError as error:
            raise self._diverged(f"{error} in epoch {self.state.epoch}") from error
        better = [name for name, value in values.items() if name not in self.picked or value > self.picked[name].value]
        network = self.method.export_module().state_dict()
        for rule in (*better, "last"):
            value = values[rule] if rule in values else next(iter(values.values()))
            self.picked[rule] = Picked(self.state.epoch, value)
            save_file({"epoch": self.state.epoch, "value": value, "module": network}, epoch_file(self.folder, rule))
        return values

    def _diverged(self, what: str) -> TrainingError:
        kept = f"; the last checkpoint in {self.folder} is from before it" if run_folder.holds_run(self.folder) else ""
        return TrainingError(f"{what}: training has diverged. Lower the learning rates or turn autocast off{kept}")

    def save(self) -> None:
        """Write the checkpoint."""
        state = self.state
        save_file(
            {
                "epoch": state.epoch,
                "batch_index": state.batch_index,
                "method": self.method.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()},
                "generator": state.generator.get_state(),
                "history": self.history,
                "sums": self.sums,
                "picked": {rule: asdict(picked) for rule, picked in self.picked.items()},
                "autocast": state.autocast,
                "train": dict(zip(self.names, self.images.digests, strict=True)),
                "digests": self.digests,
            },
            self.folder / CHECKPOINT,
        )
        self.saved = time.monotonic()

    def load(self) -> None:
        """Take up the folder's checkpoint."""
        values = load_file(self.folder / CHECKPOINT)
        missing = {"epoch", "method", "optimizers", "generator", "autocast", "digests", "train"} - set(values)
        if missing:
            raise TrainingError(f"{self.folder / CHECKPOINT} lacks {', '.join(sorted(missing))}; start anew")
        state = self.state
        if values["epoch"] - 1 > self.settings.epochs:
            raise TrainingError(
                f"{self.folder} has {values['epoch'] - 1} epochs already; resume with at least as many, not "
                f"{self.settings.epochs}"
            )
        if state.autocast != values["autocast"]:
            raise TrainingError(
                f"{self.folder} was trained with autocast {'bf16' if values['autocast'] else 'off'}, which this "
                "machine would do otherwise; resume it on the machine it came from"
            )
        if self.digests != values["digests"]:
            raise TrainingError(
                f"{self.folder}: the training or validation images are not those that the run began with; bring them "
                "back, or start anew in another folder"
            )
        self.method.load_state_dict(values["method"])
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(values["optimizers"][name])
        state.generator.set_state(values["generator"])
        state.epoch, state.batch_index = values["epoch"], values["batch_index"]
        self.history, self.sums = values["history"], values["sums"]
        self.picked = {rule: Picked(**picked) for rule, picked in values["picked"].items()}

    def _write_log(self) -> None:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(self.history)
        replace_file(self.folder / LOG, stream.getvalue().encode())

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Let the first Ctrl-C end the step in hand; a second one stops at once."""

        def interrupt(number: int, frame: object) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        try:
            before = signal.signal(signal.SIGINT, interrupt)
        except ValueError:  # not the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16 natively."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _rng(*place: int) -> np.random.Generator:
    """The generator of one place in a training: seed, epoch (0: before the first), batch from 1 (none: the epoch's)."""
    return np.random.default_rng(place)


@contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """Deterministic algorithms and a thread count, for the time of the training."""
    deterministic, before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(before)
