"""Magnetic Tile Defects (Huang, Qiu, Yuan, The Visual Computer 36, 2020): which pictures show the same tile.

Files are MT_<class>/Imgs/exp<exposure>_num<counter>.jpg, with a mask of the same stem in .png. A tile was
photographed under up to seven exposures, so a split by pictures puts the same tile on both sides. Nobody
published which pictures belong together; `group_tiles` works it out from the names and the sizes of the
pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kizu.data.dataset import Augmentation, Sample, SplitRule
from kizu.data.images import image_size
from kizu.data.layout import Layout
from kizu.errors import DataError

CLASSES = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven")
GOOD = "MT_Free"

TILE = SplitRule(
    "tile",
    "50 % of the good images for training, 25 % for validation, 25 % for the test, defects half and half; "
    "all pictures of a physical tile stay on one side (a tile that has a defect in any picture is not "
    "trained on)",
    good=(0.5, 0.25, 0.25),
)
RANDOM = SplitRule(
    "random",
    "ALGAN's random split, by pictures: 50, 25 and 25 % of the good ones, defects half and half. The same "
    "tile lands on both sides under different exposures, which flatters the figures and voids the promise "
    "of a calibrated threshold",
    good=(0.5, 0.25, 0.25),
    by_group=False,
)

_NAME = re.compile(r"exp(\d+)_num_(\d+)")
_MAX_GAP = 600  # of the counter, from one picture of a tile to the next
_TWIN_GAP = 3000  # of the counter, between two rounds of exposures of one tile
_NEAR = 100  # of the counter: a repeated shot
_SAME_SIDE = 0.12  # relative difference of the steadier side, from picture to picture
_SAME_SIZE = 0.08  # relative difference of both sides


@dataclass(frozen=True)
class Shot:
    """A picture: its name, exposure number, running counter and size in pixels."""

    name: str
    exposure: int
    counter: int
    width: int
    height: int


@dataclass
class _Round:
    """Pictures of one tile, one an exposure."""

    shots: list[Shot] = field(default_factory=list)

    def distance(self, shot: Shot) -> float | None:
        """How badly a shot fits as the next of this round; None if it does not."""
        last = self.shots[-1]
        if shot.counter - last.counter > _MAX_GAP or any(s.exposure == shot.exposure for s in self.shots):
            return None
        sides = sorted(abs(a - b) / max(a, b) for a, b in ((shot.width, last.width), (shot.height, last.height)))
        # A crop can lose one side to a crack or a break: while the exposures go up, the steadier side
        # decides.
        if shot.exposure > last.exposure:
            return sum(sides) if sides[0] <= _SAME_SIDE else None
        return sum(sides) if sides[1] <= _SAME_SIZE else None

    def twin_of(self, other: _Round) -> bool:
        """Whether another round shows the same tile: crops of equal size at equal exposures."""
        gaps = [
            abs(a.counter - b.counter)
            for a in self.shots
            for b in other.shots
            if (a.exposure, a.width, a.height) == (b.exposure, b.width, b.height)
        ]
        gaps = [gap for gap in gaps if gap <= _TWIN_GAP]
        return len(gaps) >= 2 or any(gap <= _NEAR for gap in gaps)


def group_tiles(shots: Iterable[Shot]) -> dict[str, str]:
    """Assign each picture to a tile: {picture name: tile name}.

    In the order of the counter a tile's exposures follow each other, usually 1 to 6 within some hundred
    counts, sometimes interleaved with another tile's. A shot joins the open round that lacks its exposure
    and whose last picture is nearest in size; otherwise it starts a round. Rounds whose crops agree to the
    pixel at two exposures (or at one, within 100 counts) show one tile. This is a heuristic: it would rather
    join two tiles than tear one apart.
    """
    rounds: list[_Round] = []
    for shot in sorted(shots, key=lambda s: (s.counter, s.name)):
        # Only the last few rounds can still be open.
        fits = [(d, i) for i, r in enumerate(rounds[-4:]) if (d := r.distance(shot)) is not None]
        if fits:
            rounds[-4:][min(fits)[1]].shots.append(shot)
        else:
            rounds.append(_Round([shot]))
    tiles: list[list[_Round]] = []
    for item in rounds:
        same = [tile for tile in tiles if any(item.twin_of(other) for other in tile)]
        tiles = [tile for tile in tiles if tile not in same] + [[item, *(r for tile in same for r in tile)]]
    return {shot.name: tile for group in tiles for shot, tile in _named(group)}


def _named(group: list[_Round]) -> list[tuple[Shot, str]]:
    shots = [shot for item in group for shot in item.shots]
    tile = f"tile-{min(shot.counter for shot in shots):06d}"
    return [(shot, tile) for shot in shots]


def read_magnetic_tile(root: Path) -> Layout:
    """The data set as published, below `root`; the sizes of the pictures are read from their headers."""
    missing = [name for name in CLASSES if not (root / name / "Imgs").is_dir()]
    if missing:
        raise DataError(f"{root}: not the magnetic tile data; missing {', '.join(f'{m}/Imgs' for m in missing)}")
    files = {
        path.relative_to(root).as_posix(): path
        for name in CLASSES
        for path in sorted((root / name / "Imgs").glob("*.jpg"))
    }
    shots = [_shot(name, path) for name, path in files.items()]
    tiles = group_tiles(shot for shot in shots if shot is not None)
    samples = tuple(
        Sample(
            name=name,
            good=name.startswith(f"{GOOD}/"),
            kind="good" if name.startswith(f"{GOOD}/") else name.split("/")[0],
            group=tiles.get(name, name),
            path=path,
            mask=None if name.startswith(f"{GOOD}/") else _existing(path.with_suffix(".png")),
        )
        for name, path in files.items()
    )
    return Layout(root, samples, (TILE, RANDOM), Augmentation(horizontal_flip=True))


def _shot(name: str, path: Path) -> Shot | None:
    """The facts of a picture; None if its header cannot be read: the check of the files reports that."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise DataError(f"{path}: expected a name like exp1_num_2038.jpg; move other files out of the data set")
    try:
        return Shot(name, int(match[1]), int(match[2]), *image_size(path))
    except DataError:
        return None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
