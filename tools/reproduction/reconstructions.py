"""Figure 6 of the consistency BiGAN paper (2020): test images, what the systems reconstruct, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kizu.data import Sample
from kizu.data.prepared import PreparedImages
from kizu.heat_map import HeatMaps
from kizu.run_folder import load_file
from kizu.settings import epoch_file
from reproduction import figures
from reproduction.page import Context, Section
from reproduction.runs import Run

NORMAL, ABNORMAL = 4, 6  # columns
DATA_SETS = 2  # shown, of those without a search of their own
SIGMA = 1 / 64  # of the heat maps' smoothing, in sides of the model's input: its default, 4, at 256
CELL = 96  # pixels
GAP = 8
OUTLINE = np.array([0x56, 0xB4, 0xE9]) / 255

Picture = NDArray[np.float64]  # (CELL, CELL, 3) in [0, 1]


def sections(context: Context) -> list[Section]:
    """A figure a data set, of the runs of the first seed."""
    held: dict[str, dict[str, Run]] = {}
    for data, variant, run in context.of_first_seed():
        if epoch_file(run.folder(context.output), "labelled").exists():
            held.setdefault(data, {})[variant] = run
    search = context.experiment.search
    shown = [name for name in (search.data if search else ()) if name in held] or list(held)[:DATA_SETS]
    paths = []
    for name in shown:
        path = context.file(f"-{name}-images.png".replace(":", "-").replace("/", "-"))
        _show(name, held[name], context.output, path)
        paths.append(path)
    text = (
        "Test images x of the first seed; below them, for each system, its reconstruction x̂, which is G(E(x)) or for "
        "AnoGAN G(z) of the z that it finds, and the heat map of |x − x̂|, smoothed as kizu does it: bright is "
        "different, on one scale for all images of a system and data set. Normal images are at the left. Outlined is "
        "the true defect, where the data set tells it."
    )
    return [Section(text=text, figures=paths)] if paths else []


def choose(samples: Sequence[Sample]) -> list[int]:
    """Indices of the test images that are shown: normal ones, then anomalous ones of as many kinds as there is room."""
    normal = [i for i, sample in enumerate(samples) if sample.good][:NORMAL]
    by_kind: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if not sample.good:
            by_kind.setdefault(sample.kind, []).append(i)
    kinds = [by_kind[kind] for kind in sorted(by_kind)]
    if len(kinds) > ABNORMAL:
        kinds = [kinds[i * len(kinds) // ABNORMAL] for i in range(ABNORMAL)]
    turns = [(turn, place) for place, of_kind in enumerate(kinds) for turn in range(len(of_kind))]
    taken = sorted((place, turn) for turn, place in sorted(turns)[:ABNORMAL])
    return [*normal, *(kinds[place][turn] for place, turn in taken)]


def _show(data: str, runs: dict[str, Run], output: Path, path: Path) -> None:
    first = next(iter(runs.values()))
    dataset = first.settings.dataset()
    test = first.settings.divide(dataset).test
    samples = [test[i] for i in choose(test)]
    masks = [sample.read_mask() for sample in samples]
    labels = ["$x$"]
    rows: list[list[Picture]] = []
    for variant, run in runs.items():
        images, reconstructed, heat = _reconstruct(run, samples, output)
        box = run.settings.prepare(dataset).crop
        outlines = [None if mask is None else _outline(_square(_crop(mask, box))) for mask in masks]
        if not rows:
            rows.append([_outlined(_cell(image), line) for image, line in zip(images, outlines, strict=True)])
        scale = max(float(each.max()) for each in heat) or 1.0
        colors = [matplotlib.colormaps["inferno"](_square(_crop(each, box)) / scale)[..., :3] for each in heat]
        rows.append([_cell(image) for image in reconstructed])
        rows.append([_outlined(each, line) for each, line in zip(colors, outlines, strict=True)])
        labels += [f"{variant}   $\\hat{{x}}$", "$|x-\\hat{x}|$"]
    _draw(data, samples, labels, rows, path)


def _reconstruct(
    run: Run, samples: Sequence[Sample], output: Path
) -> tuple[Picture, Picture, list[NDArray[np.float32]]]:
    """Images and reconstructions (N, H, W, C) in [0, 1], and heat maps at the frames' sizes."""
    settings = run.settings
    assert not settings.mean, "the figure shows inputs that lie in [-1, 1]"
    spec = settings.prepare(settings.dataset())
    module = settings.create(spec).export_module()
    module.load_state_dict(load_file(epoch_file(run.folder(output), "labelled"))["module"])
    module.eval()
    x = PreparedImages.read(samples, spec).inputs()
    with torch.no_grad():
        x_hat = module(torch.from_numpy(x))["x_hat"].float().numpy()
    maps = np.ascontiguousarray(np.abs(x - x_hat).mean(1, dtype=np.float32))
    smooth = HeatMaps(spec)
    heat = [
        smooth(each[None], sample.read().shape[:2], sigma=SIGMA * settings.size)
        for each, sample in zip(maps, samples, strict=True)
    ]
    images, reconstructed = (
        np.clip(np.moveaxis(each[:, : spec.own_channels], 1, 3) / 2 + 0.5, 0, 1) for each in (x, x_hat)
    )
    return images, reconstructed, heat


def _crop(picture: NDArray[np.generic], box: tuple[int, int, int, int] | None) -> NDArray[np.generic]:
    left, top, right, bottom = box or (0, 0, *picture.shape[1::-1])
    return picture[top:bottom, left:right]


def _square(picture: NDArray[np.generic]) -> NDArray[np.float32]:
    """A plane (H, W) at the size of a cell."""
    resized = Image.fromarray(picture.astype(np.float32)).resize((CELL, CELL), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _cell(image: NDArray[np.generic]) -> Picture:
    """An image (H, W, C) in [0, 1] at the size of a cell, its pixels to be seen."""
    pixels = np.rint(np.broadcast_to(image, (*image.shape[:2], 3)) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)) / 255


def _outline(mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The pixels around a mask, two wide."""
    inside = mask > 0.5
    wide = np.pad(inside, 2)
    near = np.zeros_like(inside)
    for y in range(5):
        for x in range(5):
            near |= wide[y : y + CELL, x : x + CELL]
    line: NDArray[np.bool_] = near & ~inside
    return line


def _outlined(picture: Picture, line: NDArray[np.bool_] | None) -> Picture:
    return picture if line is None else np.where(line[..., None], OUTLINE, picture)


def _draw(data: str, samples: Sequence[Sample], labels: list[str], rows: list[list[Picture]], path: Path) -> None:
    """The rows of cells below the kinds of their images; a gap before the abnormal ones and between the systems."""
    normal = sum(sample.good for sample in samples)
    lefts = [x * CELL + (x >= normal) * 2 * GAP for x in range(len(samples))]
    tops = [y * CELL + (y + 1) // 2 * GAP for y in range(len(rows))]
    picture = np.ones((tops[-1] + CELL, lefts[-1] + CELL, 3))
    for row, top in zip(rows, tops, strict=True):
        for cell, left in zip(row, lefts, strict=True):
            picture[top : top + CELL, left : left + CELL] = cell
    height, width = picture.shape[:2]
    margin = 0.3 + 0.075 * max(len(label) for label in labels)  # inches
    figure, (panel,) = figures.panels(1, width=margin + width / 160, height=0.9 + height / 160)
    panel.imshow(picture)
    panel.grid(False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_yticks([top + CELL / 2 for top in tops], labels)
    panel.set_xticks([left + CELL / 2 for left in lefts], [sample.kind.replace("_", "\n") for sample in samples])
    panel.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    panel.set_title(data, fontsize=10)
    figures.save(figure, path)
