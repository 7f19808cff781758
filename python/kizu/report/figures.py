"""The figures as inline SVG, drawn by matplotlib (the ``report`` extra).

They are drawn on ``Figure`` objects alone: neither pyplot nor the global rcParams are touched. Colours are of the
Okabe-Ito palette, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Literal

import numpy as np

from kizu.evaluate import Evaluation
from kizu.metrics import FloatArray
from kizu.report.page import ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GOOD, _ANOMALOUS, _INK, _FAINT = "#0072B2", "#D55E00", "#1B2430", "#D5DBE2"
_SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MANY_ROC_POINTS = 600

_Series = dict[str, list[tuple[float, float]]]  # a log's key -> epochs and values


@dataclass(frozen=True)
class Scale:
    """The range of scores that is drawn, and with how many decimals scores are written."""

    low: float
    high: float
    decimals: int

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scale:
        """A range of scores that a few far outliers cannot stretch until nothing else is to be seen."""
        scores = evaluation.scores
        p1, p99 = (float(value) for value in np.percentile(scores, (1, 99)))
        # Halves, since the difference of two finite numbers may overflow.
        margin = 0.5 * (p99 / 2 - p1 / 2)
        low, high = max(float(scores.min()), p1 - margin), min(float(scores.max()), p99 + margin)
        if evaluation.threshold is not None:
            low, high = min(low, evaluation.threshold), max(high, evaluation.threshold)
        pad = 0.04 * (high / 2 - low / 2) or max(abs(low) * 0.05, 1e-6)
        # Three digits of the spread tell scores apart, whatever their unit.
        decimals = min(12, max(0, 2 - math.floor(math.log10(high / 2 - low / 2 + pad))))
        return cls(low - pad, high + pad, decimals)

    def show(self, score: float) -> str:
        """The score as it is written."""
        text = f"{score:.{self.decimals}f}" if abs(score) < 1e7 else f"{score:.6g}"
        return text.replace("-", "−")

    def place(self, score: float) -> str:
        """Where the score stands on an axis 1000 units long."""
        return f"{1000 * (min(max(score, self.low), self.high) - self.low) / (self.high - self.low):.1f}"


def histogram(evaluation: Evaluation, scale: Scale) -> str:
    """The scores of either class, each adding up to 1; those beyond the scale count in the outermost bars."""
    low, high, labels = scale.low, scale.high, evaluation.labels
    scores = np.clip(evaluation.scores, low, high)
    figure, axes = _figure()
    edges = np.linspace(low, high, _bin_count(evaluation.scores, low, high) + 1)
    for members, name, color in ((~labels, "good", _GOOD), (labels, "anomalous", _ANOMALOUS)):
        count = int(members.sum())
        if count:
            heights = np.histogram(scores[members], edges)[0] / count
            axes.stairs(heights, edges, fill=True, color=color, alpha=0.35)
            axes.stairs(heights, edges, color=color, linewidth=1.3, label=f"{name} ({count:,})")
    if evaluation.threshold is not None:
        axes.axvline(evaluation.threshold, color=_INK, linewidth=1.2, linestyle=(0, (4, 2.5)), label="threshold")
    axes.set_xlim(low, high)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.set_xlabel("anomaly score")
    axes.set_ylabel("share of the class")
    _legend(axes, "upper center", columns=len(axes.get_legend_handles_labels()[0]))
    return _svg(figure, "Histogram of the anomaly scores of good and of anomalous images", "h")


def _bin_count(scores: FloatArray, low: float, high: float) -> int:
    q1, q3 = np.percentile(scores, (25, 75))
    width = 2 * float(q3 - q1) / scores.size ** (1 / 3)
    count = (high - low) / width if width > 0 else 30
    return int(min(60, max(20, count))) if math.isfinite(count) else 30


def roc(evaluation: Evaluation) -> str | None:
    """The ROC curve with a dot at the threshold; None if a class is missing."""
    curve, counts = evaluation.roc, evaluation.confusion
    if curve is None:
        return None
    x, y = _thin(curve.false_reject, curve.recall)
    figure, axes = _figure()
    axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=1.2, linestyle=(0, (3, 3)))
    axes.fill_between(x, y, color=_GOOD, alpha=0.10, linewidth=0)
    axes.plot(x, y, color=_GOOD, linewidth=1.8, solid_joinstyle="round", label=f"AUROC {ratio(evaluation.auroc)}")
    if counts is not None and counts.false_reject_rate is not None and counts.recall is not None:
        axes.plot(
            [counts.false_reject_rate],
            [counts.recall],
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor=_ANOMALOUS,
            markeredgecolor="white",
            markeredgewidth=1.5,
            clip_on=False,
            zorder=5,
            label="at the threshold",
        )
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("false-reject rate")
    axes.set_ylabel("anomalous images found (recall)")
    _legend(axes, "lower right")
    return _svg(figure, f"ROC curve, area {ratio(evaluation.auroc)}", "r")


def _thin(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The corners of a staircase, and of those no more than an eye can tell apart."""
    dx, dy = np.diff(x), np.diff(y)
    corner = np.concatenate(([True], dx[1:] * dy[:-1] != dx[:-1] * dy[1:], [True]))
    x, y = x[corner], y[corner]
    if x.size > _MANY_ROC_POINTS:
        # Rounded to a grid, from which one point each is kept: by length, not by index.
        steps = np.round((x + y) / 2 * (_MANY_ROC_POINTS - 2)).astype(np.int64)
        keep = np.unique(np.concatenate(([0], np.flatnonzero(np.diff(steps)) + 1, [x.size - 1])))
        x, y = x[keep], y[keep]
    return x, y


def curves(history: Sequence[Mapping[str, object]], chosen_epoch: int | None) -> dict[str, str]:
    """Up to three figures of what a training log holds, by their titles; the chosen epoch is marked."""
    from matplotlib.ticker import MaxNLocator

    logged = _logged(history)
    figures = {}
    for number, (title, series) in enumerate(logged.items()):
        # Three stand in a row and are shown smaller: drawn smaller, their lettering stays as large.
        figure, axes = _figure(width=4.0 if len(logged) == 3 else 5.0)
        for color, (key, points) in zip(cycle(_SERIES_COLORS), series.items()):
            epochs, values = zip(*points, strict=True)
            marker = "o" if len(points) <= 40 else ""
            axes.plot(epochs, values, color=color, linewidth=1.5, marker=marker, markersize=3, label=_label(key))
        if chosen_epoch is not None:
            axes.axvline(chosen_epoch, color=_INK, linewidth=1.1, linestyle=(0, (4, 2.5)))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.15)
        _legend(axes, "best")
        figures[title] = _svg(figure, f"{title} by epoch", f"t{number}")
    return figures


def _logged(history: Sequence[Mapping[str, object]]) -> dict[str, _Series]:
    """Losses, validation areas (AUROC, AUPR) and what else validation gives, by their titles; no empty ones."""
    losses: _Series = {}
    areas: _Series = {}
    others: _Series = {}
    for number, row in enumerate(history, 1):
        epoch = _number(row.get("epoch", number))
        if epoch is None:
            continue
        for key, entry in row.items():
            value, name = _number(entry), key.lower()
            if value is None or not name.startswith(("loss", "val")):
                continue
            is_area = "auroc" in name or "aupr" in name
            series = losses if name.startswith("loss") else areas if is_area else others
            series.setdefault(key, []).append((epoch, value))
    titled = {"Training losses": losses, "Validation areas": areas, "Other validation figures": others}
    return {title: series for title, series in titled.items() if series}


def _number(value: object) -> float | None:
    if isinstance(value, (str, int, float, np.number)) and not isinstance(value, bool):
        with suppress(ValueError):
            number = float(value)
            return number if math.isfinite(number) else None
    return None


def _label(key: str) -> str:
    text = re.sub(r"^val_", "validation ", key).replace("_", " ")
    text = re.sub("auroc|aupr", lambda match: match[0].upper(), text)
    # A legend wider than its figure would leave no room for the axes, and dollar signs would be read as mathematics.
    return (text if len(text) <= 40 else f"{text[:39]}…").replace("$", r"\$")


def _figure(*, width: float = 5.0) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 0.5 * width + 1), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("white")
    axes.grid(True, color="#E9EDF1", linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#9AA5B1")
        spine.set_linewidth(0.8)
    axes.tick_params(colors="#44505C", labelsize=9, length=3, width=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(_INK)
        axis.label.set_fontsize(9.5)
    return figure, axes


def _legend(axes: Axes, place: Literal["best", "lower right", "upper center"], *, columns: int = 1) -> None:
    legend = axes.legend(
        loc=place,
        ncols=columns,
        fontsize=8.5,
        labelcolor=_INK,
        frameon=True,
        facecolor="white",
        edgecolor="none",
        framealpha=0.85,
        columnspacing=1.2,
        handlelength=1.6,
    )
    legend.set_zorder(10)


def _svg(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an SVG element that can stand beside others in one page."""
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = data.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    # Ids are renamed: those of several figures would clash, and random ones would make each page another.
    ids = dict.fromkeys(re.findall(r'\bid="([^"]*)"', svg))
    names = {each: f"{prefix}{number}" for number, each in enumerate(ids)}
    svg = re.sub(r'(\bid="|href="#|url\(#)([^")]*)', lambda match: match[1] + names[match[2]], svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    body = re.sub(r"\s*\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()
    return f'<svg class="plot" role="img" aria-label="{escape(label)}" {view[0]}>{body}'
