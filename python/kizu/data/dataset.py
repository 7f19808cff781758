"""Samples, data sets and their splits into training, validation, calibration and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kizu.data.images import Color, read_image, read_mask
from kizu.errors import DataError

DEFAULT_CALIBRATION = 0.2


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to training images, on uint8, before channel pooling."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation: bool = False  # by any angle


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of one part.

    Attributes:
        name: the path below the data set's root with forward slashes, or like "train/00012" for arrays;
            unique in a data set.
        good: whether the part is good.
        kind: "good", or what is wrong: "MT_Crack", "digit 3".
        group: the physical part; the name itself where pictures of a part are not repeated.
        color: "rgb" or "mono": how the frame is read.
        convert: convert other image modes (see `read_image`); without it an odd mode is an error.
        path: the image file, None where the frame sits in `array`.
        array: uint8 [H, W] or [H, W, 3], None where the frame sits in a file.
        mask: the file with the defect mask, None where there is none.
    """

    name: str
    good: bool
    kind: str
    group: str
    color: Color = "rgb"
    convert: bool = False
    path: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    mask: Path | None = None

    def read(self) -> NDArray[np.uint8]:
        """The frame, the caller's own: contiguous uint8 [H, W, 3] RGB or [H, W]. DataError names the file."""
        if self.array is not None:
            return np.array(self.array, np.uint8, order="C")
        if self.path is None:
            raise DataError(f"sample {self.name}: it has neither a file nor an array")
        return read_image(self.path, self.color, convert=self.convert)

    def read_mask(self) -> NDArray[np.bool_] | None:
        """The defect mask [H, W], True on the defect; None where the data set has none for this sample."""
        return None if self.mask is None else read_mask(self.mask)


@dataclass(frozen=True)
class SplitRule:
    """How a data set is divided.

    Samples outside the data set's own test part: good ones go by `good` = shares of training, validation and
    test, anomalous ones by `anomalous` = shares of validation and test. The data set's own test part gives
    the share `own_test` to validation, good and each kind of defect alike, and keeps the rest as test.
    `by_group` keeps a group on one side.
    """

    name: str
    text: str
    good: tuple[float, float, float]
    anomalous: tuple[float, float] = (0.5, 0.5)
    own_test: float = 0.5
    by_group: bool = True


@dataclass(frozen=True)
class Split:
    """The four parts; `train` and `calibration` hold good samples only. Each is sorted by name."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]
    rule: str


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Samples of one product, with the ways to divide them.

    Attributes:
        name: as it was asked for, "mvtec:screw".
        root: the folder, None if there is none.
        color: of all frames.
        samples: sorted by name.
        augmentation: what the paper (or the caller) does to training images of this data.
        rules: the splits on offer; the first is the default.
        fixed_test: names of the samples that the data set itself keeps for testing.
        skipped: files that were left out because the caller allowed it.
    """

    name: str
    root: Path | None
    color: Color
    samples: tuple[Sample, ...]
    augmentation: Augmentation
    rules: tuple[SplitRule, ...]
    fixed_test: frozenset[str] = frozenset()
    skipped: tuple[Skipped, ...] = ()

    def split(self, *, seed: int = 0, rule: str | None = None, calibration: float = DEFAULT_CALIBRATION) -> Split:
        """Divide the samples; every sample lands in exactly one part.

        Args:
            seed: the draw, at least 0. The same samples and seed give the same split on any machine.
            rule: the name of one of `rules`; None is the first.
            calibration: the share of the good training images that is set aside for calibration, 0 to below
                1. It comes out of the training part, so that 0 gives the rule's own training part.

        Raises:
            DataError: an unknown rule, a share out of range, or too few good images to train on.
        """
        chosen = self._rule(rule)
        if not 0 <= calibration < 1:
            raise DataError(f"calibration {calibration}: the share must be at least 0 and below 1")
        if seed < 0:
            raise DataError(f"seed {seed}: a seed must be 0 or more")
        rng = np.random.default_rng(seed)
        # Everything is drawn in the order of names, so that the file system's order does not matter.
        samples = _by_name(self.samples)
        train, validation, test = _divide(samples, self.fixed_test, chosen, rng)
        kept, held = _share_out(_units(train, chosen.by_group), (1 - calibration, calibration), rng)
        if not kept:
            raise DataError(
                f"{self.name}: no good images are left for training under rule {chosen.name!r} with "
                f"calibration share {calibration} ({sum(s.good for s in samples)} good images in all); add "
                "good images or lower the share"
            )
        return Split(_by_name(kept), _by_name(validation), _by_name(held), _by_name(test), chosen.name)

    def _rule(self, name: str | None) -> SplitRule:
        for rule in self.rules:
            if name is None or rule.name == name:
                return rule
        names = ", ".join(repr(rule.name) for rule in self.rules)
        raise DataError(f"{self.name}: no split rule {name!r}; accepted: {names}")


def _by_name(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.name))


_Unit = list[Sample]  # samples that stay together


def _units(samples: Iterable[Sample], by_group: bool) -> list[_Unit]:
    units: dict[str, _Unit] = defaultdict(list)
    for sample in samples:
        units[sample.group if by_group else sample.name].append(sample)
    return list(units.values())


def _divide(
    samples: Sequence[Sample], fixed_test: frozenset[str], rule: SplitRule, rng: np.random.Generator
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Training (with calibration still inside), validation and test."""
    free = _units((s for s in samples if s.name not in fixed_test), rule.by_group)
    own = _units((s for s in samples if s.name in fixed_test), rule.by_group)
    own_shares = (rule.own_test, 1 - rule.own_test)

    # A part that was once seen broken cannot be trained on: all its pictures go where its defects go.
    own_validation, own_test = _share_out_kinds(_broken(own), own_shares, rng)
    bad_validation, bad_test = _share_out_kinds(_broken(free), rule.anomalous, rng)
    validation = own_validation + bad_validation
    test = own_test + bad_test
    more = _share_out(_whole(own), own_shares, rng)
    validation, test = validation + more[0], test + more[1]

    # Good pictures of broken parts already count towards the shares of good ones.
    taken = (0, sum(s.good for s in bad_validation), sum(s.good for s in bad_test))
    train, good_validation, good_test = _share_out(_whole(free), rule.good, rng, taken=taken)
    return train, validation + good_validation, test + good_test


def _whole(units: list[_Unit]) -> list[_Unit]:
    return [unit for unit in units if all(sample.good for sample in unit)]


def _broken(units: list[_Unit]) -> list[_Unit]:
    return [unit for unit in units if not all(sample.good for sample in unit)]


def _shuffled(units: list[_Unit], rng: np.random.Generator) -> list[_Unit]:
    order = np.argsort(rng.random(len(units)), kind="stable")
    return [units[i] for i in order]


def _share_out(
    units: list[_Unit],
    shares: Sequence[float],
    rng: np.random.Generator,
    taken: Sequence[int] | None = None,
) -> list[list[Sample]]:
    """Deal units in random order, each to the part that is furthest below its share of samples.

    `taken` counts what the parts hold already. Single samples come out at the shares to within one.
    """
    counts = np.array(taken if taken is not None else [0] * len(shares), float)
    targets = np.array(shares, float) * (sum(map(len, units)) + counts.sum())
    # What a part holds beyond its share is missing in the others, in proportion.
    over = np.maximum(counts - targets, 0).sum()
    targets = targets - over * targets / max(targets[counts <= targets].sum(), 1e-9)
    parts: list[list[Sample]] = [[] for _ in shares]
    for unit in _shuffled(units, rng):
        room = np.where(np.array(shares) > 0, targets - counts, -np.inf)
        # Rounding hides the last bits, in which the sums of shares may differ.
        best = int(np.argmax(np.round(room, 6)))
        parts[best] += unit
        counts[best] += len(unit)
    return parts


def _share_out_kinds(
    units: list[_Unit], shares: tuple[float, float], rng: np.random.Generator
) -> tuple[list[Sample], list[Sample]]:
    """Deal units with anomalous samples to validation and test: each kind and all of them meet the shares."""
    kinds: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        counts = Counter(sample.kind for sample in unit if not sample.good)
        kinds[min(counts, key=lambda kind: (-counts[kind], kind))].append(unit)
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    dealt = np.zeros(2)
    for kind in sorted(kinds):
        of_kind = np.zeros(2)
        for unit in _shuffled(kinds[kind], rng):
            bad = sum(not sample.good for sample in unit)
            lack = [_lack(of_kind, bad, shares), _lack(dealt, bad, shares), rng.random() - 0.5]
            decided = next((value for value in lack if abs(value) > 1e-6), 0.0)
            side = 0 if shares[1] == 0 or (shares[0] > 0 and decided > 0) else 1
            parts[side].extend(unit)
            of_kind[side] += bad
            dealt[side] += bad
    return parts


def _lack(counts: NDArray[np.float64], more: int, shares: tuple[float, float]) -> float:
    """How much further the first part is below its share than the second, once `more` samples are dealt."""
    total = counts.sum() + more
    return float((shares[0] * total - counts[0]) - (shares[1] * total - counts[1]))
