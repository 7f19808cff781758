"""Figure 1: images that G makes of normal and of anomalous latents, as training goes on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kizu.errors import TrainingError
from reproduction import figures
from reproduction.networks import Networks
from reproduction.page import Context, Section

COLUMNS = 8


def sections(context: Context) -> list[Section]:
    """A figure a run of the first seed: a panel an epoch."""
    paths = []
    for data, variant, run in context.of_first_seed():
        epochs = [*run.stops, run.settings.epochs]
        figure, axes = figures.panels(len(epochs), width=4.6, height=3.2, columns=2)
        for panel, epoch in zip(axes, epochs, strict=True):
            networks = Networks.load(run, context.output, epoch=None if epoch == epochs[-1] else epoch)
            rows = _rows(networks)
            panel.imshow(_mosaic(list(rows.values())), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            side = run.settings.size
            panel.set_yticks([side * (i + 0.5) for i in range(len(rows))], list(rows))
            panel.set_xticks([])
            panel.grid(False)
            panel.set_title(f"epoch {epoch}", fontsize=10)
        figure.suptitle(f"{data}, {variant}", fontsize=11)
        path = context.file(f"-{data}-{variant}.png".replace(":", "-").replace("/", "-"))
        figures.save(figure, path)
        paths.append(path)
    if not paths:
        raise TrainingError(f"{context.experiment.name}: there is no run to show")
    text = (
        f"Seed {context.seeds[0]}. *Fakes* are made as D sees them in training; *buffered* ones are drawn from the "
        "buffer; *real* ones are training images."
    )
    return [Section(text=text, figures=paths)]


def _rows(networks: Networks) -> dict[str, Tensor]:
    method, settings = networks.method, networks.run.settings
    normal, anomalous = networks.fakes(COLUMNS, seed=1)
    held = method.buffer[0].float()
    old_normal, old_anomalous = held[: method.held_normal], held[method.held_normal :]
    generator = torch.Generator().manual_seed(2)
    prepared = networks.images("train")
    real = torch.from_numpy(prepared.inputs(0, COLUMNS)[:, : method.image_shape[0]])
    rows = {"real": real, "fake-normal": normal, "fake-anomalous": anomalous}
    for name, images in (("buffered normal", old_normal), ("buffered anom.", old_anomalous)):
        if len(images):
            rows[name] = images[torch.randperm(len(images), generator=generator)[:COLUMNS]]
    assert not settings.mean, "the figure shows inputs that lie in [-1, 1]"
    return {name: images for name, images in rows.items() if len(images)}


def _mosaic(rows: list[Tensor]) -> NDArray[np.float32]:
    """Rows of images (N, C, H, W) in [-1, 1] as one picture (H, W, 3) in [0, 1]."""
    channels, side = rows[0].shape[1:3]
    picture = np.ones((3, side * len(rows), side * COLUMNS), np.float32)
    for y, images in enumerate(rows):
        for x, image in enumerate(images[:COLUMNS]):
            picture[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = image.numpy() / 2 + 0.5
    assert channels in (1, 3)
    return np.clip(np.moveaxis(picture, 0, 2), 0, 1)
