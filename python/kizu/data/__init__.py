"""Folders of images and public data sets, as samples with a split.

    dataset = open_dataset("magnetic_tile")  # or "mnist:8", "mvtec:screw", "coil100", "cookies", a folder
    split = dataset.split(seed=0)  # train, validation, calibration, test
    frame = split.train[0].read()  # uint8, [H, W] or [H, W, 3]

`fetch` downloads a public data set, `available` and `describe` say what there is.
"""

from __future__ import annotations

from kizu.data.dataset import Augmentation, Dataset, Sample, Skipped, Split, SplitRule
from kizu.data.fetching import fetch
from kizu.data.images import Color, find_images, read_image
from kizu.data.info import Available, DatasetInfo, available, describe
from kizu.data.locating import cache_folder, locate
from kizu.data.opening import open_dataset

__all__ = [
    "Augmentation",
    "Available",
    "Color",
    "Dataset",
    "DatasetInfo",
    "Sample",
    "Skipped",
    "Split",
    "SplitRule",
    "available",
    "cache_folder",
    "describe",
    "fetch",
    "find_images",
    "locate",
    "open_dataset",
    "read_image",
]
