"""One self-contained HTML page on an evaluation: no script, no font, no request to anywhere.

Figures are inline SVG drawn by matplotlib (the ``report`` extra), on ``Figure`` objects alone: neither pyplot
nor the global rcParams are touched. Colours are of the Okabe-Ito palette, which colour-blind readers can tell
apart.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kizu.errors import KizuError
from kizu.evaluate import STAGES, Evaluation, Interval, KindSummary, SampleLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ReportError", "render_report", "write_report"]

GOOD, ANOMALOUS, INK, FAINT = "#0072B2", "#D55E00", "#1B2430", "#D5DBE2"
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MANY_KINDS = 24
MANY_MARKS = 200
MANY_ROC_POINTS = 600


class ReportError(KizuError):
    """A report cannot be drawn or written."""


def write_report(
    evaluation: Evaluation,
    path: str | os.PathLike[str],
    *,
    bundle_info: Mapping[str, object],
    runtime_info: Mapping[str, object] | None = None,
    history: Sequence[Mapping[str, object]] | None = None,
    chosen_epoch: int | None = None,
    samples: Iterable[SampleLike] = (),
    examples: int = 8,
    thumbnail: int = 176,
    title: str = "Evaluation",
    created: datetime | None = None,
) -> None:
    """Writes the page of ``render_report`` (same arguments) to ``path``, all of it or nothing.

    Folders on the way are made. A page that stands there is replaced only once the new one is complete.

    Raises ReportError if matplotlib is not installed or the file cannot be written.
    """
    page = render_report(
        evaluation,
        bundle_info=bundle_info,
        runtime_info=runtime_info,
        history=history,
        chosen_epoch=chosen_epoch,
        samples=samples,
        examples=examples,
        thumbnail=thumbnail,
        title=title,
        created=created,
    )
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name that is not UTF-8 on disk reaches here as lone surrogates; it must not cost the report.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(target)
    except OSError as error:
        raise ReportError(f"{target}: the report cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def render_report(
    evaluation: Evaluation,
    *,
    bundle_info: Mapping[str, object],
    runtime_info: Mapping[str, object] | None = None,
    history: Sequence[Mapping[str, object]] | None = None,
    chosen_epoch: int | None = None,
    samples: Iterable[SampleLike] = (),
    examples: int = 8,
    thumbnail: int = 176,
    title: str = "Evaluation",
    created: datetime | None = None,
) -> str:
    """The page as one string of HTML.

    ``bundle_info``: rows of the model's table in their order, e.g. method, input size, precision, threshold
    rule, data, split rule, seed, epoch rule, versions. ``runtime_info``: what the latencies were measured on,
    e.g. machine, engine, precision, threads. Keys are names (``_`` is shown as a space); values numbers,
    strings, sequences or mappings. ``history``: one mapping a row of the training log with ``epoch`` (else
    rows are counted), ``loss…`` and ``val…``; entries that are absent, None or not finite are skipped.
    ``chosen_epoch`` is marked in the curves. ``samples``: where the images of the evaluation can be read by
    name; those that cannot be are shown without picture. ``examples``: images a row. ``thumbnail``: their
    longer side in pixels. ``created``: shown on the page; default now.

    Raises ReportError if matplotlib is not installed.
    """
    _require_matplotlib()
    when = created if created is not None else datetime.now(timezone.utc).astimezone()
    scale = _scale(evaluation)
    pictures = {sample.name: sample for sample in samples}
    sections = [
        _headline(evaluation),
        _scores_section(evaluation, scale),
        _kinds_section(evaluation, scale),
        _images_section(evaluation, scale, pictures, examples, thumbnail),
        _training_section(history, chosen_epoch),
        '<div class="columns">',
        _latency_section(evaluation, runtime_info or {}),
        _section("Model", _definitions(bundle_info) or _absent("Nothing is recorded about the model.")),
        "</div>",
    ]
    return PAGE.format(
        title=escape(title),
        style=STYLE,
        when=escape(when.strftime("%Y-%m-%d %H:%M %Z").strip()),
        summary=_summary(evaluation, scale),
        body="\n".join(sections),
    )


def _require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ReportError(
            'the report draws its figures with matplotlib, which is not installed: pip install "kizu[report]"'
        ) from error


# --- headline -------------------------------------------------------------------------------------


def _summary(evaluation: Evaluation, scale: _Scale) -> str:
    good, anomalous = evaluation.n_good, evaluation.n_anomalous
    images = f"{_plural(good, 'good image')} and {anomalous:,} anomalous"
    parts = evaluation.n_parts
    repeats = f" of {_plural(parts, 'part')}" if parts < good + anomalous else ""
    counts = evaluation.confusion
    if counts is None:
        return f"{images}{repeats}. No threshold is set, so nothing is passed or rejected."
    verdicts = []
    if good:
        verdicts.append(f"<strong>{counts.false_positive:,}</strong> of {good:,} good images are rejected")
    if anomalous:
        verdicts.append(f"<strong>{counts.false_negative:,}</strong> of {anomalous:,} anomalous images pass")
    assert evaluation.threshold is not None
    threshold = scale.show(evaluation.threshold)
    return f"{images}{repeats}. At the threshold {threshold}, {' and '.join(verdicts)}."


def _headline(evaluation: Evaluation) -> str:
    intervals = evaluation.area_intervals
    counts = evaluation.confusion
    no_class = "needs anomalous images; there are none" if evaluation.n_good else "needs good images; there are none"
    no_threshold = "no threshold is set"
    share = evaluation.n_anomalous / len(evaluation.names)
    separated = intervals is not None and intervals.auroc.low == intervals.auroc.high == 1
    cards = [
        _card(
            "AUROC",
            _ratio(evaluation.auroc),
            no_class
            if intervals is None
            else "no overlap in these images: the bootstrap has no spread"
            if separated
            else _interval(intervals.auroc, _ratio),
        ),
        _card(
            "AUPR",
            _ratio(evaluation.aupr),
            no_class
            if intervals is None
            else f"chance {share:.3f}"
            if separated
            else f"{_interval(intervals.aupr, _ratio)}; chance {share:.3f}",
        ),
        _card(
            "F1 at the threshold",
            _ratio(evaluation.f1),
            no_threshold
            if counts is None
            else no_class
            if evaluation.f1 is None
            else f"precision {_ratio(counts.precision)}, recall {_ratio(counts.recall)}",
        ),
        _card(
            "False rejects",
            _percent(evaluation.false_reject_rate),
            no_threshold
            if counts is None
            else f"{counts.false_positive:,} of {counts.good:,}; "
            f"{_interval(evaluation.false_reject_interval, _percent)}"
            if counts.good
            else "needs good images; there are none",
            "good",
        ),
        _card(
            "Misses",
            _percent(evaluation.miss_rate),
            no_threshold
            if counts is None
            else f"{counts.false_negative:,} of {counts.anomalous:,}; {_interval(evaluation.miss_interval, _percent)}"
            if counts.anomalous
            else no_class,
            "anomalous",
        ),
        _card(
            "Images",
            f'<span class="good">{evaluation.n_good:,}<small> good</small></span> '
            f'<span class="anomalous">{evaluation.n_anomalous:,}<small> anomalous</small></span>',
            f"{_plural(evaluation.n_parts, 'physical part')}",
        ),
    ]
    note = ""
    if evaluation.n_parts < len(evaluation.names) and (intervals or counts):
        note = _caption(
            "Some parts are pictured more than once. The intervals of AUROC and AUPR account for that; those "
            "of the false rejects and misses take images for independent and are somewhat too narrow."
        )
    return f'<section aria-label="Key figures"><div class="cards">{"".join(cards)}</div>{note}</section>'


def _card(name: str, value: str, note: str, accent: str = "") -> str:
    return (
        f'<div class="card {accent}"><h2>{escape(name)}</h2><p class="value">{value}</p>'
        f'<p class="note">{escape(note)}</p></div>'
    )


# --- scores ---------------------------------------------------------------------------------------


def _scores_section(evaluation: Evaluation, scale: _Scale) -> str:
    low, high = scale.low, scale.high
    scores, labels = evaluation.scores, evaluation.labels
    outside = int(((scores < low) | (scores > high)).sum())
    figure, axes = _figure()
    edges = np.linspace(low, high, _bin_count(scores, low, high) + 1)
    handles = 0
    for members, name, color in ((~labels, "good", GOOD), (labels, "anomalous", ANOMALOUS)):
        if not members.any():
            continue
        heights = np.histogram(np.clip(scores[members], low, high), edges)[0] / members.sum()
        axes.stairs(heights, edges, fill=True, color=color, alpha=0.35)
        axes.stairs(heights, edges, color=color, linewidth=1.3, label=f"{name} ({int(members.sum()):,})")
        handles += 1
    if evaluation.threshold is not None:
        axes.axvline(evaluation.threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2.5)), label="threshold")
        handles += 1
    axes.set_xlim(low, high)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.set_xlabel("anomaly score")
    axes.set_ylabel("share of the class")
    _legend(axes, "upper center", columns=handles)
    beyond = f" {_plural(outside, 'score')} beyond the axis {_is(outside)} in the outermost bars." if outside else ""
    threshold = (
        "" if evaluation.threshold is None else f" The dashed line is the threshold {scale.show(evaluation.threshold)}."
    )
    histogram = _plot(figure, "Histogram of the anomaly scores of good and of anomalous images", "h") + _caption(
        f"Histogram of scores by class, each class adding up to 1.{threshold}{beyond}"
    )
    return _section(
        "Scores",
        f'<div class="columns"><figure class="drawn">{histogram}</figure>'
        f'<figure class="drawn">{_roc(evaluation)}</figure></div>',
    )


def _roc(evaluation: Evaluation) -> str:
    curve = evaluation.roc
    if curve is None:
        missing = "anomalous" if evaluation.n_good else "good"
        return _absent(f"No ROC curve: it needs images of both classes, and there are no {missing} ones.")
    x, y = _thin(curve.false_reject, curve.recall)
    figure, axes = _figure()
    axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1.2, linestyle=(0, (3, 3)))
    axes.fill_between(x, y, color=GOOD, alpha=0.10, linewidth=0)
    axes.plot(x, y, color=GOOD, linewidth=1.8, solid_joinstyle="round", label=f"AUROC {_ratio(evaluation.auroc)}")
    counts = evaluation.confusion
    at = ""
    if counts is not None and counts.false_reject_rate is not None and counts.recall is not None:
        axes.plot(
            [counts.false_reject_rate],
            [counts.recall],
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor=ANOMALOUS,
            markeredgecolor="white",
            markeredgewidth=1.5,
            clip_on=False,
            zorder=5,
            label="at the threshold",
        )
        at = (
            f" The dot is the threshold: {_percent(counts.recall)} found at "
            f"{_percent(counts.false_reject_rate)} false rejects."
        )
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("false-reject rate")
    axes.set_ylabel("anomalous images found (recall)")
    _legend(axes, "lower right")
    label = f"ROC curve, area {_ratio(evaluation.auroc)}"
    return _plot(figure, label, "r") + _caption(f"ROC curve.{at}")


@dataclass(frozen=True)
class _Scale:
    """The range of scores that is drawn, and with how many decimals scores are written."""

    low: float
    high: float
    decimals: int

    def show(self, value: float) -> str:
        text = f"{value:.{self.decimals}f}" if abs(value) < 1e7 else f"{value:.6g}"
        return text.replace("-", "−")


def _scale(evaluation: Evaluation) -> _Scale:
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
    return _Scale(low - pad, high + pad, decimals)


def _bin_count(scores: NDArray[np.float64], low: float, high: float) -> int:
    q1, q3 = np.percentile(scores, (25, 75))
    width = 2 * float(q3 - q1) / scores.size ** (1 / 3)
    count = (high - low) / width if width > 0 else 30
    return int(min(60, max(20, count))) if math.isfinite(count) else 30


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The corners of a staircase, and of those no more than an eye can tell apart."""
    dx, dy = np.diff(x), np.diff(y)
    corner = np.concatenate(([True], dx[1:] * dy[:-1] != dx[:-1] * dy[1:], [True]))
    x, y = x[corner], y[corner]
    if x.size > MANY_ROC_POINTS:
        # Rounded to a grid, from which one point each is kept: by length, not by index.
        steps = np.round((x + y) / 2 * (MANY_ROC_POINTS - 2)).astype(np.int64)
        keep = np.unique(np.concatenate(([0], np.flatnonzero(np.diff(steps)) + 1, [x.size - 1])))
        x, y = x[keep], y[keep]
    return x, y


# --- kinds ----------------------------------------------------------------------------------------


def _kinds_section(evaluation: Evaluation, scale: _Scale) -> str:
    members: dict[tuple[bool, str], list[int]] = {}
    for index, (kind, anomalous) in enumerate(zip(evaluation.kinds, evaluation.labels, strict=True)):
        members.setdefault((not bool(anomalous), kind), []).append(index)
    rows = [
        _kind_row(each, evaluation.scores[members[each.good, each.kind]], evaluation.threshold, scale)
        for each in evaluation.by_kind
    ]
    head = (
        '<thead><tr><th scope="col">Kind</th><th scope="col" class="n">Images</th>'
        '<th scope="col" class="n wide">Median</th><th scope="col" class="n">Rejected</th>'
        f'<th scope="col" class="rug"><span class="ends"><span>{scale.show(scale.low)}</span>'
        f"<span>score</span><span>{scale.show(scale.high)}</span></span></th></tr></thead>"
    )
    body = f"<table>{head}<tbody>{''.join(rows[:MANY_KINDS])}</tbody></table>"
    if len(rows) > MANY_KINDS:
        body += (
            f"<details><summary>{len(rows) - MANY_KINDS} more kinds</summary>"
            f"<table>{head}<tbody>{''.join(rows[MANY_KINDS:])}</tbody></table></details>"
        )
    line = "" if evaluation.threshold is None else " The dashed line is the threshold."
    return _section(
        "Scores by kind",
        f'<div class="panel scroll">{body}</div>'
        + _caption(
            "Every stroke is an image (of large kinds, every n-th by score); the bar is the middle half and "
            f"the thick stroke the median.{line} Anomalous kinds are ordered from hard to easy."
        ),
    )


def _kind_row(kind: KindSummary, scores: NDArray[np.float64], threshold: float | None, scale: _Scale) -> str:
    rejected = (
        "–" if kind.rejected is None else f"{kind.rejected:,} <small>{_percent(kind.rejected / kind.count)}</small>"
    )
    return (
        f'<tr><th scope="row"><span class="dot {_class(kind.good)}"></span>{escape(kind.kind)}</th>'
        f'<td class="n">{kind.count:,}</td><td class="n wide">{scale.show(kind.median)}</td>'
        f'<td class="n">{rejected}</td>'
        f'<td class="rug">{_rug(kind, scores, threshold, scale)}</td></tr>'
    )


def _rug(kind: KindSummary, scores: NDArray[np.float64], threshold: float | None, scale: _Scale) -> str:
    def place(value: float) -> str:
        low, high = scale.low, scale.high
        return f"{1000 * (min(max(value, low), high) - low) / (high - low):.1f}"

    values = np.sort(scores)
    if values.size > MANY_MARKS:
        values = values[np.round(np.linspace(0, values.size - 1, MANY_MARKS)).astype(np.intp)]
    marks = "".join(f"M{place(value)} 5V23" for value in values)
    q1, median, q3 = (float(value) for value in np.percentile(scores, (25, 50, 75)))
    line = "" if threshold is None else f'<path class="threshold" d="M{place(threshold)} 0V28"/>'
    return (
        f'<svg class="{_class(kind.good)}" viewBox="0 0 1000 28" preserveAspectRatio="none" '
        'aria-hidden="true">'
        f'<path class="base" d="M0 14H1000"/><path class="middle" d="M{place(q1)} 14H{place(q3)}"/>'
        f'<path class="marks" d="{marks}"/><path class="median" d="M{place(median)} 3V25"/>{line}</svg>'
    )


# --- images ---------------------------------------------------------------------------------------


def _images_section(
    evaluation: Evaluation, scale: _Scale, samples: Mapping[str, SampleLike], examples: int, thumbnail: int
) -> str:
    counts = evaluation.confusion
    blocks = []
    for good in (False, True):
        total = evaluation.n_good if good else evaluation.n_anomalous
        name = "good" if good else "anomalous"
        if total == 0:
            blocks.append(f"<h3>{name.capitalize()} images</h3>{_absent(f'There are no {name} images.')}")
            continue
        hardest = evaluation.ranked(good=good, highest=good, count=examples)
        clearest = [
            index for index in evaluation.ranked(good=good, highest=not good, count=examples) if index not in hardest
        ]
        end, other = ("highest", "lowest") if good else ("lowest", "highest")
        if counts is None:
            verdict = ""
        elif good:
            verdict = f"{counts.false_positive:,} of {total:,} are rejected by the threshold."
        else:
            verdict = f"{counts.false_negative:,} of {total:,} pass the threshold."
        blocks.append(
            f"<h3>{name.capitalize()}, {end} scores</h3>{_caption(verdict) if verdict else ''}"
            + _gallery(evaluation, scale, samples, hardest, thumbnail)
        )
        if clearest:
            blocks.append(
                f"<h3>{name.capitalize()}, {other} scores</h3>"
                + _gallery(evaluation, scale, samples, clearest, thumbnail)
            )
    return _section("Images", "".join(blocks))


def _gallery(
    evaluation: Evaluation,
    scale: _Scale,
    samples: Mapping[str, SampleLike],
    indices: Sequence[int],
    thumbnail: int,
) -> str:
    rejected = evaluation.rejected
    figures = []
    for index in indices:
        name, anomalous = evaluation.names[index], bool(evaluation.labels[index])
        badge, wrong = "", ""
        if rejected is not None:
            wrong = " wrong" if bool(rejected[index]) != anomalous else ""
            words = ("missed", "found") if anomalous else ("passed", "rejected")
            badge = f'<span class="badge{wrong}">{words[int(rejected[index])]}</span>'
        figures.append(
            f'<figure class="shot{wrong}">{_picture(samples.get(name), name, thumbnail)}'
            f'<figcaption><span class="line"><b>{scale.show(float(evaluation.scores[index]))}</b>'
            f'{badge}</span><span class="name" title="{escape(name)}">{escape(evaluation.kinds[index])}<br>'
            f"{escape(_short(name))}</span></figcaption></figure>"
        )
    return f'<div class="gallery">{"".join(figures)}</div>'


def _picture(sample: SampleLike | None, name: str, thumbnail: int) -> str:
    if sample is None:
        return '<div class="nothing">no picture</div>'
    try:
        image = Image.fromarray(sample.read())
    except (KizuError, OSError, ValueError, TypeError):
        # The scores stand without the picture, which may have been moved since; the page says that it is
        # absent.
        return '<div class="nothing">cannot be read</div>'
    tiny = " tiny" if max(image.size) < thumbnail / 2 else ""
    image.thumbnail((thumbnail, thumbnail))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img class="thumb{tiny}" alt="{escape(name)}" src="data:image/png;base64,{encoded}">'


# --- training -------------------------------------------------------------------------------------


def _training_section(history: Sequence[Mapping[str, object]] | None, chosen_epoch: int | None) -> str:
    from matplotlib import ticker

    losses, areas, others = _series(history or ())
    if not (losses or areas or others):
        return _section("Training", _absent("No training log came with this model, so there is no training curve."))
    mark = "" if chosen_epoch is None else f" The dashed line is the epoch that was kept, {chosen_epoch}."
    kinds = [
        (series, what)
        for series, what in (
            (losses, "Training losses"),
            (areas, "Validation areas"),
            (others, "Other validation figures"),
        )
        if series
    ]
    figures = []
    for number, (series, what) in enumerate(kinds):
        # Three stand in a row and are shown smaller: drawn smaller, their lettering stays as large.
        figure, axes = _figure(width=4.0 if len(kinds) == 3 else 5.0)
        for color, (name, (epochs, values)) in zip(_cycle(SERIES_COLORS, len(series)), series.items(), strict=True):
            marker = "o" if len(epochs) <= 40 else ""
            axes.plot(
                epochs,
                values,
                color=color,
                linewidth=1.5,
                marker=marker,
                markersize=3,
                label=_plain(_series_name(name)),
            )
        if chosen_epoch is not None:
            axes.axvline(chosen_epoch, color=INK, linewidth=1.1, linestyle=(0, (4, 2.5)))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.margins(y=0.15)
        _legend(axes, "best")
        figures.append(
            f'<figure class="drawn">'
            f"{_plot(figure, f'{what} by epoch', f't{number}')}"
            f"{_caption(f'{what} by epoch.{mark}')}</figure>"
        )
    columns = "columns three" if len(figures) == 3 else "columns"
    return _section("Training", f'<div class="{columns}">{"".join(figures)}</div>')


Series = dict[str, tuple[list[float], list[float]]]


def _series(history: Sequence[Mapping[str, object]]) -> tuple[Series, Series, Series]:
    """Losses, validation areas (AUROC, AUPR) and what else validation gives, each by epoch."""
    losses: Series = {}
    areas: Series = {}
    others: Series = {}
    for number, row in enumerate(history, 1):
        epoch = _number(row.get("epoch", number))
        if epoch is None:
            continue
        for key, entry in row.items():
            value = _number(entry)
            name = key.lower()
            if value is None or not name.startswith(("loss", "val")):
                continue
            is_area = "auroc" in name or "aupr" in name
            series = losses if name.startswith("loss") else areas if is_area else others
            epochs, values = series.setdefault(key, ([], []))
            epochs.append(epoch)
            values.append(value)
    return losses, areas, others


def _number(value: object) -> float | None:
    if isinstance(value, (str, int, float, np.number)) and not isinstance(value, bool):
        with suppress(ValueError):
            number = float(value)
            return number if math.isfinite(number) else None
    return None


# --- latency and model ----------------------------------------------------------------------------


def _latency_section(evaluation: Evaluation, runtime_info: Mapping[str, object]) -> str:
    latency = evaluation.latency
    if latency is None or latency.total.size == 0:
        return _section("Latency", _absent("No frame was timed.") + _definitions(runtime_info))
    longest = max(latency.percentiles("total").p50, 1e-12)
    rows = []
    for stage in STAGES:
        times = latency.percentiles(stage)
        width = min(100.0, 100 * times.p50 / longest)
        cells = "".join(f'<td class="n">{_milliseconds(seconds)}</td>' for seconds in times)
        rows.append(
            f'<tr class="{stage}"><th scope="row">{stage}<span class="bar">'
            f'<i style="width:{width:.1f}%"></i></span></th>{cells}</tr>'
        )
    table = (
        '<table class="latency"><thead><tr><th scope="col">Milliseconds</th>'
        '<th scope="col" class="n">p50</th><th scope="col" class="n">p90</th>'
        '<th scope="col" class="n">p99</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    note = _caption(
        f"{_plural(latency.total.size, 'frame')}, one by one, from the frame in memory to the result, after "
        "a first one that is not counted. Reading files is not part of it."
    )
    return _section("Latency", f'<div class="panel scroll">{table}</div>{note}{_definitions(runtime_info)}')


def _definitions(info: Mapping[str, object]) -> str:
    if not info:
        return ""
    rows = "".join(
        f"<div><dt>{escape(_named(str(key)))}</dt><dd>{_value(value)}</dd></div>" for key, value in info.items()
    )
    return f'<dl class="panel">{rows}</dl>'


def _value(value: object) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.6g}"
    if isinstance(value, Mapping):
        return "<br>".join(f"{escape(str(key))} {_value(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(each) for each in value)
    return escape(str(value))


# --- figures --------------------------------------------------------------------------------------


def _figure(*, width: float = 5.0) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 0.5 * width + 1), facecolor="white", layout="constrained")
    # Its own canvas, so that the figure does not depend on a display or on the backend chosen elsewhere.
    FigureCanvasAgg(figure)
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
        axis.label.set_color(INK)
        axis.label.set_fontsize(9.5)
    return figure, axes


def _legend(axes: Axes, place: Literal["best", "lower right", "upper center"], *, columns: int = 1) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return
    legend = axes.legend(
        loc=place,
        ncols=columns,
        fontsize=8.5,
        labelcolor=INK,
        frameon=True,
        facecolor="white",
        edgecolor="none",
        framealpha=0.85,
        columnspacing=1.2,
        handlelength=1.6,
    )
    legend.set_zorder(10)


def _plot(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an SVG element that can stand beside others in one page."""
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = data.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    # Ids are renamed: those of several figures would clash, and random ones would make each page another.
    names: dict[str, str] = {}
    for match in re.finditer(r'\bid="([^"]*)"', svg):
        names.setdefault(match[1], f"{prefix}{len(names)}")
    svg = re.sub(r'\bid="([^"]*)"', lambda match: f'id="{names[match[1]]}"', svg)
    svg = re.sub(r'href="#([^"]*)"', lambda match: f'href="#{names[match[1]]}"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", lambda match: f"url(#{names[match[1]]})", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    body = re.sub(r"\s*\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()
    return f'<svg class="plot" role="img" aria-label="{escape(label)}" {view[0]}>{body}'


# --- text -----------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{body}</section>'


def _absent(text: str) -> str:
    return f'<p class="absent">{escape(text)}</p>'


def _caption(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _class(good: bool) -> str:
    return "good" if good else "anomalous"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _named(key: str) -> str:
    text = key.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def _series_name(key: str) -> str:
    text = re.sub(r"^val_", "validation ", key).replace("_", " ")
    text = re.sub("auroc|aupr", lambda match: match[0].upper(), text)
    # A legend wider than its figure would leave no room for the axes.
    return text if len(text) <= 40 else f"{text[:39]}…"


def _plain(text: str) -> str:
    """Without the dollar signs that matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[index % len(values)] for index in range(count)]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1
    return f"{milliseconds:,.{digits}f}"


def _interval(interval: Interval | None, show: object) -> str:
    assert interval is not None
    assert callable(show)
    return f"95 % interval {show(interval.low)} to {show(interval.high)}"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} · kizu</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="mark"><svg viewBox="0 0 24 24" aria-hidden="true">
<rect x="1.5" y="1.5" width="21" height="21" rx="5"/><path d="M6 17.5 10.2 12.4 12.6 13.8 18 6.5"/></svg>
<span>kizu</span><time>{when}</time></p>
<h1>{title}</h1>
<p class="summary">{summary}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --bg: #f5f6f8; --panel: #fff; --ink: #17202b; --muted: #586473; --line: #e2e7ec;
  --good: #0072b2; --anomalous: #c05200; --shadow: 0 1px 3px rgb(16 24 40 / .07);
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #0e1318; --panel: #161d25; --ink: #e9eef4; --muted: #9dabba; --line: #28323d;
    --good: #56b4e9; --anomalous: #ff9a52; --shadow: none;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
header, main { max-width: 1140px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 28px; }
main { padding-bottom: 56px; }
.mark { display: flex; align-items: center; gap: 9px; margin: 0 0 22px; font-weight: 600; }
.mark svg {
  width: 22px; height: 22px; fill: none; stroke: currentColor; stroke-width: 1.6;
  stroke-linecap: round; stroke-linejoin: round;
}
.mark path { stroke: var(--anomalous); stroke-width: 2; }
.mark time { margin-left: auto; font-weight: 400; font-size: 13px; color: var(--muted); }
h1 {
  font-size: clamp(24px, 4vw, 34px); line-height: 1.15; letter-spacing: -.02em; margin: 0;
  overflow-wrap: anywhere;
}
.summary { font-size: 17px; color: var(--muted); margin: 8px 0 0; max-width: 70ch; }
.summary strong { color: var(--ink); }
section { margin-top: 36px; min-width: 0; }
section > h2 { font-size: 20px; letter-spacing: -.01em; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 22px 0 2px; }
.note { color: var(--muted); font-size: 13px; margin: 6px 0 0; max-width: 110ch; }
.absent {
  background: var(--panel); border: 1px dashed var(--line); border-radius: 12px; padding: 22px;
  color: var(--muted); margin: 0;
}

.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
.card, .panel, .drawn {
  background: var(--panel); border: 1px solid var(--line); border-radius: 12px; box-shadow: var(--shadow);
}
.card { padding: 16px 18px 14px; min-width: 0; }
.card h2 { font-size: 13px; font-weight: 600; color: var(--muted); margin: 0; }
.card .value {
  font-size: 40px; line-height: 1.15; font-weight: 650; letter-spacing: -.03em; margin: 4px 0 0;
  font-variant-numeric: tabular-nums;
}
.card .value small { font-size: 14px; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.card .value span { white-space: nowrap; margin-right: .2em; }
.card .value .good { color: var(--good); }
.card .value .anomalous { color: var(--anomalous); }
.card.good { border-left: 4px solid var(--good); }
.card.anomalous { border-left: 4px solid var(--anomalous); }

.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px;
  align-items: start;
}
@media (min-width: 1000px) { .columns.three { grid-template-columns: repeat(3, 1fr); } }
figure { margin: 0; min-width: 0; }
.drawn { padding: 10px; overflow: hidden; }
.drawn > .note { padding: 0 6px 4px; }
.drawn > .absent { border: 0; }
.plot { display: block; width: 100%; height: auto; max-height: 440px; background: #fff; border-radius: 6px; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }

.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-size: 12px; font-weight: 600; color: var(--muted); }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 7em; }
td small { color: var(--muted); margin-left: 4px; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 9px; }
.dot.good { background: var(--good); }
.dot.anomalous { background: var(--anomalous); border-radius: 2px; }
.rug { width: 52%; min-width: 150px; }
.rug svg { display: block; width: 100%; height: 28px; overflow: visible; }
.rug .good { color: var(--good); }
.rug .anomalous { color: var(--anomalous); }
.rug path { fill: none; stroke: currentColor; vector-effect: non-scaling-stroke; }
.rug .base { stroke: var(--line); }
.rug .middle { stroke-width: 9px; stroke-opacity: .28; }
.rug .marks { stroke-width: 1px; stroke-opacity: .5; }
.rug .median { stroke-width: 3px; }
.rug .threshold { stroke: var(--ink); stroke-width: 1.2px; stroke-dasharray: 3 2; }
.ends { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; padding: 10px 14px; color: var(--muted); border-top: 1px solid var(--line); }

.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; margin-top: 10px;
}
.shot { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.shot.wrong { border-color: var(--anomalous); box-shadow: 0 0 0 1px var(--anomalous); }
.thumb, .nothing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #10151b; }
.thumb.tiny { image-rendering: pixelated; }
.nothing {
  display: grid; place-items: center; background: var(--bg); color: var(--muted); font-size: 12px;
}
figcaption { padding: 6px 8px 8px; font-size: 12px; line-height: 1.35; }
.line { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 4px; }
.line b { font-size: 14px; font-variant-numeric: tabular-nums; }
.badge { font-size: 11px; color: var(--muted); white-space: nowrap; }
.badge.wrong { color: var(--anomalous); font-weight: 650; }
.name {
  color: var(--muted); margin-top: 2px; overflow: hidden; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; line-clamp: 3;
}

.latency .total > * { font-weight: 650; }
.bar { display: block; height: 4px; margin-top: 4px; border-radius: 2px; background: var(--line); }
.bar i { display: block; height: 100%; background: var(--good); border-radius: 2px; }
dl { margin: 0; padding: 4px 0; font-size: 14px; }
.note + dl, .absent + dl { margin-top: 12px; }
dl > div {
  display: grid; grid-template-columns: minmax(8em, 32%) 1fr; gap: 12px; padding: 7px 16px;
  border-bottom: 1px solid var(--line);
}
dl > div:last-child { border-bottom: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }

@media (max-width: 760px) {
  header, main { padding-left: 14px; padding-right: 14px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; }
  .card { padding: 12px; }
  .card .value { font-size: 28px; }
  .card .value small { font-size: 12px; }
  .wide { display: none; }
  th, td { padding: 6px 8px; }
  .rug { width: 40%; min-width: 110px; }
  td small { display: block; margin: 0; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); }
  .drawn { padding: 6px; }
}
@media print { body { background: #fff; } .card, .shot, .drawn { break-inside: avoid; } }
"""
