"""Detector: what line-control software calls. A frame goes in, a Result comes out."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kizu import scoring
from kizu.bundle import Bundle
from kizu.compiled import compiled, default_cache
from kizu.engine import BuildOptions, choose, default_threads
from kizu.errors import EngineError, FrameError, KizuError, ScoreError, ThresholdError
from kizu.pipeline import Pipeline, Timing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from kizu.prepare import FrameOrder
    from kizu.scoring import NonFinite

_MOST = 1024  # threads, or frames in a batch


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on one frame.

    Attributes:
        score: higher is more anomalous.
        threshold: the largest score that passes.
        anomalous: True unless the score is known to be at most the threshold.
        map: residual map of the frame, or None.
        timing: seconds spent in prepare, engine and score.
    """

    score: float
    threshold: float
    anomalous: bool
    map: NDArray[np.float32] | None
    timing: Timing


class Detector:
    """A loaded bundle, ready to score; made by ``kizu.load``.

    Calls from several threads are safe: they take turns on one set of buffers. Native code runs with the GIL
    released. After ``warm_up``, ``score`` allocates its Result and nothing else, until frames of another size come.
    Close the detector, or leave its ``with`` block, before the interpreter ends.

    Attributes:
        bundle: what was loaded.
        engine: name of the engine in use.
        precision: arithmetic in use.
        threads: threads that one call may use.
        threshold: the largest score that passes; may be set at any time.
    """

    def __init__(
        self,
        bundle: Bundle,
        pipeline: Pipeline,
        *,
        engine: str,
        precision: str,
        threads: int,
        threshold: float,
        order: FrameOrder,
        nonfinite: NonFinite,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.precision = precision
        self.threads = threads
        self.threshold = threshold
        self._order: FrameOrder = order
        self._nonfinite: NonFinite = nonfinite
        self._pipeline: Pipeline | None = pipeline
        self._lock = threading.Lock()

    def score(self, frame: NDArray[np.uint8], *, map: bool = False) -> Result:
        """Score one frame.

        Args:
            frame: uint8, (height, width, 3) for a colour model, (height, width[, 1]) for a mono one; any strides.
            map: also return the residual map; only for methods that have one.

        Raises:
            FrameError: the frame is not what the model expects; says what it does.
            ScoreError: the score is not finite (unless loaded with nonfinite="reject"), or there is no map.
        """
        if map:
            raise self._no_map()
        with self._lock:
            scores, timing = self._running().run((frame,), order=self._order)
            score = float(scores[0])
        return self._result(score, timing)

    def score_batch(self, frames: Iterable[NDArray[np.uint8]], *, map: bool = False) -> list[Result]:
        """Score any number of frames, ``max_batch`` at a time; see ``score``. Sizes may differ.

        A frame or score that raises ends the call, and no result is returned.
        """
        if map:
            raise self._no_map()
        frames, results = list(frames), []
        for start in range(0, len(frames), self.max_batch):
            with self._lock:
                scores, timing = self._running().run(frames[start : start + self.max_batch], order=self._order)
                values = scores.tolist()
            results += [self._result(value, timing) for value in values]
        return results

    @property
    def max_batch(self) -> int:
        """Frames that go through the engine at once."""
        return self._running().max_batch

    def warm_up(self, frame_shape: tuple[int, int] | None = None, *, batch: int = 1) -> None:
        """Do now what the first call would pay for: bindings, resize weights, work space, the engine's own first run.

        Args:
            frame_shape: (height, width) of the frames to come; by default that of the bundle's first golden frame.
            batch: frames that ``score_batch`` will be given at once, up to ``max_batch``.
        """
        height, width = frame_shape or self.bundle.golden_shape()
        if min(height, width, batch) < 1:
            raise FrameError(f"height, width and batch are {height}, {width} and {batch}, but must be at least 1")
        frame = np.zeros((height, width, self.bundle.manifest.prepare.own_channels), np.uint8)
        with self._lock:
            self._running().run([frame] * min(batch, self.max_batch), order=self._order)

    def close(self) -> None:
        """Release the engine; waits for a call in progress. A second close does nothing."""
        with self._lock:
            if self._pipeline is not None:
                self._pipeline.close()
                self._pipeline = None

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _running(self) -> Pipeline:
        if self._pipeline is None:
            raise KizuError("the detector is closed; kizu.load makes a new one")
        return self._pipeline

    def _no_map(self) -> ScoreError:
        method = self.bundle.manifest.method.name
        return ScoreError(f"{method} scores an image as a whole and has no map; call without map=True")

    def _result(self, score: float, timing: Timing) -> Result:
        threshold = self.threshold
        anomalous = scoring.is_anomalous(score, threshold, nonfinite=self._nonfinite)
        return Result(score, threshold, anomalous, None, timing)


def load(
    path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    max_batch: int = 16,
    order: FrameOrder = "rgb",
    nonfinite: NonFinite = "error",
    threshold: float | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Detector:
    """Load a bundle and return a warmed-up Detector.

    The first load on a machine compiles the engine and proves it against the bundle's golden scores; later loads take
    it from the cache.

    Args:
        path: a .kizu file.
        engine: "auto" (the preferred one that is installed) or a name that ``kizu engines`` lists.
        precision: "auto" (the fastest that reproduces the golden scores here) or "fp32", "bf16", "fp16", "int8"; a
            named precision is used or refused, never swapped.
        threads: threads one call may use; by default all processors of this process.
        max_batch: frames that ``score_batch`` sends through the engine at once.
        order: channel order of colour frames, "rgb" or "bgr" (as OpenCV and many cameras deliver).
        nonfinite: what a score that is not finite does: raise an "error", or "reject" the part.
        threshold: a finite number that overrides the bundle's threshold.
        cache: folder of compiled engines; by default $KIZU_CACHE or the user's cache folder.

    Raises:
        BundleError: the file is not a whole, unedited bundle of this version.
        EngineError: no engine is installed (says what to install), or it cannot or must not be used.
        ThresholdError: the bundle has no threshold for the precision, or the given one is not a finite number.
    """
    for name, value in (("threads", threads), ("max_batch", max_batch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST):
            raise EngineError(f"{name} is {value!r}, but must be a whole number from 1 to {_MOST}")
    if threshold is not None and not (isinstance(threshold, (int, float)) and math.isfinite(threshold)):
        raise ThresholdError(f"threshold is {threshold!r}, but must be a finite number")
    if order not in ("rgb", "bgr"):
        raise FrameError(f"order is {order!r}, but must be 'rgb' or 'bgr'")
    if nonfinite not in ("error", "reject"):
        raise ScoreError(f"nonfinite is {nonfinite!r}, but must be 'error' or 'reject'")
    bundle = Bundle.open(path)
    scoring.rule(bundle.manifest.scoring)
    chosen = choose(engine)
    threads = threads or default_threads()
    folder = default_cache() if cache is None else Path(cache)
    if precision in bundle.manifest.golden.tolerances and threshold is None:
        _threshold(bundle, precision)  # before work starts
    manifest = bundle.manifest
    among = manifest.golden.tolerances if threshold is not None else manifest.threshold.values
    entry = compiled(bundle, chosen, precision, BuildOptions("fp32", threads, max_batch), folder, among=among)
    pipeline = Pipeline(entry.load(), manifest.prepare, manifest.scoring, threads=threads, max_batch=max_batch)
    detector = Detector(
        bundle,
        pipeline,
        engine=chosen.name,
        precision=entry.options.precision,
        threads=threads,
        threshold=_threshold(bundle, entry.options.precision) if threshold is None else float(threshold),
        order=order,
        nonfinite=nonfinite,
    )
    detector.warm_up()
    return detector


def _threshold(bundle: Bundle, precision: str) -> float:
    values = bundle.manifest.threshold.values
    if precision not in values:
        raise ThresholdError(
            f"{bundle.path} has no threshold for {precision}, only for {', '.join(values)}; set one with kizu threshold"
        )
    return values[precision]
