"""COIL-100 (Nene, Nayar, Murase, CUCS-006-96): a hundred objects, 72 views each, as `obj<n>__<angle>.png`.

Ten objects are normal, the other ninety anomalous (Murase and Fukumizu, 2022, section IV-B-4). The split is
by views, as in the paper: an object that is normal must be seen in training, so a view is its own group and
its neighbours 5 degrees on land in other parts. A threshold calibrated on such views promises nothing about
new objects.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kizu.data.dataset import Augmentation, Sample, SplitRule
from kizu.data.layout import Layout
from kizu.errors import DataError

PAPER = SplitRule(
    "paper",
    "ALGAN's: 60, 20 and 20 % of the normal objects' views for training, validation and test, the other "
    "objects' half and half",
    good=(0.6, 0.2, 0.2),
)

_NAME = re.compile(r"obj(\d+)__(\d+)")
_NORMAL = 10


def read_coil100(root: Path, option: str) -> Layout:
    """COIL-100 below `root`.

    `option` chooses the normal objects: "" draws ten with seed 0, "seed3" with seed 3, "1,5,77" names them.
    """
    files = sorted(root.glob("obj*__*.png"))
    if not files:
        raise DataError(f"{root}: no COIL-100 views; expected files like obj1__0.png")
    views = {path: _view(path) for path in files}
    normal = _normal(option, sorted({number for number, _ in views.values()}))
    samples = tuple(
        Sample(
            name=path.name,
            good=number in normal,
            kind="good" if number in normal else f"object {number}",
            group=path.name,
            path=path,
        )
        for path, (number, _) in views.items()
    )
    return Layout(root, samples, (PAPER,), Augmentation(horizontal_flip=True))


def _view(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise DataError(f"{path}: expected a name like obj1__0.png; move other files out of the data set")
    return int(match[1]), int(match[2])


def _normal(option: str, objects: list[int]) -> set[int]:
    accepted = "coil100 (ten objects drawn with seed 0), coil100:seed3, or coil100:1,5,77"
    if option == "" or re.fullmatch(r"seed\d+", option):
        rng = np.random.default_rng(int(option[4:] or 0))
        order = np.argsort(rng.random(len(objects)), kind="stable")
        return {objects[i] for i in order[:_NORMAL]}
    if not re.fullmatch(r"\d+(,\d+)*", option):
        raise DataError(f"coil100:{option}: accepted: {accepted}")
    chosen = {int(number) for number in option.split(",")}
    unknown = sorted(chosen - set(objects))
    if unknown:
        raise DataError(f"coil100:{option}: no views of object {unknown[0]}; there are {len(objects)} objects")
    return chosen
