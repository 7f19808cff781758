"""Figure 5: histograms of D's logit, the sign reversed so that higher is more anomalous."""

from __future__ import annotations

import numpy as np

from kizu.metrics import auroc
from reproduction import figures
from reproduction.networks import Networks, Scores
from reproduction.page import Context, Section, Table

FAKES = 256


def sections(context: Context) -> list[Section]:
    """A panel a run of the first seed."""
    runs = context.of_first_seed()
    figure, axes = figures.panels(len(runs), width=4.6, columns=2)
    body = []
    for panel, (data, variant, run) in zip(axes, runs, strict=True):
        sets = _scores(Networks.load(run, context.output))
        every = np.concatenate(list(sets.values()))
        low, high = np.percentile(every, (0.5, 99.5))
        edges = np.linspace(low, high, 50)
        for (name, scores), color in zip(sets.items(), figures.COLORS, strict=False):
            heights = np.histogram(np.clip(scores, low, high), edges)[0] / len(scores)
            panel.stairs(heights, edges, fill=True, color=color, alpha=0.25)
            panel.stairs(heights, edges, color=color, linewidth=1.2, label=name)
            body.append([data, variant, name, str(len(scores)), f"{np.mean(scores):.2f}", f"{np.std(scores):.2f}"])
            body[-1].append("–" if name == "good" else f"{_auroc(sets['good'], scores):.3f}")
        panel.set_title(f"{data}, {variant}", fontsize=10)
        panel.set_xlabel("score: minus D's logit", fontsize=9)
        panel.set_ylabel("share of the kind", fontsize=9)
    figures.legend(figure, axes, columns=4)
    path = context.file("-scores.png")
    figures.save(figure, path)
    head = ["data", "variant", "images", "number", "mean score", "sd", "AUROC against good"]
    text = (
        f"Scores at the end of training (seed {context.seeds[0]}) of held-out good and anomalous images and of fakes "
        "made as D sees them in training. The outermost bars hold what lies beyond them."
    )
    return [Section(Table(head, body), text, [path])]


def _auroc(good: Scores, bad: Scores) -> float:
    return auroc(np.concatenate([good, bad]), np.concatenate([np.zeros(len(good), bool), np.ones(len(bad), bool)]))


def _scores(networks: Networks) -> dict[str, Scores]:
    fakes = networks.fakes(FAKES)
    sets = {"good": networks.score(networks.images("test", good=True))}
    sets["anomalous"] = networks.score(networks.images("test", good=False))
    for name, images in zip(("fake-normal", "fake-anomalous"), fakes, strict=True):
        if len(images):
            sets[name] = networks.score_fakes(images)
    return sets
