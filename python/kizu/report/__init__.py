"""One self-contained HTML page on an evaluation: no script, no font, no request to anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from kizu.errors import KizuError
from kizu.evaluate import Evaluation, SampleLike
from kizu.report import sections
from kizu.report.figures import Scale
from kizu.report.page import assemble

__all__ = ["ReportError", "render_report", "require_matplotlib", "write_report"]


class ReportError(KizuError):
    """A report cannot be drawn or written."""


def require_matplotlib() -> None:
    """Raise ReportError unless matplotlib, which draws the figures, can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ReportError(
            'the report draws its figures with matplotlib, which is not installed: pip install "kizu[report]"'
        ) from error


def write_report(page: str, path: str | os.PathLike[str]) -> None:
    """Write the page of ``render_report`` to ``path``, all of it or nothing.

    Folders on the way are made. A page that stands there is replaced only once the new one is complete.

    Raises ReportError if the file cannot be written.
    """
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
    require_matplotlib()
    scale = Scale.of(evaluation)
    pictures = {sample.name: sample for sample in samples}
    return assemble(
        title=title,
        created=created if created is not None else datetime.now(timezone.utc).astimezone(),
        summary=sections.summary(evaluation, scale),
        sections=(
            sections.headline(evaluation),
            sections.scores(evaluation, scale),
            sections.kinds(evaluation, scale),
            sections.images(evaluation, scale, pictures, examples, thumbnail),
            sections.training(history or (), chosen_epoch),
            '<div class="columns">',
            sections.latency(evaluation, runtime_info or {}),
            sections.model(bundle_info),
            "</div>",
        ),
    )
