"""MNIST one-class sets: one digit is good, the nine others are anomalous (Komoto, Aizawa, Kato, 2020).

The folder holds `train.npz` and `test.npz` (`x` uint8 [N, 28, 28], `y` [N]) or the four original
`*-ubyte.gz` files. Training, calibration and validation come from the training file, the test is the test
file, so that no test image is used to pick an epoch.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kizu.data.dataset import Sample, SplitRule
from kizu.data.layout import Layout
from kizu.errors import DataError

HELD_OUT = SplitRule(
    "held-out",
    "80 % of the digit's images in the training file for training and 20 % for validation, with images of "
    "the other digits from the same file, as many as there are good ones; the test file, all of it, for "
    "the test",
    good=(0.8, 0.2, 0.0),
    anomalous=(1.0, 0.0),
    own_test=0.0,
)

_IDX = {"train": "train", "test": "t10k"}
_Images = NDArray[np.uint8]


def read_mnist(root: Path, digit: str) -> Layout:
    """The one-class set of a digit, "0" to "9"."""
    if digit not in [str(d) for d in range(10)]:
        raise DataError(f"mnist:{digit}: give the good digit, mnist:0 to mnist:9")
    good = int(digit)
    train = _samples("train", *_load(root, "train"), good)
    test = _samples("test", *_load(root, "test"), good)
    return Layout(
        root,
        tuple(_as_many_others(train) + test),
        (HELD_OUT,),
        fixed_test=frozenset(sample.name for sample in test),
        color="mono",
    )


def _samples(part: str, images: _Images, labels: NDArray[np.integer], good: int) -> list[Sample]:
    # Frames are views of one array that nobody may write to; Sample.read copies.
    images.setflags(write=False)
    return [
        Sample(
            name=(name := f"{part}/{index:05d}"),
            good=int(label) == good,
            kind="good" if int(label) == good else f"digit {label}",
            group=name,
            color="mono",
            array=images[index],
        )
        for index, label in enumerate(labels)
    ]


def _as_many_others(samples: list[Sample]) -> list[Sample]:
    """All good samples and as many others, the first of each digit in turn; 54,000 would slow validation."""
    good = [sample for sample in samples if sample.good]
    kinds: dict[str, int] = {}
    ranked = []
    for sample in samples:
        if not sample.good:
            kinds[sample.kind] = kinds.get(sample.kind, 0) + 1
            ranked.append((kinds[sample.kind], sample.kind, sample))
    ranked.sort(key=lambda item: item[:2])
    return good + [sample for *_, sample in ranked[: len(good)]]


def _load(root: Path, part: str) -> tuple[_Images, NDArray[np.integer]]:
    packed = root / f"{part}.npz"
    images_file, labels_file = (root / f"{_IDX[part]}-{s}-ubyte.gz" for s in ("images-idx3", "labels-idx1"))
    try:
        if packed.is_file():
            with np.load(packed, allow_pickle=False) as arrays:
                images, labels = arrays["x"], arrays["y"]
            source = packed
        elif images_file.is_file() and labels_file.is_file():
            images, labels = _idx(images_file), _idx(labels_file)
            source = images_file
        else:
            raise DataError(
                f"{root}: no MNIST {part} file; expected {packed.name}, or {images_file.name} and {labels_file.name}"
            )
    except (OSError, KeyError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{root}: the MNIST {part} file cannot be read ({error}); fetch it again") from error
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{source}: expected uint8 images [N, 28, 28] and N labels, got {images.dtype} {images.shape} "
            f"and {labels.shape}; fetch it again"
        )
    return images, labels


def _idx(path: Path) -> _Images:
    """An IDX file of bytes: 0, 0, 8 (unsigned byte), rank, sizes as big-endian uint32, then the values."""
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of bytes; fetch it again")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, 4).astype(int)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    images: _Images = values.reshape(shape).copy()
    return images
