"""Frame to score: prepare, engine, scoring rule. The one path that proof and line share, by where the engine computes.

A pipeline is one set of buffers, bound to one engine that others may use, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kizu.engine import CpuProgram, CudaProgram
from kizu.errors import EngineError, FrameError, ScoreError
from kizu.scoring import Scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from kizu.engine import Program
    from kizu.pixel_format import PixelFormat
    from kizu.prepare import AnyFrame, Box, Frame, PrepareSpec


class Timing(NamedTuple):
    """Seconds spent on one frame (of a batch: the batch's time divided by its frames).

    On a GPU the three run as one graph: ``prepare`` is the host's part before the launch, ``engine`` the time from the
    launch to the result, and ``score`` that of maps alone.
    """

    prepare: float
    engine: float
    score: float


class Pipeline(ABC):
    """Buffers for batches of up to ``max_batch`` frames, and what computes on them; used by one thread at a time.

    ``weight`` is the rule's lambda; ``buffer`` is the frame buffer that was handed out last. The views of a frame
    (tiles, rotations, boxes) go through the engine side by side, ``engine_batch`` at most, and their scores are reduced
    to the frame's. Closed before its engine.
    """

    def __init__(
        self,
        engine: Program,
        spec: PrepareSpec,
        rule: str,
        *,
        threads: int = 1,
        max_batch: int = 1,
        weight: float = 0.0,
        pixel_format: str | None = None,
    ) -> None:
        self.max_batch = max_batch
        self.inputs = engine_batch(spec, max_batch)
        self._spec = spec
        self._scorer = Scorer(rule, weight=weight, reduce=spec.reduce, threads=threads)
        self.rule, self.weight = self._scorer.rule, self._scorer.weight
        self.pixel_format: PixelFormat = spec.pixel_format(pixel_format)
        self.buffer: Frame | None = None
        shape = (spec.channels, *spec.size)
        (graph_input,) = engine.inputs
        if graph_input.shape[1:] != shape:
            raise EngineError(f"the graph's input is {graph_input.shape}, but prepare makes (batch, *{shape})")
        missing = set(self.rule.outputs) - {output.name for output in engine.outputs}
        if missing:
            raise EngineError(f"the graph has no output {', '.join(missing)}, which the rule {rule!r} reads")
        one = {
            tensor.name: np.zeros((1, *(int(n or 1) for n in tensor.shape[1:])), tensor.dtype)
            for tensor in engine.outputs
        }
        one["x"] = np.zeros((1, *shape), graph_input.dtype)
        map = np.zeros((1, *spec.size), np.float32) if self.rule.residual else None
        try:
            self._scorer(one, np.zeros(1, np.float32), map)
        except ScoreError as error:
            raise EngineError(f"the graph's outputs do not fit: {error}") from error

    @abstractmethod
    def run(
        self, frames: Sequence[AnyFrame], *, boxes: Sequence[Box] | None = None, map: bool = False
    ) -> tuple[NDArray[np.float32], Timing]:
        """Score 1 to ``max_batch`` frames; the scores (N,) are valid until the next call.

        Where the model looks at boxes, ``boxes`` are those of the one frame. With ``map``, which needs a rule that has
        one, ``maps`` gives the residual maps.

        Raises:
            FrameError: a frame is not what the model expects, or has more boxes than go through the engine at once.
            EngineError: the device failed.
        """

    @abstractmethod
    def submit(self, frames: Sequence[AnyFrame], *, boxes: Sequence[Box] | None = None, map: bool = False) -> None:
        """Begin ``run`` for frames of one kind; on a GPU it returns as soon as all is launched."""

    @abstractmethod
    def collect(self) -> tuple[NDArray[np.float32], Timing]:
        """Wait for what was submitted: what ``run`` returns."""

    @abstractmethod
    def frame_buffer(self, height: int, width: int) -> Frame:
        """Memory for one frame; frames written there are not copied on their way to the model."""

    @abstractmethod
    def holds(self, frame: object) -> bool:
        """Whether the frame is this pipeline's last ``frame_buffer``."""

    @property
    @abstractmethod
    def captures(self) -> int:
        """CUDA graphs captured so far; 0 on the processor."""

    @abstractmethod
    def maps(self, inputs: int) -> NDArray[np.float32]:
        """The residual maps (inputs, height, width) of the last ``run``, at the model's size; valid until the next."""

    @abstractmethod
    def close(self) -> None:
        """Release buffers and bindings; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _views(self, frames: int, boxes: Sequence[Box] | None) -> int:
        """Inputs of one frame; raises FrameError if all together are more than go through the engine at once."""
        if self._spec.boxes and not boxes:
            raise FrameError("the model looks at boxes: pass boxes=[(left, top, right, bottom), ...], at least one")
        views = self._spec.views or len(boxes or ()) * self._spec.rotations
        if frames > self.max_batch:
            raise FrameError(f"there are {frames} frames, but {self.max_batch} go through the engine at once")
        if frames * views > self.inputs:
            raise FrameError(
                f"the frame has {len(boxes or ())} boxes and so {views} views, but {self.inputs} go through the "
                "engine at once: load with a larger max_batch"
            )
        return views


def open_pipeline(
    engine: Program,
    spec: PrepareSpec,
    rule: str,
    *,
    threads: int = 1,
    max_batch: int = 1,
    weight: float = 0.0,
    pixel_format: str | None = None,
) -> Pipeline:
    """The pipeline that fits the engine; ``threads`` are the host's."""
    from kizu.cpu_pipeline import CpuPipeline
    from kizu.cuda_pipeline import CudaPipeline

    if isinstance(engine, CudaProgram):
        return CudaPipeline(
            engine, spec, rule, threads=threads, max_batch=max_batch, weight=weight, pixel_format=pixel_format
        )
    assert isinstance(engine, CpuProgram)
    return CpuPipeline(
        engine, spec, rule, threads=threads, max_batch=max_batch, weight=weight, pixel_format=pixel_format
    )


def engine_batch(spec: PrepareSpec, max_batch: int) -> int:
    """Inputs that go through the engine at once: those of ``max_batch`` frames, or ``max_batch`` boxes."""
    return max_batch * (spec.views or spec.rotations)
