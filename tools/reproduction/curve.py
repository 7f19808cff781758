"""Figure 7: the validation AUROC over the epochs."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from kizu.run_folder import load_file
from kizu.settings import CHECKPOINT
from reproduction import figures
from reproduction.page import Context, Section


def sections(context: Context) -> list[Section]:
    """A panel a data set, a colour a variant, a line a run."""
    data = list(dict.fromkeys(row.data for row in context.rows))
    variants = list(dict.fromkeys(row.variant for row in context.rows))
    figure, axes = figures.panels(len(data), width=4.6, columns=2)
    for row in context.rows:
        history = load_file(row.run.folder(context.output) / CHECKPOINT)["history"]
        points = [(each["epoch"], each["val_auroc_labelled"]) for each in history if "val_auroc_labelled" in each]
        panel, color = axes[data.index(row.data)], figures.COLORS[variants.index(row.variant)]
        label = row.variant if row.seed == context.seeds[0] else None
        panel.plot(*zip(*points, strict=True), color=color, linewidth=1.3, alpha=0.85, label=label)
    for panel, name in zip(axes, data, strict=True):
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.set_ylabel("validation AUROC", fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.axhline(0.5, color="#9AA5B1", linewidth=0.8, linestyle=(0, (3, 3)))
    figures.legend(figure, axes)
    path = context.file("-epochs.png")
    figures.save(figure, path)
    text = f"Validation AUROC over the epochs, a line a run (seeds {', '.join(map(str, context.seeds))})."
    return [Section(text=text, figures=[path])]
