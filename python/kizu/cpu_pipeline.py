"""The pipeline of an engine that computes on the processor."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, cast

import numpy as np

from kizu.pipeline import Pipeline, Timing
from kizu.prepare import Preparer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kizu.engine import CpuProgram, Runner
    from kizu.prepare import AnyFrame, Box, Frame, PrepareSpec


class CpuPipeline(Pipeline):
    """Host buffers. A batch size is bound on its first use; after that nothing is allocated."""

    def __init__(
        self,
        engine: CpuProgram,
        spec: PrepareSpec,
        rule: str,
        *,
        threads: int,
        max_batch: int = 1,
        weight: float = 0.0,
        pixel_format: str | None = None,
    ) -> None:
        super().__init__(
            engine, spec, rule, threads=threads, max_batch=max_batch, weight=weight, pixel_format=pixel_format
        )
        self._engine = engine
        self._prepare = Preparer(spec, pixel_format=pixel_format, threads=threads)
        self._input = np.zeros((self.inputs, spec.channels, *spec.size), np.float32)
        self._outputs = {
            output.name: np.zeros((self.inputs, *(int(n or 1) for n in output.shape[1:])), np.float32)
            for output in engine.outputs
        }
        self._scores = np.zeros(self.inputs, np.float32)
        self._maps = np.zeros((self.inputs if self.rule.residual else 0, *spec.size), np.float32)
        self._bound: dict[int, tuple[Runner, dict[str, NDArray[np.float32]]]] = {}

    def _bind(self, inputs: int) -> tuple[Runner, dict[str, NDArray[np.float32]]]:
        outputs = {name: array[:inputs] for name, array in self._outputs.items()}
        runner = self._engine.bind({self._engine.inputs[0].name: self._input[:inputs]}, outputs)
        self._bound[inputs] = runner, {**outputs, "x": self._input[:inputs]}
        return self._bound[inputs]

    def maps(self, inputs: int) -> NDArray[np.float32]:
        """See ``Pipeline``."""
        return self._maps[:inputs]

    captures = 0

    def frame_buffer(self, height: int, width: int) -> Frame:
        """See ``Pipeline``."""
        return np.zeros(self.pixel_format.array_shape(height, width), self.pixel_format.dtype)

    def holds(self, frame: object) -> bool:
        """See ``Pipeline``; frames are read where they lie."""
        return False

    def submit(self, frames: Sequence[AnyFrame], *, boxes: Sequence[Box] | None = None, map: bool = False) -> None:
        """See ``Pipeline``."""
        self._submitted = self.run(frames, boxes=boxes, map=map)

    def collect(self) -> tuple[NDArray[np.float32], Timing]:
        """See ``Pipeline``."""
        return self._submitted

    def run(
        self, frames: Sequence[AnyFrame], *, boxes: Sequence[Box] | None = None, map: bool = False
    ) -> tuple[NDArray[np.float32], Timing]:
        """See ``Pipeline``."""
        n = len(frames)
        views = self._views(n, boxes)
        runner, tensors = self._bound.get(n * views) or self._bind(n * views)
        start = perf_counter()
        for i, frame in enumerate(frames):
            to = self._input[i] if views == 1 else self._input[i * views : (i + 1) * views]
            self._prepare(cast("Frame", frame), to, boxes=boxes)  # of others it says what is wrong
        prepared = perf_counter()
        runner.run()
        computed = perf_counter()
        scores = self._scores[:n]
        self._scorer(tensors, scores, self._maps[: n * views] if map else None, views=views)
        done = perf_counter()
        return scores, Timing((prepared - start) / n, (computed - prepared) / n, (done - computed) / n)

    def close(self) -> None:
        """See ``Pipeline``."""
        self._bound.clear()
