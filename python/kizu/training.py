"""Training: seed, loop, validation, checkpoints, resume.

A run is a folder: ``settings.json``, ``log.csv`` (one row an epoch), ``checkpoint.pt`` (where to resume) and
``epoch-<rule>.pt`` (the network at the epoch that each rule picked). Each file is replaced as a whole, never half-written.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import kizu
from kizu.data import Augmentation, Dataset, Split, open_dataset
from kizu.data.prepared import PreparedImages, cut_paste
from kizu.engine import default_threads
from kizu.errors import FrameError, TrainingError
from kizu.evaluate import auroc
from kizu.method import Method, TrainingState, get
from kizu.prepare import PrepareSpec
from kizu.progress import Progress, no_progress

EpochRule = Literal["labelled", "good"]
RULES: tuple[EpochRule, ...] = ("labelled", "good")
SETTINGS, CHECKPOINT, LOG = "settings.json", "checkpoint.pt", "log.csv"
_SAVE_EVERY = 300.0  # seconds between checkpoints within a long epoch
_DEFECTS_A_PART = 4  # synthetic defects made of each good validation image


@dataclass(frozen=True)
class TrainingSettings:
    """All that decides a training run; two runs with the same settings on the same machine give the same bits.

    Attributes:
        data: as ``kizu.data.open_dataset`` takes it: a data set's name or a folder.
        method: a method's name.
        config: settings of the method that differ from its defaults.
        size: side of the square model input in pixels.
        crop: region (left, top, right, bottom) of each frame, or None.
        color: "rgb", "mono", or None for the images' own.
        convert: convert images of other modes.
        skip_unreadable: leave unreadable images out instead of stopping.
        limit: at most this many images of a kind, or None.
        augmentation: names of what is done to training images, or None for what the data set's paper does.
        split: a split rule of the data set, or None for its default.
        calibration: share of the good training images set aside for calibration.
        seed: of split, weights, order, latents (>= 0).
        epochs: passes over the training images.
        batch_size: images a step.
        validate_every: epochs between validations.
        autocast: "bf16", "off", or "auto": bfloat16 where the processor has it.
        threads: threads torch may use, or None for all processors.
    """

    data: str
    method: str = "algan_image"
    config: Mapping[str, Any] = field(default_factory=dict)
    size: int = 256
    crop: tuple[int, int, int, int] | None = None
    color: Literal["rgb", "mono"] | None = None
    convert: bool = False
    skip_unreadable: bool = False
    limit: int | None = None
    augmentation: tuple[str, ...] | None = None
    split: str | None = None
    calibration: float = 0.2
    seed: int = 0
    epochs: int = 512
    batch_size: int = 16
    validate_every: int = 8
    autocast: Literal["auto", "bf16", "off"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.seed < 0:
            raise TrainingError(f"seed is {self.seed}, but must be at least 0")
        if self.autocast not in ("auto", "bf16", "off"):
            raise TrainingError(f"autocast is {self.autocast!r}, but must be auto, bf16 or off")
        known = [item.name for item in fields(Augmentation)]
        for name in self.augmentation or ():
            if name not in known:
                raise TrainingError(f"augmentation {name!r} is not known; choose from {', '.join(known)}")

    def dataset(self) -> Dataset:
        """Open the data set; raises DataError."""
        augmentation = None
        if self.augmentation is not None:
            augmentation = Augmentation(**{name: True for name in self.augmentation})
        return open_dataset(
            self.data,
            color=self.color,
            convert=self.convert,
            skip_unreadable=self.skip_unreadable,
            limit=self.limit,
            augmentation=augmentation,
        )

    def divide(self, dataset: Dataset) -> Split:
        """Split the data set as these settings say; raises DataError."""
        return dataset.split(seed=self.seed, rule=self.split, calibration=self.calibration)

    def prepare(self, dataset: Dataset) -> PrepareSpec:
        """How a frame of the data set becomes the model's input; raises TrainingError."""
        try:
            return PrepareSpec(size=(self.size, self.size), color=dataset.color, crop=self.crop)
        except FrameError as error:
            raise TrainingError(str(error)) from error

    def create(self, prepare: PrepareSpec) -> Method:
        """Build the method with its weights drawn from the seed; raises TrainingError."""
        method = get(self.method)
        known = [item.name for item in fields(method.config_type)]
        for name in self.config:
            if name not in known:
                raise TrainingError(f"{self.method} has no setting {name!r}; it has {', '.join(known)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return method.create(prepare, method.config_type(**self.config))

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The settings that ``as_dict`` wrote; raises TrainingError for unknown fields."""
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise TrainingError(f"unknown training settings: {', '.join(sorted(unknown))}")
        lists = {name: tuple(values[name]) for name in ("crop", "augmentation") if values.get(name) is not None}
        return cls(**{**values, **lists})


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
    _claim(folder, settings, resume)
    dataset = settings.dataset()
    split = settings.divide(dataset)
    spec = settings.prepare(dataset)
    threads = settings.threads or default_threads()
    with _torch_settings(threads), progress.reading(len(split.train) + len(split.validation)) as step:
        images = PreparedImages.read(split.train, spec, threads=threads, progress=step)
        validation = _Validation.read(split, spec, threads=threads, seed=settings.seed, progress=step)
    with _torch_settings(threads):
        run = _Run(settings, folder, spec, images, validation, dataset.augmentation)
        if resume:
            run.load()
        return run.go(progress)


class _Validation:
    """Images on which the rules pick the epoch.

    "labelled" is the paper's rule: the AUROC on labelled validation images (section IV-C). "good" needs good images
    alone: the AUROC between the good validation images and synthetic defects cut and pasted from them.
    """

    def __init__(self, good: PreparedImages, anomalous: PreparedImages, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x600D])
        pasted = [cut_paste(image, rng) for image in good.images for _ in range(_DEFECTS_A_PART)]
        sets = [good.images, anomalous.images]
        if pasted:
            sets.append(np.stack(pasted))
        self.ends = np.cumsum([len(images) for images in sets])
        self.inputs = torch.from_numpy(PreparedImages(np.concatenate(sets), good.spec).inputs())

    @classmethod
    def read(
        cls, split: Split, spec: PrepareSpec, *, threads: int, seed: int, progress: Any
    ) -> _Validation:
        good, anomalous = (
            PreparedImages.read(
                [sample for sample in split.validation if sample.good is kind], spec, threads=threads, progress=progress
            )
            for kind in (True, False)
        )
        return cls(good, anomalous, seed)

    def values(self, method: Method) -> dict[str, float]:
        """The value of each rule that the images allow; higher is better."""
        if not self.ends[0]:
            return {}
        scores = score_inputs(method, self.inputs)
        good, anomalous, pasted = np.split(scores, self.ends)[:3] if len(self.ends) == 3 else (scores, scores[:0], scores[:0])
        values = {}
        for name, bad in (("labelled", anomalous), ("good", pasted)):
            if len(bad):
                labels = np.concatenate([np.zeros(len(good), bool), np.ones(len(bad), bool)])
                values[name] = auroc(np.concatenate([good, bad]), labels)
        return values


@torch.no_grad()
def score_inputs(method: torch.nn.Module, inputs: Tensor, *, scoring: str | None = None, batch: int = 64) -> NDArray[np.float32]:
    """Scores (N,) float32 of model inputs (N, C, H, W) by torch in evaluation mode, float32 arithmetic."""
    from kizu import scoring as rules

    rule = scoring if scoring is not None else method.scoring
    training = method.training
    method.eval()
    scores = np.empty(len(inputs), np.float32)
    for start in range(0, len(inputs), batch):
        outputs = {name: value.float().numpy() for name, value in method(inputs[start : start + batch]).items()}
        rules.score(str(rule), outputs, scores[start : start + batch])
    method.train(training)
    return scores


class _Run:
    """One training in progress."""

    def __init__(
        self,
        settings: TrainingSettings,
        folder: Path,
        spec: PrepareSpec,
        images: PreparedImages,
        validation: _Validation,
        augmentation: Augmentation,
    ) -> None:
        self.settings, self.folder, self.images = settings, folder, images
        self.validation, self.augmentation = validation, augmentation
        self.batch_size = min(settings.batch_size, len(images))
        self.batches = len(images) // self.batch_size
        self.method = settings.create(spec)
        self.method.start(batches=self.batches, batch_size=self.batch_size)
        self.state = TrainingState(
            epoch=1,
            batch_index=0,
            optimizers=self.method.optimizers(),
            generator=torch.Generator().manual_seed(settings.seed),
            autocast=settings.autocast == "bf16" or (settings.autocast == "auto" and has_bf16()),
        )
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}  # losses of the epoch in hand
        self.picked: dict[str, Picked] = {}
        self.interrupted = False

    def go(self, progress: Progress) -> Outcome:
        settings, state = self.settings, self.state
        self.method.train()
        with self._interrupts(), progress.training(settings.epochs, self.batches) as report:
            while state.epoch <= settings.epochs and not self.interrupted:
                self._epoch(report)
        if self.interrupted or not (self.folder / CHECKPOINT).exists():
            self.save()
        return Outcome(self.folder, state.epoch - 1, state.epoch > settings.epochs, dict(self.picked))

    def _epoch(self, report: Any) -> None:
        settings, state = self.settings, self.state
        started = saved = time.monotonic()
        order = np.random.default_rng([settings.seed, state.epoch]).permutation(len(self.images))
        while state.batch_index < self.batches:
            if self.interrupted:
                return
            j = state.batch_index
            rng = np.random.default_rng([settings.seed, state.epoch, j])
            indices = order[j * self.batch_size : (j + 1) * self.batch_size]
            batch = torch.from_numpy(self.images.batch(indices, self.augmentation, rng))
            losses = self.method.training_step(batch, state)
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
            bad = [name for name, value in losses.items() if not torch.isfinite(value)]
            if bad:
                raise TrainingError(
                    f"{', '.join(bad)} is not finite in epoch {state.epoch}, batch {j}: training has diverged. Lower the "
                    f"learning rates or turn autocast off; the last checkpoint in {self.folder} is from before it"
                )
            state.batch_index += 1
            report(epoch=state.epoch, batch=state.batch_index, losses=losses)
            if time.monotonic() - saved > _SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        row: dict[str, float] = {"epoch": state.epoch}
        row |= {name: total / self.batches for name, total in self.sums.items()}
        last = state.epoch == settings.epochs
        validated = last or state.epoch % settings.validate_every == 0
        if validated:
            row |= {f"val_{name}": value for name, value in self._validate().items()}
        row["seconds"] = round(time.monotonic() - started, 3)
        self.history.append(row)
        self.sums = {}
        state.epoch, state.batch_index = state.epoch + 1, 0
        report(epoch=state.epoch - 1, batch=self.batches, losses={}, values=row)
        self._write_log()
        if validated:
            self.save()

    def _validate(self) -> dict[str, float]:
        values = self.validation.values(self.method)
        for rule, value in values.items():
            if rule not in self.picked or value > self.picked[rule].value:
                self.picked[rule] = Picked(self.state.epoch, value)
                network = {"epoch": self.state.epoch, "value": value, "module": self.method.export_module().state_dict()}
                _save(network, epoch_file(self.folder, rule))
        return values

    def save(self) -> None:
        """Write the checkpoint."""
        state = self.state
        _save(
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
            },
            self.folder / CHECKPOINT,
        )

    def load(self) -> None:
        """Take up the folder's checkpoint."""
        values = load_file(self.folder / CHECKPOINT)
        state = self.state
        self.method.load_state_dict(values["method"])
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(values["optimizers"][name])
        state.generator.set_state(values["generator"])
        state.epoch, state.batch_index = values["epoch"], values["batch_index"]
        self.history, self.sums = values["history"], values["sums"]
        self.picked = {rule: Picked(**picked) for rule, picked in values["picked"].items()}
        if state.autocast != values["autocast"]:
            raise TrainingError(
                f"{self.folder} was trained with autocast {'bf16' if values['autocast'] else 'off'}, which this machine "
                "would do otherwise; resume it on the machine it came from, or set autocast by name"
            )

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


def epoch_file(folder: Path, rule: str) -> Path:
    """Where a run keeps the network of the epoch that ``rule`` picked."""
    return folder / f"epoch-{rule}.pt"


def read_settings(folder: str | os.PathLike[str]) -> TrainingSettings:
    """The settings of a run; raises TrainingError if the folder holds none."""
    path = Path(folder) / SETTINGS
    try:
        return TrainingSettings.from_dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError as error:
        raise TrainingError(f"{folder}: there is no training run here; kizu train makes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not readable as settings: {error}") from error


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
    """Write a file so that it is whole at any moment."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _save(values: Mapping[str, Any], path: Path) -> None:
    stream = io.BytesIO()
    torch.save(dict(values), stream)
    replace_file(path, stream.getvalue())


def _claim(folder: Path, settings: TrainingSettings, resume: bool) -> None:
    """Make the folder this run's own, or check that it is."""
    if resume:
        held = read_settings(folder)
        if replace(held, epochs=settings.epochs, threads=settings.threads) != settings:
            changed = [f.name for f in fields(held) if getattr(held, f.name) != getattr(settings, f.name)]
            raise TrainingError(
                f"{folder} was trained with other settings ({', '.join(changed)}); resume with the same, or start anew "
                "in another folder"
            )
        if not (folder / CHECKPOINT).exists():
            raise TrainingError(f"{folder}: there is no {CHECKPOINT} to resume from; train without --resume")
    elif (folder / CHECKPOINT).exists():
        raise TrainingError(f"{folder} holds a training run already; go on with --resume or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "settings": settings.as_dict(),
        "versions": {"kizu": kizu.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }
    replace_file(folder / SETTINGS, json.dumps(about, indent=1).encode())


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
