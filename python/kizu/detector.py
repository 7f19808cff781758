"""Detector: what line-control software calls. A frame goes in, a Result comes out."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from kizu import scoring
from kizu.bundle import Bundle
from kizu.compiled import compiled, default_cache
from kizu.engine import BuildOptions, choose, default_threads
from kizu.errors import EngineError, FrameError, KizuError, ScoreError, ThresholdError
from kizu.heat_map import HeatMaps
from kizu.pipeline import Pipeline, Timing, engine_batch
from kizu.pixel_format import PixelFormat

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from kizu.prepare import Box, Frame
    from kizu.scoring import NonFinite

_MOST = 1024  # threads, or frames in a batch
MAP_SIGMA = 4.0


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on one frame.

    Attributes:
        score: higher is more anomalous.
        threshold: the largest score that passes.
        anomalous: True unless the score is known to be at most the threshold.
        map: float32 (height, width) of the frame, or None: how far it is from the model's reconstruction at each
            pixel, smoothed; 0 outside the region that the model looks at.
        timing: seconds spent in prepare, engine and score (with the map).
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
        pixel_format: how frames come.
        weight: lambda of the scoring rule in use.
        map_sigma: standard deviation of the maps' smoothing, in pixels of the model's input; may be set at any time.
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
        pixel_format: PixelFormat,
        nonfinite: NonFinite,
        map_sigma: float = MAP_SIGMA,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.precision = precision
        self.threads = threads
        self.threshold = threshold
        self.pixel_format = pixel_format
        self.map_sigma = map_sigma
        self.weight = pipeline.weight
        self._heat_maps: HeatMaps | None = None  # made for the first map
        self._nonfinite: NonFinite = nonfinite
        self._pipeline: Pipeline | None = pipeline
        self._lock = threading.Lock()

    def score(self, frame: Frame, *, boxes: Sequence[Box] | None = None, map: bool = False) -> Result:
        """Score one frame.

        Args:
            frame: as the pixel format says: uint8 (or uint16 for more than 8 bits), (height, width, 3) for a colour
                model, (height, width[, 1]) for a mono one or a Bayer pattern; any strides. Packed formats: uint8
                (height, bytes of a row).
            boxes: regions (left, top, right, bottom) of the frame in pixels, for a model that looks at boxes, such as
                parts that a detector of objects found; their scores are reduced to one. At most ``max_batch``.
            map: also return the residual map; only for methods that have one.

        Raises:
            FrameError: the frame or a box is not what the model expects; says what it does.
            ScoreError: the score is not finite (unless loaded with nonfinite="reject"), or there is no map.
        """
        with self._lock:
            scores, maps, timing = self._run((frame,), boxes, map)
            score = float(scores[0])
        return self._result(score, maps[0] if map else None, timing)

    def score_batch(self, frames: Iterable[Frame], *, map: bool = False) -> list[Result]:
        """Score any number of frames, ``max_batch`` at a time; see ``score``. Sizes may differ.

        A frame or score that raises ends the call, and no result is returned. A model that looks at boxes is given its
        frames one at a time: ``score(frame, boxes=...)``.
        """
        if self.bundle.manifest.prepare.boxes:
            raise FrameError("the model looks at boxes: call score(frame, boxes=[...]) for each frame")
        frames, results = list(frames), []
        for start in range(0, len(frames), self.max_batch):
            with self._lock:
                scores, maps, timing = self._run(frames[start : start + self.max_batch], None, map)
                values = scores.tolist()
            results += [self._result(v, maps[i] if map else None, timing) for i, v in enumerate(values)]
        return results

    def _run(
        self, frames: Sequence[Frame], boxes: Sequence[Box] | None, map: bool
    ) -> tuple[NDArray[np.float32], Sequence[NDArray[np.float32]], Timing]:
        pipeline = self._running()
        if not map:
            scores, timing = pipeline.run(frames, boxes=boxes)
            return scores, (), timing
        if not pipeline.rule.residual:
            method = self.bundle.manifest.method.name
            raise ScoreError(f"{method} scores an image as a whole and has no map; call without map=True")
        spec = self.bundle.manifest.prepare
        if self._heat_maps is None:
            self._heat_maps = HeatMaps(spec, threads=self.threads)
        scores, timing = pipeline.run(frames, boxes=boxes, map=True)
        start = perf_counter()
        views = spec.views or len(boxes or ()) * spec.rotations
        residuals = pipeline.maps(len(frames) * views).reshape(len(frames), views, *spec.size)
        maps = [
            self._heat_maps(of_views, self.pixel_format.size(frame.shape), sigma=self.map_sigma, boxes=boxes)
            for frame, of_views in zip(frames, residuals, strict=True)
        ]
        return scores, maps, timing._replace(score=timing.score + (perf_counter() - start) / len(frames))

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
        frame = np.zeros(self.pixel_format.array_shape(height, width), self.pixel_format.dtype)
        with self._lock:
            count = min(batch, self.max_batch)
            if self.bundle.manifest.prepare.boxes:
                self._running().run([frame], boxes=[(0, 0, width, height)] * count)
            else:
                self._running().run([frame] * count)

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

    def _result(self, score: float, map: NDArray[np.float32] | None, timing: Timing) -> Result:
        threshold = self.threshold
        anomalous = scoring.is_anomalous(score, threshold, nonfinite=self._nonfinite)
        return Result(score, threshold, anomalous, map, timing)


def load(
    path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    max_batch: int = 16,
    pixel_format: str | None = None,
    nonfinite: NonFinite = "error",
    threshold: float | None = None,
    weight: float | None = None,
    map_sigma: float = MAP_SIGMA,
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
        pixel_format: how frames come, by GenICam's names: "BGR8" (as OpenCV and many cameras deliver), "BayerRG8",
            "Mono12p" ...; by default the model's own, e.g. "RGB8" or "Mono8".
        nonfinite: what a score that is not finite does: raise an "error", or "reject" the part.
        threshold: a finite number that overrides the bundle's threshold.
        weight: overrides the scoring rule's lambda; only with a ``threshold``, since the bundle's is one of scores
            under its own lambda.
        map_sigma: standard deviation of the maps' smoothing, in pixels of the model's input.
        cache: folder of compiled engines; by default $KIZU_CACHE or the user's cache folder.

    Raises:
        BundleError: the file is not a whole, unedited bundle of this version.
        EngineError: no engine is installed (says what to install), or it cannot or must not be used.
        ThresholdError: the bundle has no threshold for the precision, the given one is not a finite number, or a
            weight was given without one.
        ScoreError: the weight or the smoothing is out of range, or the rule has no weight.
    """
    for name, value in (("threads", threads), ("max_batch", max_batch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST):
            raise EngineError(f"{name} is {value!r}, but must be a whole number from 1 to {_MOST}")
    if threshold is not None and not (isinstance(threshold, (int, float)) and math.isfinite(threshold)):
        raise ThresholdError(f"threshold is {threshold!r}, but must be a finite number")
    if nonfinite not in ("error", "reject"):
        raise ScoreError(f"nonfinite is {nonfinite!r}, but must be 'error' or 'reject'")
    if isinstance(map_sigma, bool) or not isinstance(map_sigma, (int, float)) or not 0 <= map_sigma < math.inf:
        raise ScoreError(f"map_sigma is {map_sigma!r}, but must be a number of pixels, at least 0")
    if pixel_format is not None:
        PixelFormat.parse(pixel_format)
    bundle = Bundle.open(path)
    frames = bundle.manifest.prepare.pixel_format(pixel_format)
    scoring.check_weight(bundle.manifest.scoring, bundle.manifest.weight)
    if weight is not None:
        if not scoring.rule(bundle.manifest.scoring).residual:
            raise ScoreError(f"weight is {weight!r}, but the bundle's rule {bundle.manifest.scoring} has no weight")
        scoring.check_weight(bundle.manifest.scoring, weight)
        if threshold is None:
            raise ThresholdError(
                f"weight is {weight:g}, but the bundle's threshold is one of scores with the weight "
                f"{bundle.manifest.weight:g} and says nothing about others; give a threshold= for the new scores too"
            )
    chosen = choose(engine)
    threads = threads or default_threads()
    folder = default_cache() if cache is None else Path(cache)
    if precision in bundle.manifest.golden.tolerances and threshold is None:
        _threshold(bundle, precision)  # before work starts
    manifest = bundle.manifest
    among = manifest.golden.tolerances if threshold is not None else manifest.threshold.values
    options = BuildOptions("fp32", threads, engine_batch(manifest.prepare, max_batch))
    entry = compiled(bundle, chosen, precision, options, folder, among=among)
    pipeline = Pipeline(
        entry.load(),
        manifest.prepare,
        manifest.scoring,
        threads=threads,
        max_batch=max_batch,
        weight=manifest.weight if weight is None else weight,
        pixel_format=frames.name,
    )
    detector = Detector(
        bundle,
        pipeline,
        engine=chosen.name,
        precision=entry.options.precision,
        threads=threads,
        threshold=_threshold(bundle, entry.options.precision) if threshold is None else float(threshold),
        pixel_format=frames,
        nonfinite=nonfinite,
        map_sigma=map_sigma,
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
