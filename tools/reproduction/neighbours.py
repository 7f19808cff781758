"""How far the nearest training image is: what a test set gives away to a method that only remembers."""

from __future__ import annotations

from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from kizu.data.prepared import PreparedImages
from kizu.metrics import auroc
from kizu.settings import TrainingSettings
from reproduction import provenance, results
from reproduction.experiments import settings_of_data
from reproduction.page import Context, Section, Table

SPLITS = ("magnetic_tile/random", "magnetic_tile/tile")
SIZE = 64
KINDS = ("pixels", "standardised")
COLUMNS = ("data", "variant", "seed", "auroc", "auroc_seen", "auroc_unseen", "seen", "unseen")


def sections(context: Context) -> list[Section]:
    """The AUROC of the distance to the nearest training image, with pixels as they are and standardised."""
    rows: list[results.Row] = []
    for data in SPLITS:
        for seed in context.seeds:
            stamp = {**provenance.stamp(), "date": provenance.now()}
            rows += [{"data": data, "seed": seed, **row, **stamp} for row in _judge(data, seed)]
    file = context.file(".csv")
    rows = results.merge_rows(file, rows, lock=context.lock, key=COLUMNS[:3], columns=(*COLUMNS, *results.STAMP))
    body = []
    for data in SPLITS:
        for kind in KINDS:
            own = [row for row in rows if (row["data"], row["variant"]) == (data, kind)]
            columns = [[row[name] for row in own if name in row] for name in COLUMNS[3:6]]
            counts = [str([row[name] for row in own])[1:-1] for name in ("seen", "unseen")]
            body.append([data, kind, *(_mean_sd(values) for values in columns), *counts])
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    text = (
        "Nothing is trained: a test image's score is its Euclidean distance to the nearest training image at "
        f"{SIZE} x {SIZE} pixels; *standardised*: each image less its mean, over its standard deviation. *Seen* counts "
        "only good test images of tiles that are in the training set under another exposure, *unseen* only the "
        f"others; how many there are is told for each seed. Mean ± standard deviation over seeds {seeds}."
    )
    return [
        Section(
            Table(["data", "images", "AUROC", "seen", "unseen", "seen images", "unseen images"], body),
            text,
            files=[file],
        )
    ]


def _mean_sd(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _judge(data: str, seed: int) -> list[results.Row]:
    chosen = {name: value for name, value in settings_of_data(data).items() if name in ("data", "split")}
    settings = TrainingSettings(**chosen, size=SIZE, seed=seed)
    dataset = settings.dataset()
    split, spec = settings.divide(dataset), settings.prepare(dataset)
    train, test = (PreparedImages.read(part, spec).images for part in (split.train, split.test))
    tiles = {sample.group for sample in split.train}
    anomalous = np.array([not sample.good for sample in split.test])
    seen = np.array([sample.group in tiles for sample in split.test])
    rows = []
    for kind in KINDS:
        scores = distances(vectors(test, kind), vectors(train, kind))
        row: results.Row = {"variant": kind, "auroc": auroc(scores, anomalous)}
        for name, some in (("seen", seen), ("unseen", ~seen)):
            chosen_images = anomalous | some
            row[name] = int((some & ~anomalous).sum())
            if row[name]:
                row[f"auroc_{name}"] = auroc(scores[chosen_images], anomalous[chosen_images])
        rows.append(row)
    return rows


def vectors(images: NDArray[np.uint8], kind: str) -> NDArray[np.float64]:
    """Images (N, channels, H, W) as vectors (N, M), as they are or standardised."""
    vectors = images.reshape(len(images), -1) / 255
    if kind == "standardised":
        vectors = (vectors - vectors.mean(1, keepdims=True)) / (vectors.std(1, keepdims=True) + 1e-2)
    return vectors


def distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each row of ``a`` to the nearest of ``b``."""
    squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    found: NDArray[np.float64] = np.sqrt(np.maximum(squares.min(1), 0))
    return found
