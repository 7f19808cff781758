"""The experiments of the consistency BiGAN paper (2020): systems compared after a search that is the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from kizu.data import Sample
from kizu.data.prepared import PreparedImages
from kizu.metrics import auroc
from reproduction import figures, reconstructions, results, search
from reproduction.experiments import Experiment
from reproduction.page import Context, Section, Table
from reproduction.results import Line
from reproduction.runs import Run

# Table 1, metal nut of MVTec AD, by experiment.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "komoto-mvtec": {
        "AutoEncoder": 0.63,
        "AnoGAN": 0.76,
        "EGBAD": 0.78,
        "projection": 0.77,
        "concat + consistency": 0.79,
        "projection + consistency": 0.84,
    }
}
_EXPLAINED = (
    "AUROC on the test images, mean ± standard deviation over the runs of a data set; the last columns are means over "
    "the data sets, which order the systems. On validation images, not on test images, are chosen, for all "
    "systems alike: the epoch (the labelled rule); the settings, by a search; the scoring rule and its lambda of "
    "{0, 0.02, 0.05, 0.1, 0.2, …, 1}, for each run at its epoch. *Preset lambda*: at the methods' own scoring rules "
    "and lambdas, by which the epochs are picked, too. *Brightness alone*: nothing is trained; the score is an image's "
    "mean, or minus it, whichever parts the validation images (seed {seed}). What it reaches says nothing of defects, "
    "and a system may reach it by the same way."
)
_SEARCHED = (
    "The search: AUROC on the validation images of {data}, seed {seeds}, with the best lambda. Each system has as many "
    "candidates, and takes the best, in bold type, for all its runs."
)
_WEIGHED = (
    "The lambdas of the runs in the order of their seeds, {seeds}: of the features' residual, or, with *c*, of the "
    "cross-entropy of the logit. A dash: the residual alone is scored."
)


def sections(context: Context) -> list[Section]:
    """The systems' AUROCs, what was chosen, and reconstructions."""
    experiment = context.experiment
    file = context.file(".csv")
    lines = _lines(experiment, results.read_rows(file))
    data = list(dict.fromkeys(line.data for line in lines))
    order = _order(lines, experiment.labelled_variants(), data)
    lines.sort(key=lambda line: order.index(line.variant))
    bars = context.file(".png")
    _plot(lines, [name for name in experiment.labelled_variants() if name in order], data, bars)
    explained = _EXPLAINED.replace("{seed}", str(context.of_first_seed()[0][2].settings.seed))
    text = f"{explained}\n\n{results.provenance_of([row for line in lines for row in line.rows])}"
    found = context.file("-search.csv")
    return [
        Section(areas_table(experiment, lines, order, data, _brightness(context, data)), text, [bars], [file]),
        Section(*_search_table(experiment, results.read_rows(found), order, data), files=[found]),
        Section(*_weights_table(lines, order, data)),
        *reconstructions.sections(context),
    ]


def _lines(experiment: Experiment, rows: Sequence[results.Row]) -> list[Line]:
    rows = [row for row in rows if "test_chosen" in row]
    lines = results.lines_of(rows, list(experiment.labelled_variants()), experiment.data)
    return [line for line in lines if line.data != "all"]


def _mean(lines: Sequence[Line], variant: str, data: Sequence[str], column: str) -> float | None:
    """Mean over data sets of a system's means over runs; None if a data set is missing."""
    values = [mean(line.values(column)) for line in lines if line.variant == variant]
    return mean(values) if len(values) == len(data) else None


def _order(lines: Sequence[Line], variants: Sequence[str] | Mapping[str, object], data: Sequence[str]) -> list[str]:
    """Systems with runs, the best first; those that lack a data set last."""
    held = [name for name in variants if any(line.variant == name for line in lines)]
    means = {name: _mean(lines, name, data, "test_chosen") for name in held}
    return sorted(held, key=lambda name: -(means[name] or 0.0))


def _brightness(context: Context, data: Sequence[str]) -> list[float | None]:
    """The test AUROC of the images' mean by data set, of the first seed; None of data without runs in this call."""
    runs = {name: run for name, _, run in reversed(context.of_first_seed())}
    return [brightness_alone(runs[name]) if name in runs else None for name in data]


def brightness_alone(run: Run) -> float:
    """The AUROC of the test images' mean, its sign chosen on the run's validation images."""
    dataset = run.settings.dataset()
    split, spec = run.settings.divide(dataset), run.settings.prepare(dataset)

    def area(samples: Sequence[Sample]) -> float:
        means = PreparedImages.read(samples, spec).images.mean((1, 2, 3))
        return auroc(means, np.array([not sample.good for sample in samples]))

    of_test = area(split.test)
    return of_test if area(split.validation) >= 0.5 else 1 - of_test


def areas_table(
    experiment: Experiment,
    lines: Sequence[Line],
    order: Sequence[str],
    data: Sequence[str],
    brightness: Sequence[float | None],
) -> Table:
    """Test AUROC by system and data set, and by brightness alone."""
    published = PUBLISHED.get(experiment.name, {})
    cells = {(line.variant, line.data): line.mean_sd("test_chosen") for line in lines}
    body = []
    for system in order:
        means = [_mean(lines, system, data, column) for column in ("test_chosen", "test_labelled")]
        row = [system, *(cells.get((system, name), "–") for name in data)]
        row += ["–" if value is None else f"{value:.3f}" for value in means]
        body.append(row + ([f"{published[system]:.2f}" if system in published else "–"] if published else []))
    known = [value for value in brightness if value is not None]
    alone = [*brightness, mean(known) if known and len(known) == len(data) else None, None]
    row = ["brightness alone", *("–" if value is None else f"{value:.3f}" for value in alone)]
    body.append(row + (["–"] if published else []))
    head = ["system", *data, "mean", "mean, preset lambda", *(["published, metal nut"] if published else [])]
    return Table(head, body)


def _search_table(
    experiment: Experiment, rows: Sequence[results.Row], order: Sequence[str], data: Sequence[str]
) -> tuple[Table, str]:
    """Validation AUROC of all candidates."""
    of = experiment.search
    assert of is not None
    labels = list(dict.fromkeys(label for system in order for label in of.candidates[system]))
    body = []
    for searched in [of.data] if of.data else [(name,) for name in data]:
        best = search.best(experiment, rows, searched)
        for system in order:
            row = [*([] if of.data else searched), system]
            for label in labels:
                value = search.value(searched, of.seeds, search.name_of(system, label), rows)
                text = "–" if value is None else f"{value:.3f}"
                row.append(f"**{text}**" if label == best.get((searched[0], system)) else text)
            body.append(row)
    where = ", ".join(of.data) if of.data else "the data set itself"
    text = _SEARCHED.format(data=where, seeds=", ".join(map(str, of.seeds)))
    return Table([*([] if of.data else ["data"]), "system", *labels], body), text


def _weights_table(lines: Sequence[Line], order: Sequence[str], data: Sequence[str]) -> tuple[Table, str]:
    """The scoring rules and lambdas that the runs chose."""
    cells = {(line.variant, line.data): ", ".join(map(_weight, line.rows)) for line in lines}
    body = [[system, *(cells.get((system, name), "–") for name in data)] for system in order]
    seeds = ", ".join(map(str, sorted({row["seed"] for line in lines for row in line.rows})))
    return Table(["lambda", *data], body), _WEIGHED.format(seeds=seeds)


def _weight(row: results.Row) -> str:
    if row["scoring"] == "residual":
        return "–"
    return f"{row['weight']:g}" + (" c" if row["scoring"] == "residual_logit" else "")


def _plot(lines: Sequence[Line], systems: Sequence[str], data: Sequence[str], path: Path) -> None:
    """Figure 5: a group of bars a data set, a bar a system; at the right their means over the data sets."""
    values = {(line.variant, line.data): line.values("test_chosen") for line in lines}
    groups = [*data, "mean"] if len(data) > 1 else list(data)
    for system in systems if len(data) > 1 else ():
        value = _mean(lines, system, data, "test_chosen")
        values[system, "mean"] = [] if value is None else [value]
    every = [value for each in values.values() for value in each]
    bottom = min(0.5, *(int(value * 10) / 10 for value in every))
    width = 0.84 / len(systems)
    figure, (panel,) = figures.panels(1, width=max(4.6, 0.8 + len(groups) * (0.35 + 0.1 * len(systems))), height=3.4)
    for number, system in enumerate(systems):
        held = [(place, values[system, name]) for place, name in enumerate(groups) if values.get((system, name))]
        x = [place + (place >= len(data)) * 0.3 + (number - (len(systems) - 1) / 2) * width for place, _ in held]
        heights = [mean(each) - bottom for _, each in held]
        panel.bar(x, heights, 0.9 * width, bottom, color=figures.COLORS[number % len(figures.COLORS)], label=system)
        for at, height, (_, each) in zip(x, heights, held, strict=True):
            if len(each) > 1:
                sd = stdev(each)
                panel.plot([at, at], [bottom + height - sd, bottom + height + sd], color="#1B2430", linewidth=0.9)
    panel.set_xticks(
        [place + (place >= len(data)) * 0.3 for place in range(len(groups))],
        [name.removeprefix("mnist:") for name in groups],
    )
    panel.grid(False, axis="x")
    panel.tick_params(axis="x", length=0)
    panel.set_ylim(bottom, 1.0)
    panel.set_ylabel("test AUROC", fontsize=9)
    if any(name.startswith("mnist:") for name in data):
        panel.set_xlabel("the normal digit", fontsize=9)
    figures.legend(figure, [panel], columns=len(systems) if len(groups) > 4 else 3)
    figures.save(figure, path)
