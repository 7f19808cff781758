"""What the figures share: a plain style, colours that colour-blind readers can tell apart, files of fixed bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from PIL import Image

from kizu.run_folder import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from reproduction.results import Line

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8F98")
RULES = {"last": "end of training", "labelled": "labelled rule", "good": "good rule"}


def panels(count: int, *, width: float = 4.0, height: float = 3.2, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels."""
    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), facecolor="white", layout="constrained")
    axes = [figure.add_subplot(down, across, i + 1) for i in range(count)]
    for each in axes:
        each.grid(True, color="#E9EDF1", linewidth=0.7)
        each.set_axisbelow(True)
        for side, spine in each.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#9AA5B1")
        each.tick_params(colors="#44505C", labelsize=8)
    return figure, axes


def legend(figure: Figure, axes: Sequence[Axes], *, columns: int = 3) -> None:
    """One legend of all panels, above them."""
    handles: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = list(handles)
    figure.legend(list(handles.values()), names, loc="outside upper center", ncols=columns, fontsize=8, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG of 256 colours; the same figure gives the same bytes."""
    drawn, stream = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, stream.getvalue())


def areas(lines: Sequence[Line], path: Path) -> None:
    """The test AUROC of every run, a panel a data set (or one over data sets, if there is one variant)."""
    lines = [line for line in lines if line.data != "all"]
    by_data = {line.data: [each for each in lines if each.data == line.data] for line in lines}
    many = len({line.variant for line in lines}) > 1
    groups = by_data if many else {lines[0].variant: list(lines)}
    longest = max(len(group) for group in groups.values())
    label_length = max(len(line.variant if many else line.data) for line in lines)
    figure, axes = panels(
        len(groups), width=max(3.6, 1.2 + 0.55 * longest), height=3.0 + 0.05 * label_length, columns=2
    )
    for panel, (title, group) in zip(axes, groups.items(), strict=True):
        for number, (rule, label) in enumerate(RULES.items()):
            points = [(x, value) for x, line in enumerate(group) for value in line.values(f"test_{rule}")]
            if not points:
                continue
            shift = 0.22 * (number - 1)
            x, y = zip(*points, strict=True)
            panel.plot(
                [value + shift for value in x], y, "o", color=COLORS[number], markersize=4, alpha=0.75, label=label
            )
            for place, line in enumerate(group):
                values = line.values(f"test_{rule}")
                if values:
                    level = sum(values) / len(values)
                    panel.plot([place + shift - 0.1, place + shift + 0.1], [level] * 2, color=COLORS[number])
        panel.set_xticks(range(len(group)), [line.variant if many else line.data for line in group])
        panel.tick_params(axis="x", rotation=90 if longest > 4 else 20)
        panel.set_xlim(-0.6, len(group) - 0.4)
        panel.set_title(title, fontsize=10)
        panel.set_ylabel("test AUROC", fontsize=9)
    legend(figure, axes)
    save(figure, path)
