"""The sections of the page, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from kizu.errors import KizuError
from kizu.evaluate import STAGES, Evaluation, KindSummary, SampleLike
from kizu.metrics import Interval
from kizu.report import figures
from kizu.report.figures import Scale
from kizu.report.page import absent, caption, confidence, definitions, percent, plural, ratio, section

_MANY_KINDS = 24
_MANY_MARKS = 200


def summary(evaluation: Evaluation, scale: Scale) -> str:
    """What was measured and how it went, in two sentences."""
    good, anomalous = evaluation.n_good, evaluation.n_anomalous
    images = f"{plural(good, 'good image')} and {anomalous:,} anomalous"
    if evaluation.n_parts < good + anomalous:
        images += f" of {plural(evaluation.n_parts, 'part')}"
    counts = evaluation.confusion
    if counts is None or evaluation.threshold is None:
        return f"{images}. No threshold is set, so nothing is passed or rejected."
    verdicts = []
    if good:
        verdicts.append(f"<strong>{counts.false_positive:,}</strong> of {good:,} good images are rejected")
    if anomalous:
        verdicts.append(f"<strong>{counts.false_negative:,}</strong> of {anomalous:,} anomalous images pass")
    return f"{images}. At the threshold {scale.show(evaluation.threshold)}, {' and '.join(verdicts)}."


def headline(evaluation: Evaluation) -> str:
    """The key figures as cards."""
    intervals, counts = evaluation.area_intervals, evaluation.confusion
    one_class = f"needs {'anomalous' if evaluation.n_good else 'good'} images; there are none"
    auroc = aupr = one_class
    if intervals is not None:
        chance = f"chance {evaluation.n_anomalous / len(evaluation.names):.3f}"
        if intervals.auroc.low == intervals.auroc.high == 1:
            auroc, aupr = "no overlap in these images: the bootstrap has no spread", chance
        else:
            auroc, aupr = confidence(intervals.auroc, ratio), f"{confidence(intervals.aupr, ratio)}; {chance}"

    def share(count: int, total: int, interval: Interval | None) -> str:
        return one_class if interval is None else f"{count:,} of {total:,}; {confidence(interval, percent)}"

    f1 = rejects = misses = "no threshold is set"
    if counts is not None:
        f1 = one_class if counts.f1 is None else f"precision {ratio(counts.precision)}, recall {ratio(counts.recall)}"
        rejects = share(counts.false_positive, counts.good, evaluation.false_reject_interval)
        misses = share(counts.false_negative, counts.anomalous, evaluation.miss_interval)
    images = (
        f'<span class="good">{evaluation.n_good:,}<small> good</small></span> '
        f'<span class="anomalous">{evaluation.n_anomalous:,}<small> anomalous</small></span>'
    )
    cards = (
        _card("AUROC", ratio(evaluation.auroc), auroc)
        + _card("AUPR", ratio(evaluation.aupr), aupr)
        + _card("F1 at the threshold", ratio(evaluation.f1), f1)
        + _card("False rejects", percent(evaluation.false_reject_rate), rejects, "good")
        + _card("Misses", percent(evaluation.miss_rate), misses, "anomalous")
        + _card("Images", images, plural(evaluation.n_parts, "physical part"))
    )
    note = ""
    if evaluation.n_parts < len(evaluation.names) and (intervals or counts):
        note = caption(
            "Some parts are pictured more than once. The intervals of AUROC and AUPR account for that; those "
            "of the false rejects and misses take images for independent and are somewhat too narrow."
        )
    return f'<section aria-label="Key figures"><div class="cards">{cards}</div>{note}</section>'


def _card(name: str, value: str, note: str, accent: str = "") -> str:
    return (
        f'<div class="card {accent}"><h2>{escape(name)}</h2><p class="value">{value}</p>'
        f'<p class="note">{escape(note)}</p></div>'
    )


def scores(evaluation: Evaluation, scale: Scale) -> str:
    """The histogram of the scores and the ROC curve."""
    remarks = "Histogram of scores by class, each class adding up to 1."
    if evaluation.threshold is not None:
        remarks += f" The dashed line is the threshold {scale.show(evaluation.threshold)}."
    beyond = int(((evaluation.scores < scale.low) | (evaluation.scores > scale.high)).sum())
    if beyond:
        verb = "is" if beyond == 1 else "are"
        remarks += f" {plural(beyond, 'score')} beyond the axis {verb} in the outermost bars."
    return section(
        "Scores",
        f'<div class="columns"><figure class="drawn">{figures.histogram(evaluation, scale)}{caption(remarks)}</figure>'
        f'<figure class="drawn">{_roc(evaluation)}</figure></div>',
    )


def _roc(evaluation: Evaluation) -> str:
    drawn, counts = figures.roc(evaluation), evaluation.confusion
    if drawn is None:
        missing = _class(not evaluation.n_good)
        return absent(f"No ROC curve: it needs images of both classes, and there are no {missing} ones.")
    remarks = "ROC curve."
    if counts is not None:
        found, rejected = percent(counts.recall), percent(counts.false_reject_rate)
        remarks += f" The dot is the threshold: {found} found at {rejected} false rejects."
    return drawn + caption(remarks)


def kinds(evaluation: Evaluation, scale: Scale) -> str:
    """A table of the kinds with their scores as strokes on one axis."""
    members: dict[tuple[str, bool], list[float]] = {}
    for kind, anomalous, score in zip(evaluation.kinds, evaluation.labels, evaluation.scores, strict=True):
        members.setdefault((kind, not anomalous), []).append(score)
    rows = [_kind_row(each, members[each.kind, each.good], evaluation.threshold, scale) for each in evaluation.by_kind]
    head = (
        '<thead><tr><th scope="col">Kind</th><th scope="col" class="n">Images</th>'
        '<th scope="col" class="n wide">Median</th><th scope="col" class="n">Rejected</th>'
        f'<th scope="col" class="rug"><span class="ends"><span>{scale.show(scale.low)}</span>'
        f"<span>score</span><span>{scale.show(scale.high)}</span></span></th></tr></thead>"
    )
    body = f"<table>{head}<tbody>{''.join(rows[:_MANY_KINDS])}</tbody></table>"
    if len(rows) > _MANY_KINDS:
        body += (
            f"<details><summary>{len(rows) - _MANY_KINDS} more kinds</summary>"
            f"<table>{head}<tbody>{''.join(rows[_MANY_KINDS:])}</tbody></table></details>"
        )
    line = "" if evaluation.threshold is None else " The dashed line is the threshold."
    return section(
        "Scores by kind",
        f'<div class="panel scroll">{body}</div>'
        + caption(
            "Every stroke is an image (of large kinds, every n-th by score); the bar is the middle half and "
            f"the thick stroke the median.{line} Anomalous kinds are ordered from hard to easy."
        ),
    )


def _kind_row(kind: KindSummary, scores: Sequence[float], threshold: float | None, scale: Scale) -> str:
    rejected = "–"
    if kind.rejected is not None:
        rejected = f"{kind.rejected:,} <small>{percent(kind.rejected / kind.count)}</small>"
    return (
        f'<tr><th scope="row"><span class="dot {_class(kind.good)}"></span>{escape(kind.kind)}</th>'
        f'<td class="n">{kind.count:,}</td><td class="n wide">{scale.show(kind.median)}</td>'
        f'<td class="n">{rejected}</td>'
        f'<td class="rug">{_rug(_class(kind.good), scores, threshold, scale)}</td></tr>'
    )


def _rug(name: str, scores: Sequence[float], threshold: float | None, scale: Scale) -> str:
    place = scale.place
    values = np.sort(scores)
    if values.size > _MANY_MARKS:
        values = values[np.round(np.linspace(0, values.size - 1, _MANY_MARKS)).astype(np.intp)]
    marks = "".join(f"M{place(value)} 5V23" for value in values)
    q1, median, q3 = (float(value) for value in np.percentile(scores, (25, 50, 75)))
    line = "" if threshold is None else f'<path class="threshold" d="M{place(threshold)} 0V28"/>'
    return (
        f'<svg class="{name}" viewBox="0 0 1000 28" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="base" d="M0 14H1000"/><path class="middle" d="M{place(q1)} 14H{place(q3)}"/>'
        f'<path class="marks" d="{marks}"/><path class="median" d="M{place(median)} 3V25"/>{line}</svg>'
    )


def images(
    evaluation: Evaluation, scale: Scale, samples: Mapping[str, SampleLike], examples: int, thumbnail: int
) -> str:
    """Pictures of both classes: the hardest to tell and the clearest."""

    def gallery(indices: Sequence[int]) -> str:
        names = {index: evaluation.names[index] for index in indices}
        pictures = {index: _picture(samples.get(name), name, thumbnail) for index, name in names.items()}
        shots = "".join(_shot(evaluation, index, scale, picture) for index, picture in pictures.items())
        return f'<div class="gallery">{shots}</div>'

    counts = evaluation.confusion
    blocks = []
    for good in (False, True):
        name, total = _class(good), evaluation.n_good if good else evaluation.n_anomalous
        title = name.capitalize()
        if total == 0:
            blocks.append(f"<h3>{title} images</h3>{absent(f'There are no {name} images.')}")
            continue
        verdict = ""
        if counts is not None and good:
            verdict = caption(f"{counts.false_positive:,} of {total:,} are rejected by the threshold.")
        elif counts is not None:
            verdict = caption(f"{counts.false_negative:,} of {total:,} pass the threshold.")
        end, other = ("highest", "lowest") if good else ("lowest", "highest")
        hardest = evaluation.ranked(good=good, highest=good, count=examples)
        other_end = evaluation.ranked(good=good, highest=not good, count=examples)
        clearest = [index for index in other_end if index not in hardest]
        blocks.append(f"<h3>{title}, {end} scores</h3>{verdict}{gallery(hardest)}")
        if clearest:
            blocks.append(f"<h3>{title}, {other} scores</h3>{gallery(clearest)}")
    return section("Images", "".join(blocks))


def _shot(evaluation: Evaluation, index: int, scale: Scale, picture: str) -> str:
    name, rejected = evaluation.names[index], evaluation.rejected
    badge, wrong = "", ""
    if rejected is not None:
        anomalous = bool(evaluation.labels[index])
        wrong = " wrong" if bool(rejected[index]) != anomalous else ""
        words = ("missed", "found") if anomalous else ("passed", "rejected")
        badge = f'<span class="badge{wrong}">{words[int(rejected[index])]}</span>'
    return (
        f'<figure class="shot{wrong}">{picture}'
        f'<figcaption><span class="line"><b>{scale.show(float(evaluation.scores[index]))}</b>'
        f'{badge}</span><span class="name" title="{escape(name)}">{escape(evaluation.kinds[index])}<br>'
        f"{escape(name.rsplit('/', 1)[-1])}</span></figcaption></figure>"
    )


def _picture(sample: SampleLike | None, name: str, thumbnail: int) -> str:
    if sample is None:
        return '<div class="nothing">no picture</div>'
    try:
        image = Image.fromarray(sample.read())
    except (KizuError, OSError, ValueError, TypeError):
        # The scores stand without the picture, which may have been moved since; the page says that it is absent.
        return '<div class="nothing">cannot be read</div>'
    tiny = " tiny" if max(image.size) < thumbnail / 2 else ""
    image.thumbnail((thumbnail, thumbnail))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img class="thumb{tiny}" alt="{escape(name)}" src="data:image/png;base64,{encoded}">'


def training(history: Sequence[Mapping[str, object]], chosen_epoch: int | None) -> str:
    """The curves of the training log."""
    drawn = figures.curves(history, chosen_epoch)
    if not drawn:
        return section("Training", absent("No training log came with this model, so there is no training curve."))
    mark = "" if chosen_epoch is None else f" The dashed line is the epoch that was kept, {chosen_epoch}."
    shown = "".join(
        f'<figure class="drawn">{svg}{caption(f"{title} by epoch.{mark}")}</figure>' for title, svg in drawn.items()
    )
    columns = "columns three" if len(drawn) == 3 else "columns"
    return section("Training", f'<div class="{columns}">{shown}</div>')


def latency(evaluation: Evaluation, runtime_info: Mapping[str, object]) -> str:
    """Percentiles of the time of each stage, and what they were measured on."""
    timed = evaluation.latency
    if timed is None or timed.total.size == 0:
        return section("Latency", absent("No frame was timed.") + definitions(runtime_info))
    longest = max(timed.percentiles("total").p50, 1e-12)
    rows = []
    for stage in STAGES:
        times = timed.percentiles(stage)
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
    note = caption(
        f"{plural(timed.total.size, 'frame')}, one by one, from the frame in memory to the result, after "
        "a first one that is not counted. Reading files is not part of it."
    )
    return section("Latency", f'<div class="panel scroll">{table}</div>{note}{definitions(runtime_info)}')


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1
    return f"{milliseconds:,.{digits}f}"


def model(bundle_info: Mapping[str, object]) -> str:
    """What is known about the model."""
    return section("Model", definitions(bundle_info) or absent("Nothing is recorded about the model."))


def _class(good: bool) -> str:
    return "good" if good else "anomalous"
