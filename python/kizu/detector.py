"""Detector: what line-control software calls. A frame goes in, a Result comes out."""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from kizu import engine_file as engine_files
from kizu import scoring
from kizu.bundle import Bundle
from kizu.compiled import compiled, default_cache, options_for
from kizu.engine import CudaProgram, choose, default_threads
from kizu.errors import DeviceLostError, EngineError, FrameError, KizuError, ScoreError, ThresholdError
from kizu.heat_map import HeatMaps
from kizu.pipeline import Timing, engine_batch, open_pipeline
from kizu.pixel_format import PixelFormat
from kizu.pool import Pool

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from kizu.pipeline import Pipeline
    from kizu.prepare import AnyFrame, Box, Frame
    from kizu.scoring import NonFinite

_MOST = 1024  # threads, or frames in a batch
_BATCH = 16
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

    Calls from several threads are safe: they run side by side on as many contexts as there are, and take turns beyond
    that. Native code runs with the GIL released. After ``warm_up``, ``score`` allocates its Result and nothing else,
    until frames of another size come. Close the detector, or leave its ``with`` block, before the interpreter ends.

    Attributes:
        bundle: what was loaded.
        engine: name of the engine in use.
        precision: arithmetic in use.
        threads: threads that one call may use.
        contexts: sets of buffers, each with an execution context of the engine; on a GPU with a stream.
        max_batch: frames that go through the engine at once.
        weight: lambda of the scoring rule in use.
        threshold: the largest score that passes; may be set at any time.
        pixel_format: how frames come.
        map_sigma: standard deviation of the maps' smoothing, in pixels of the model's input; may be set at any time.
    """

    def __init__(
        self,
        bundle: Bundle,
        pool: Pool,
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
        first = pool.pipelines[0]
        self.contexts = len(pool.pipelines)
        self.max_batch = first.max_batch
        self.weight = first.weight
        self._rule = first.rule
        self._heat_maps = HeatMaps(bundle.manifest.prepare, threads=threads)
        self._heat_maps_lock = threading.Lock()
        self._nonfinite: NonFinite = nonfinite
        self._pool = pool

    def score(self, frame: AnyFrame, *, boxes: Sequence[Box] | None = None, map: bool = False) -> Result:
        """Score one frame.

        Args:
            frame: as the pixel format says: uint8 (or uint16 for more than 8 bits), (height, width, 3) for a colour
                model, (height, width[, 1]) for a mono one or a Bayer pattern; any strides. Packed formats: uint8
                (height, bytes of a row). On a GPU also such an array in its memory, of any library whose arrays have
                ``__dlpack__`` or ``__cuda_array_interface__``.
            boxes: regions (left, top, right, bottom) of the frame in pixels, for a model that looks at boxes, such as
                parts that a detector of objects found; their scores are reduced to one. At most ``max_batch``.
            map: also return the residual map; only for methods that have one.

        Raises:
            FrameError: the frame or a box is not what the model expects; says what it does.
            ScoreError: the score is not finite (unless loaded with nonfinite="reject"), or there is no map.
            DeviceLostError: the GPU stopped answering; the detector is closed.
        """
        self._check_map(map)
        with self._closed_if_lost(), self._pool.using(self._holder(frame)) as pipeline:
            scores, timing = pipeline.run((frame,), boxes=boxes, map=map)
            score = float(scores[0])
            maps, timing = self._maps(pipeline, (frame,), boxes, timing) if map else ((None,), timing)
        return self._result(score, maps[0], timing)

    def score_batch(self, frames: Iterable[AnyFrame], *, map: bool = False) -> list[Result]:
        """Score any number of frames, ``max_batch`` at a time; see ``score``. Sizes may differ.

        A frame or score that raises ends the call, and no result is returned. A model that looks at boxes is given its
        frames one at a time: ``score(frame, boxes=...)``.
        """
        self._pool.check_open()
        self._check_no_boxes()
        self._check_map(map)
        frames, results = list(frames), []
        for start in range(0, len(frames), self.max_batch):
            part = frames[start : start + self.max_batch]
            with self._closed_if_lost(), self._pool.using() as pipeline:
                scores, timing = pipeline.run(part, map=map)
                values = scores.tolist()
                maps, timing = self._maps(pipeline, part, None, timing) if map else ((None,) * len(part), timing)
            results += [self._result(value, of, timing) for value, of in zip(values, maps, strict=True)]
        return results

    def stream(self, frames: Iterable[AnyFrame]) -> Generator[Result, None, None]:
        """Score frames as they come, and give their results in the same order.

        On a GPU up to ``contexts`` frames are in flight: while one is computed the next is copied. So the first result
        comes when ``contexts`` frames have been taken, or there are no more, and each further one before the next frame
        is taken. Frames on the host have been copied by then, but for a ``frame_buffer``, which, like a frame on the
        device, is in use until its result is given. See ``score`` for frames and errors; an error ends the stream.
        """
        self._pool.check_open()
        self._check_no_boxes()
        source = iter(frames)
        waiting: deque[Pipeline] = deque()
        try:
            while True:
                if len(waiting) == self.contexts:
                    yield self._next_result(waiting)
                try:
                    frame = next(source)
                except StopIteration:
                    break
                holder = self._holder(frame)
                if holder is not None and holder in waiting:
                    raise FrameError(
                        "the frame lies in a frame buffer that is still in flight; use those of "
                        f"index=0 to {self.contexts - 1} in turn"
                    )
                # Who waits while frames are in flight would keep others from theirs.
                while waiting and (pipeline := self._pool.try_take(holder)) is None:
                    yield self._next_result(waiting)
                if not waiting:
                    pipeline = self._pool.take(holder)
                assert pipeline is not None
                self._submit(frame, pipeline, waiting)
            while waiting:
                yield self._next_result(waiting)
        finally:
            for pipeline in waiting:  # the caller stopped, or something failed
                with suppress(KizuError):
                    self._pool.resume(pipeline)
                    try:
                        pipeline.collect()
                    finally:
                        self._pool.give(pipeline)

    def _submit(self, frame: AnyFrame, pipeline: Pipeline, waiting: deque[Pipeline]) -> None:
        with self._closed_if_lost():
            try:
                pipeline.submit((frame,))
            except BaseException:
                self._pool.give(pipeline)
                raise
            self._pool.park(pipeline)
            waiting.append(pipeline)

    def _next_result(self, waiting: deque[Pipeline]) -> Result:
        with self._closed_if_lost():
            self._pool.resume(waiting[0])
            pipeline = waiting.popleft()
            try:
                scores, timing = pipeline.collect()
                score = float(scores[0])
            finally:
                self._pool.give(pipeline)
        return self._result(score, None, timing)

    def frame_buffer(self, height: int, width: int, *, index: int = 0) -> Frame:
        """Memory for a frame of this size, which a camera or a decoder can write into.

        On a GPU it is pinned, and the frame that it is is not copied on the host. It is an array as ``score`` takes it,
        without gaps, the same one for each call with this size and index. Nothing else is ever written there. Write the
        next frame when the result of the last one is there. ``warm_up`` does what its first frame would pay for.

        Args:
            height: of the frame, in pixels.
            width: likewise.
            index: which of the ``contexts`` memories; to fill one while another is in flight.
        """
        if not 0 <= index < self.contexts:
            raise FrameError(f"index is {index}, but there are {self.contexts} contexts; load with more contexts")
        if min(height, width) < 1:
            raise FrameError(f"height and width are {height} and {width}, but must be at least 1")
        self._pool.check_open()
        with self._closed_if_lost():
            return self._pool.pipelines[index].frame_buffer(height, width)

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far: a frame of a new size costs one capture a context; 0 on a processor."""
        return sum(pipeline.captures for pipeline in self._pool.pipelines)

    def warm_up(self, frame_shape: tuple[int, int] | None = None, *, batch: int = 1, map: bool = False) -> None:
        """Do now what the first call would pay for.

        That is bindings, resize weights, work space, the engine's own first run; on a GPU the captures, but for those
        of frames that lie in its memory, which are captured when the first of them comes to a context.

        Args:
            frame_shape: (height, width) of the frames to come; by default that of the bundle's first golden frame.
            batch: frames that ``score_batch`` will be given at once, up to ``max_batch``.
            map: whether maps will be asked for.
        """
        self._check_map(map)
        height, width = frame_shape or self.bundle.golden_shape()
        if min(height, width, batch) < 1:
            raise FrameError(f"height, width and batch are {height}, {width} and {batch}, but must be at least 1")
        frame = np.zeros(self.pixel_format.array_shape(height, width), self.pixel_format.dtype)
        count = min(batch, self.max_batch)
        for each in self._pool.pipelines:
            with self._closed_if_lost(), self._pool.using(each) as pipeline:
                if self.bundle.manifest.prepare.boxes:
                    pipeline.run([frame], boxes=[(0, 0, width, height)] * count, map=map)
                    continue
                pipeline.run([frame] * count, map=map)
                if pipeline.buffer is not None and pipeline.buffer.shape == frame.shape:
                    pipeline.run([pipeline.buffer], map=map)

    def close(self) -> None:
        """Release the engine; waits for calls in progress. A second close does nothing."""
        self._pool.close()

    def _holder(self, frame: object) -> Pipeline | None:
        """The pipeline whose frame buffer the frame lies in."""
        return next((pipeline for pipeline in self._pool.pipelines if pipeline.holds(frame)), None)

    def _check_map(self, map: bool) -> None:
        if map and not self._rule.residual:
            method = self.bundle.manifest.method.name
            raise ScoreError(f"{method} scores an image as a whole and has no map; call without map=True")

    def _check_no_boxes(self) -> None:
        if self.bundle.manifest.prepare.boxes:
            raise FrameError("the model looks at boxes: call score(frame, boxes=[...]) for each frame")

    def _maps(
        self, pipeline: Pipeline, frames: Sequence[AnyFrame], boxes: Sequence[Box] | None, timing: Timing
    ) -> tuple[Sequence[NDArray[np.float32]], Timing]:
        """The heat maps of what the pipeline has just scored."""
        start = perf_counter()
        spec = self.bundle.manifest.prepare
        views = spec.views or len(boxes or ()) * spec.rotations
        residuals = pipeline.maps(len(frames) * views).reshape(len(frames), views, *spec.size)
        with self._heat_maps_lock:
            maps = [
                self._heat_maps(of_views, self.pixel_format.size(frame.shape), sigma=self.map_sigma, boxes=boxes)
                for frame, of_views in zip(frames, residuals, strict=True)
            ]
        return maps, timing._replace(score=timing.score + (perf_counter() - start) / len(frames))

    @contextmanager
    def _closed_if_lost(self) -> Iterator[None]:
        try:
            yield
        except DeviceLostError:
            with suppress(Exception):  # of what cannot be freed any more
                self.close()
            raise

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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
    max_batch: int | None = None,
    contexts: int | None = None,
    pixel_format: str | None = None,
    nonfinite: NonFinite = "error",
    threshold: float | None = None,
    weight: float | None = None,
    map_sigma: float = MAP_SIGMA,
    engine_file: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Detector:
    """Load a bundle and return a warmed-up Detector.

    The first load on a machine compiles the engine and proves it against the bundle's golden scores; later loads take
    it from the cache.

    Args:
        path: a .kizu file.
        engine: "auto" (the preferred one that is installed) or a name that ``kizu engines`` lists.
        precision: "auto" (the fastest that reproduces the golden scores here) or "fp32", "bf16", "fp16", "int8",
            "int8+fp16"; a named precision is used or refused, never swapped.
        threads: threads one call may use; by default all processors of this process.
        max_batch: frames that ``score_batch`` sends through the engine at once; by default 16, or the most that the
            engine file takes.
        contexts: calls that may run side by side, each with buffers and an execution context of its own; by default 2
            on a GPU, so that ``stream`` copies one frame while another is computed, and 1 on a processor.
        pixel_format: how frames come, by GenICam's names: "BGR8" (as OpenCV and many cameras deliver), "BayerRG8",
            "Mono12p" ...; by default the model's own, e.g. "RGB8" or "Mono8".
        nonfinite: what a score that is not finite does: raise an "error", or "reject" the part.
        threshold: a finite number that overrides the bundle's threshold.
        weight: overrides the scoring rule's lambda; only with a ``threshold``, since the bundle's is one of scores
            under its own lambda.
        map_sigma: standard deviation of the maps' smoothing, in pixels of the model's input.
        engine_file: what ``kizu build`` wrote on another machine for this one's GPU; used in place of compiling, in its
            own precision, once it has proved itself here.
        cache: folder of compiled engines; by default $KIZU_CACHE or the user's cache folder.

    Raises:
        BundleError: the file is not a whole, unedited bundle of this version.
        EngineError: no engine is installed (says what to install), or it cannot or must not be used.
        ThresholdError: the bundle has no threshold for the precision, the given one is not a finite number, or a
            weight was given without one.
        ScoreError: the weight or the smoothing is out of range, or the rule has no weight.
    """
    for name, value in (("threads", threads), ("max_batch", max_batch), ("contexts", contexts)):
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
        if not scoring.rule(bundle.manifest.scoring).weighs:
            raise ScoreError(f"weight is {weight!r}, but the bundle's rule {bundle.manifest.scoring} has no weight")
        scoring.check_weight(bundle.manifest.scoring, weight)
        if threshold is None:
            raise ThresholdError(
                f"weight is {weight:g}, but the bundle's threshold is one of scores with the weight "
                f"{bundle.manifest.weight:g} and says nothing about others; give a threshold= for the new scores too"
            )
    built = None if engine_file is None else Path(engine_file)
    if built is not None:
        header, _ = engine_files.read(built)
        engine = header.engine if engine == "auto" else engine
        max_batch = max_batch or max(1, header.batch[2] // engine_batch(bundle.manifest.prepare, 1))
    max_batch = max_batch or _BATCH
    chosen = choose(engine)
    threads = threads or default_threads()
    folder = default_cache() if cache is None else Path(cache)
    if precision in bundle.manifest.golden.tolerances and threshold is None:
        _threshold(bundle, precision)  # before work starts
    manifest = bundle.manifest
    among = manifest.golden.tolerances if threshold is not None else manifest.threshold.values
    options = options_for(chosen, manifest.prepare, threads=threads, batch=(1, 1, max_batch))
    entry = compiled(bundle, chosen, precision, options, folder, among=among, built=built)
    limit = _threshold(bundle, entry.options.precision) if threshold is None else float(threshold)
    compiled_engine, pipelines = entry.load(), []
    try:
        for _ in range(contexts or (2 if isinstance(compiled_engine, CudaProgram) else 1)):
            pipelines.append(
                open_pipeline(
                    compiled_engine,
                    manifest.prepare,
                    manifest.scoring,
                    threads=threads,
                    max_batch=max_batch,
                    weight=manifest.weight if weight is None else weight,
                    pixel_format=frames.name,
                )
            )
        detector = Detector(
            bundle,
            Pool(pipelines, compiled_engine),
            engine=chosen.name,
            precision=entry.options.precision,
            threads=threads,
            threshold=limit,
            pixel_format=frames,
            nonfinite=nonfinite,
            map_sigma=map_sigma,
        )
        detector.warm_up()
    except BaseException:
        Pool(pipelines, compiled_engine).close()
        raise
    return detector


def _threshold(bundle: Bundle, precision: str) -> float:
    values = bundle.manifest.threshold.values
    if precision not in values:
        raise ThresholdError(
            f"{bundle.path} has no threshold for {precision}, only for {', '.join(values)}; set one with kizu threshold"
        )
    return values[precision]
