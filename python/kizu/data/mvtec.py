"""The layout of MVTec AD (Bergmann et al., CVPR 2019), for its fifteen categories and for any folder laid
out alike.

    train/good/*.png    test/good/*.png    test/<defect>/*.png    ground_truth/<defect>/<stem>_mask.png

A mask may also have the picture's own stem, or another of the image suffixes. Augmentation and the split are
those of ALGAN (Murase and Fukumizu, IEEE Access 10, 2022, sections IV-B-4 and IV-B-5).
"""

from __future__ import annotations

from pathlib import Path

from kizu.data.dataset import Augmentation, Sample, SplitRule
from kizu.data.images import SUFFIXES, Color, images_below
from kizu.data.layout import Layout
from kizu.errors import DataError

_NONE = Augmentation()
_BOTH_FLIPS = Augmentation(horizontal_flip=True, vertical_flip=True)
_HORIZONTAL = Augmentation(horizontal_flip=True)
_ROTATION = Augmentation(rotation=True)
_ALL = Augmentation(horizontal_flip=True, vertical_flip=True, rotation=True)

CATEGORIES: dict[str, Augmentation] = {
    "bottle": _ALL,
    "cable": _NONE,
    "capsule": _NONE,
    "carpet": _BOTH_FLIPS,
    "grid": _BOTH_FLIPS,
    "hazelnut": _ALL,
    "leather": _BOTH_FLIPS,
    "metal_nut": _ROTATION,
    "pill": _NONE,
    "screw": _ROTATION,
    "tile": _BOTH_FLIPS,
    "toothbrush": _HORIZONTAL,
    "transistor": _HORIZONTAL,
    "wood": _HORIZONTAL,
    "zipper": _HORIZONTAL,
}

PAPER = SplitRule(
    "paper",
    "ALGAN's: half of the test images, good ones and each defect alike, for validation and half for the "
    "test; calibration images are taken out of train/good (a share of 0 leaves the paper's own training "
    "set)",
    good=(1, 0, 0),
    own_test=0.5,
)


def is_mvtec(root: Path) -> bool:
    """Whether a folder has train/good and test."""
    return (root / "train" / "good").is_dir() and (root / "test").is_dir()


def read_category(root: Path, category: str) -> Layout:
    """One of the fifteen categories, in `root/<category>`. The toothbrush is read in grey as in the paper."""
    if category not in CATEGORIES:
        raise DataError(f"mvtec: no category {category!r}; accepted: mvtec: and one of {', '.join(CATEGORIES)}")
    grey = category == "toothbrush"
    return read_mvtec(root / category, CATEGORIES[category], color="mono" if grey else None, convert=grey)


def read_mvtec(
    root: Path,
    augmentation: Augmentation = _NONE,
    *,
    color: Color | None = None,
    convert: bool = False,
) -> Layout:
    """A folder in the layout of MVTec AD."""
    if not is_mvtec(root):
        raise DataError(f"{root}: not in the MVTec layout; expected the folders train/good and test/<defect> below it")
    _refuse_defects_in_training(root)
    train = [_sample(root, path, "good") for path in images_below(root / "train" / "good")]
    test = [
        _sample(root, path, kind.name)
        for kind in sorted(p for p in (root / "test").iterdir() if p.is_dir())
        for path in images_below(kind)
    ]
    if not train:
        raise DataError(f"{root / 'train' / 'good'}: no images; looked for {' '.join(SUFFIXES)}")
    return Layout(
        root,
        tuple(train + test),
        (PAPER,),
        augmentation,
        frozenset(sample.name for sample in test),
        color,
        convert,
    )


def _refuse_defects_in_training(root: Path) -> None:
    others = sorted(p.name for p in (root / "train").iterdir() if p.is_dir() and images_below(p))
    if others != ["good"] and "good" in others:
        raise DataError(
            f"{root / 'train'}: besides good it holds images in "
            f"{', '.join(n for n in others if n != 'good')}; training uses good parts only: move anomalous "
            "images to test/<defect>"
        )


def _sample(root: Path, path: Path, kind: str) -> Sample:
    name = path.relative_to(root).as_posix()
    mask = None if kind == "good" else _mask(root, path)
    return Sample(name=name, good=kind == "good", kind=kind, group=name, path=path, mask=mask)


def _mask(root: Path, path: Path) -> Path | None:
    folder = root / "ground_truth" / path.relative_to(root / "test").parent
    for ending in ("_mask", ""):
        for suffix in SUFFIXES:
            candidate = folder / f"{path.stem}{ending}{suffix}"
            if candidate.is_file():
                return candidate
    return None
