"""What `kizu data list` and `kizu data info` print, as plain dataclasses."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kizu.data.dataset import Augmentation, Skipped, SplitRule
from kizu.data.locating import find
from kizu.data.opening import check_samples, read_layout
from kizu.data.sources import SOURCES


@dataclass(frozen=True)
class Available:
    """A public data set: how it is named, its terms, and its folder here (None if it is not on this machine).

    `download_bytes` is None where the size is not published, 0 where `fetch` cannot get it.
    """

    name: str
    title: str
    example: str
    terms: str
    homepage: str
    path: Path | None
    download_bytes: int | None


def available() -> tuple[Available, ...]:
    """All public data sets kizu can read."""
    return tuple(
        Available(
            source.name,
            source.title,
            source.example,
            source.terms,
            source.homepage,
            find(source.name),
            _total([download.size for download in source.downloads]),
        )
        for source in SOURCES
    )


def _total(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


@dataclass(frozen=True)
class Kind:
    """Images of one kind: how many, of how many parts, how many with a mask or in the own test part."""

    kind: str
    good: bool
    images: int
    groups: int
    masks: int
    own_test: int


@dataclass(frozen=True)
class Spread:
    """Smallest, median (the lower one of two) and largest, in pixels."""

    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class DatasetInfo:
    """A data set at a glance.

    `kinds` has good first. `modes` counts image modes. `width` and `height` are None if no file can be read.
    `unreadable` and `odd` name files by path: odd ones decode, but in a mode that is neither plain RGB nor
    plain grey. `groups` counts physical parts.
    """

    name: str
    root: Path
    kinds: tuple[Kind, ...]
    groups: int
    width: Spread | None
    height: Spread | None
    modes: tuple[tuple[str, int], ...]
    unreadable: tuple[Skipped, ...]
    odd: tuple[Skipped, ...]
    augmentation: Augmentation
    rules: tuple[SplitRule, ...]


def describe(spec: str | os.PathLike[str]) -> DatasetInfo:
    """Open every file of a data set and count. Takes what `open_dataset` takes; unreadable and odd files are
    no error here.

    Raises DataError if there is no such data set or folder, or it holds no good images.
    """
    name, layout = read_layout(spec)
    checked = check_samples(layout.samples)
    facts = [item.facts for item in checked if item.facts is not None]
    kinds = []
    for good, kind in sorted({(not s.good, s.kind) for s in layout.samples}):
        members = [s for s in layout.samples if s.kind == kind and s.good is not good]
        kinds.append(
            Kind(
                kind,
                not good,
                len(members),
                len({s.group for s in members}),
                sum(s.mask is not None for s in members),
                sum(s.name in layout.fixed_test for s in members),
            )
        )
    return DatasetInfo(
        name=name,
        root=layout.root,
        kinds=tuple(kinds),
        groups=len({s.group for s in layout.samples}),
        width=_spread([item.width for item in facts]),
        height=_spread([item.height for item in facts]),
        modes=tuple(sorted(Counter(item.mode for item in facts).items())),
        unreadable=tuple(
            Skipped(item.sample.path, item.reason)
            for item in checked
            if item.facts is None and item.sample.path is not None
        ),
        odd=tuple(
            Skipped(item.sample.path, f"the image mode is {item.facts.mode}")
            for item in checked
            if item.facts is not None and item.facts.color is None and item.sample.path is not None
        ),
        augmentation=layout.augmentation,
        rules=layout.rules,
    )


def _spread(values: list[int]) -> Spread | None:
    if not values:
        return None
    ordered = sorted(values)
    return Spread(ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1])
