"""A user's own folder of images: `good/` and, if there are any, anomalous ones in `bad/`; or just good
images.

A folder in the layout of MVTec AD is recognised and read as such. With no anomalous images validation and
test hold good images only.
"""

from __future__ import annotations

from pathlib import Path

from kizu.data.dataset import Sample, SplitRule
from kizu.data.images import SUFFIXES, images_below
from kizu.data.layout import Layout
from kizu.data.mvtec import is_mvtec, read_mvtec
from kizu.errors import DataError

RANDOM = SplitRule(
    "random",
    "60 % of the good images for training, 20 % for validation, 20 % for the test; anomalous images half "
    "and half. Every image counts as a part of its own",
    good=(0.6, 0.2, 0.2),
)


def read_folder(root: Path) -> Layout:
    """Read `good/` with optional `bad/` (its subfolders name defects), or images that are all good."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; give a folder of images, or one of the data sets that `kizu data list` names"
        )
    if is_mvtec(root):
        return read_mvtec(root)
    good, bad = root / "good", root / "bad"
    if not good.is_dir():
        if bad.is_dir():
            raise DataError(f"{root}: has bad/ but no good/; training needs images of good parts in good/")
        samples = [_sample(root, path, "good") for path in images_below(root)]
    else:
        _refuse_strays(root)
        samples = [_sample(root, path, "good") for path in images_below(good)]
        if bad.is_dir():
            samples += [_sample(root, path, _kind(bad, path)) for path in images_below(bad)]
    if not any(sample.good for sample in samples):
        raise DataError(f"{good if good.is_dir() else root}: no images of good parts; looked for {' '.join(SUFFIXES)}")
    return Layout(root, tuple(samples), (RANDOM,))


def _kind(bad: Path, path: Path) -> str:
    inside = path.relative_to(bad).parts
    return inside[0] if len(inside) > 1 else "bad"


def _refuse_strays(root: Path) -> None:
    strays = [
        path for path in images_below(root) if path.relative_to(root).parts[0] not in ("good", "bad", "ground_truth")
    ]
    if strays:
        raise DataError(
            f"{root}: {len(strays)} images are neither in good/ nor in bad/, for example {strays[0]}; move "
            "them into one of the two or out of the folder"
        )


def _sample(root: Path, path: Path, kind: str) -> Sample:
    name = path.relative_to(root).as_posix()
    return Sample(name=name, good=kind == "good", kind=kind, group=name, path=path)
