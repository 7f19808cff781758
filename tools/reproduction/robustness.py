"""Section V-G and figure 8: anomalies that training has not seen, fakes of a larger sigma and pasted patches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from kizu import threshold
from kizu.data.prepared import PreparedImages, cut_paste
from kizu.metrics import auroc
from reproduction import figures, provenance, results
from reproduction.networks import Networks, Scores
from reproduction.page import Context, Section, Table

FALSE_REJECT = 0.05
AREA = (0.2, 0.3)
FAKES = 256
SIGMAS = (5, 6, 7, 8)
KINDS = ("good", "anomalous", "fake-normal", *(f"fake, sigma {sigma}" for sigma in SIGMAS), "cut and pasted")
COLUMNS = ("data", "variant", "seed", "images", "number", "rejected", "auroc", "unchanged", "recipe")


def sections(context: Context) -> list[Section]:
    """The shares that a calibrated threshold rejects, and examples of pasted images."""
    file = context.file("-shares.csv")
    rows: list[results.Row] = []
    for planned in context.rows:
        networks = Networks.load(planned.run, context.output)
        key = {"data": planned.data, "variant": planned.variant, "seed": planned.seed, "recipe": planned.run.recipe}
        stamp = {**provenance.stamp(), "date": provenance.now()}
        rows += [{**key, **row, **stamp} for row in _judge(networks, planned.seed)]
    rows = results.merge_rows(file, rows, lock=context.lock, key=COLUMNS[:4], columns=(*COLUMNS, *results.STAMP))
    examples = context.file("-pasted.png")
    _show_pasted(context, examples)
    shares = context.file("-shares.png")
    _plot(rows, shares)
    body = []
    for data, variant in dict.fromkeys((row["data"], row["variant"]) for row in rows):
        for kind in KINDS:
            own = [row for row in rows if (row["data"], row["variant"], row["images"]) == (data, variant, kind)]
            areas = f"{mean(row['auroc'] for row in own):.3f}" if kind != "good" else "–"
            rejected = [row["rejected"] for row in own]
            body.append([data, variant, kind, f"{mean(rejected):.3f}", f"{min(rejected):.3f}", areas])
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    unchanged = [row["unchanged"] for row in rows if "unchanged" in row]
    text = (
        f"At the end of training; means over seeds {seeds}. The threshold is calibrated "
        f"on held-out good images so that no more than {FALSE_REJECT:.0%} of good ones be rejected; the AUROC is "
        f"against the good test images. Patches of {AREA[0]:.0%} to {AREA[1]:.0%} of the image, aspect 3:1 to 1:3, "
        "their brightness jittered, are pasted into good test images; a patch of background on background changes "
        f"nothing, and such images are left out ({mean(unchanged):.1%})."
    )
    table = Table(["data", "variant", "images", "rejected", "least", "AUROC"], body)
    return [Section(table, text, [shares, examples], [file])]


def _judge(networks: Networks, seed: int) -> Iterator[dict[str, Any]]:
    limit = threshold.conformal(networks.score(networks.images("calibration")), FALSE_REJECT)
    good_images = networks.images("test", good=True)
    good = networks.score(good_images)
    pasted, unchanged = _pasted(good_images, seed)
    sets: dict[str, Scores] = {"good": good, "anomalous": networks.score(networks.images("test", good=False))}
    sets["fake-normal"] = networks.score_fakes(networks.fakes(FAKES)[0])
    for sigma in SIGMAS:
        sets[f"fake, sigma {sigma}"] = networks.score_fakes(networks.fakes(FAKES, sigma=sigma)[1])
    sets["cut and pasted"] = networks.score(pasted)
    for kind, scores in sets.items():
        row = {"images": kind, "number": len(scores), "rejected": float(np.mean(~(scores <= limit)))}
        if kind != "good":
            labels = np.concatenate([np.zeros(len(good), bool), np.ones(len(scores), bool)])
            row["auroc"] = auroc(np.concatenate([good, scores]), labels)
        yield {**row, "unchanged": unchanged} if kind == "cut and pasted" else row


def _pasted(images: PreparedImages, seed: int) -> tuple[PreparedImages, float]:
    """Good images with a patch pasted, and the share of images that it left as they were; those are left out."""
    rng = np.random.default_rng(seed)
    pasted = np.stack([cut_paste(image, rng, area=AREA) for image in images.images])
    changed = (pasted != images.images).any(axis=(1, 2, 3))
    return PreparedImages(pasted[changed], images.spec), 1 - float(changed.mean())


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    data = list(dict.fromkeys(row["data"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = figures.panels(len(data), width=4.8, height=3.9, columns=2)
    for panel, name in zip(axes, data, strict=True):
        for number, variant in enumerate(variants):
            own = [row for row in rows if (row["data"], row["variant"]) == (name, variant)]
            shift = 0.2 * (number - (len(variants) - 1) / 2)
            x = [KINDS.index(row["images"]) + shift for row in own]
            panel.plot(x, [row["rejected"] for row in own], "o", markersize=4, color=figures.COLORS[number], alpha=0.8)
            panel.plot([], [], "o", color=figures.COLORS[number], label=variant)
        panel.axhline(FALSE_REJECT, color="#1B2430", linewidth=0.9, linestyle=(0, (4, 2.5)))
        panel.set_xticks(range(len(KINDS)), KINDS)
        panel.tick_params(axis="x", rotation=90)
        panel.set_ylim(-0.03, 1.03)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel(f"share rejected at {FALSE_REJECT:.0%} of good", fontsize=9)
    figures.legend(figure, axes)
    figures.save(figure, path)


def _show_pasted(context: Context, path: Path) -> None:
    """Figure 8: pasted images above, the ones they were made from below."""
    runs = {data: run for data, _, run in reversed(context.of_first_seed())}
    figure, axes = figures.panels(len(runs), width=5.0, height=1.6, columns=1)
    for panel, (data, run) in zip(axes, sorted(runs.items()), strict=True):
        images = Networks.load(run, context.output).images("test", good=True)
        few = PreparedImages(images.images[:10], images.spec)
        rng = np.random.default_rng(context.seeds[0])
        pasted = np.stack([cut_paste(image, rng, area=AREA) for image in few.images])
        rows = [np.concatenate(list(part), axis=2) for part in (pasted, few.images)]
        panel.imshow(np.moveaxis(np.concatenate(rows, axis=1), 0, 2), cmap="gray", vmin=0, vmax=255)
        panel.set_title(data, fontsize=10)
        panel.set_axis_off()
    figures.save(figure, path)
