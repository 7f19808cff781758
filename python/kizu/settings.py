"""What decides a training run, and where a run's folder keeps what. Reading it does not load torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kizu.data import Augmentation, Dataset, Split, open_dataset
from kizu.errors import FrameError, TrainingError
from kizu.prepare import PrepareSpec

if TYPE_CHECKING:
    from kizu.method import Method

EpochRule = Literal["labelled", "good", "last"]
RULES: tuple[EpochRule, ...] = ("labelled", "good", "last")
PRESET = "line"  # what is taken unless another is named
SETTINGS, CHECKPOINT, LOG = "settings.json", "checkpoint.pt", "log.csv"


@dataclass(frozen=True)
class TrainingSettings:
    """All that decides a training run; two runs with the same settings on the same machine give the same bits.

    Attributes:
        data: as ``kizu.data.open_dataset`` takes it: a data set's name or a folder.
        method: a method's name.
        config: settings of the method that differ from its defaults.
        size: side of the square model input in pixels.
        crop: region (left, top, right, bottom) of each frame, or None.
        mean, std: normalisation of pixels in [0, 1], a value for each of the frame's channels; empty: to [-1, 1].
        color: "rgb", "mono", or None for the images' own.
        convert: convert images of other modes.
        skip_unreadable: leave unreadable images out instead of stopping.
        limit: at most this many good and as many anomalous images of each part of the data set, or None.
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
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
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
        for name, least in (("size", 1), ("epochs", 1), ("batch_size", 1), ("validate_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise TrainingError(f"{name} is {value!r}, but must be a whole number of at least {least}")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise TrainingError(f"threads is {self.threads!r}, but must be a whole number of at least 1")
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
            augmentation = Augmentation(**dict.fromkeys(self.augmentation, True))
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
        from kizu.method import get

        try:
            return PrepareSpec(
                size=(self.size, self.size),
                color=dataset.color,
                pool=get(self.method).pools,
                crop=self.crop,
                mean=self.mean,
                std=self.std,
            )
        except FrameError as error:
            raise TrainingError(str(error)) from error

    def create(self, prepare: PrepareSpec) -> Method:
        """Build the method with its weights drawn from the seed; raises TrainingError."""
        import torch

        from kizu.method import get

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
    def from_preset(cls, name: str | None = None, **given: Any) -> TrainingSettings:
        """A preset of the method with what is given in place of its own; raises TrainingError.

        Without a name it is "line" where the method has that, else "paper".
        """
        from kizu.method import get

        method = given.get("method", cls.method)
        values = preset(method, name or (PRESET if PRESET in get(method).presets else "paper"))
        return cls(**{**values, **given, "config": {**values.get("config", {}), **given.get("config", {})}})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The settings that ``as_dict`` wrote; raises TrainingError for unknown fields."""
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise TrainingError(f"unknown training settings: {', '.join(sorted(unknown))}")
        names = ("crop", "augmentation", "mean", "std")
        lists = {name: tuple(values[name]) for name in names if values.get(name) is not None}
        return cls(**{**values, **lists})


def preset(method: str, name: str) -> dict[str, Any]:
    """Settings that go together, as fields of ``TrainingSettings``; raises TrainingError for unknown names.

    Every method has "paper": as published, with nothing added.
    """
    from kizu.method import get

    presets = get(method).presets
    if name not in presets:
        raise TrainingError(f"{method} has no preset {name!r}; it has {', '.join(presets)}")
    return {"method": method, **presets[name]}


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
