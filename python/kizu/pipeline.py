"""Frame to score on preallocated buffers: prepare, engine, scoring rule. The one path that proof and line share."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kizu.errors import EngineError, FrameError, ScoreError
from kizu.prepare import Preparer
from kizu.scoring import Scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kizu.engine import Engine, Runner
    from kizu.prepare import Box, Frame, PrepareSpec


class Timing(NamedTuple):
    """Seconds spent on one frame (of a batch: the batch's time divided by its frames)."""

    prepare: float
    engine: float
    score: float


class Pipeline:
    """One engine with its input and output buffers for batches of up to ``max_batch`` frames.

    Used by one thread at a time. A batch size is bound on its first use; after that nothing is allocated.
    ``weight`` is the rule's lambda. The views of a frame (tiles, rotations, boxes) go through the engine side by side,
    ``engine_batch`` at most, and their scores are reduced to the frame's.
    """

    def __init__(
        self,
        engine: Engine,
        spec: PrepareSpec,
        rule: str,
        *,
        threads: int,
        max_batch: int = 1,
        weight: float = 0.0,
        pixel_format: str | None = None,
    ) -> None:
        self.max_batch = max_batch
        self._engine = engine
        self._spec = spec
        self._scorer = Scorer(rule, weight=weight, reduce=spec.reduce, threads=threads)
        self.rule, self.weight = self._scorer.rule, self._scorer.weight
        self._prepare = Preparer(spec, pixel_format=pixel_format, threads=threads)
        shape = (spec.channels, *spec.size)
        (graph_input,) = engine.inputs
        if graph_input.shape[1:] != shape:
            raise EngineError(f"the graph's input is {graph_input.shape}, but prepare makes (batch, *{shape})")
        missing = set(self.rule.outputs) - {output.name for output in engine.outputs}
        if missing:
            raise EngineError(f"the graph has no output {', '.join(missing)}, which the rule {rule!r} reads")
        inputs = engine_batch(spec, max_batch)
        self._input = np.zeros((inputs, *shape), np.float32)
        self._outputs = {
            output.name: np.zeros((inputs, *(int(n or 1) for n in output.shape[1:])), np.float32)
            for output in engine.outputs
        }
        self._scores = np.zeros(inputs, np.float32)
        self._maps = np.zeros((inputs if self.rule.residual else 0, *spec.size), np.float32)
        one = {name: array[:1] for name, array in {**self._outputs, "x": self._input}.items()}
        try:
            self._scorer(one, self._scores[:1], self._maps[:1] if self.rule.residual else None)
        except ScoreError as error:
            raise EngineError(f"the graph's outputs do not fit: {error}") from error
        self._bound: dict[int, tuple[Runner, dict[str, NDArray[np.float32]]]] = {}

    def _bind(self, inputs: int) -> tuple[Runner, dict[str, NDArray[np.float32]]]:
        outputs = {name: array[:inputs] for name, array in self._outputs.items()}
        runner = self._engine.bind({self._engine.inputs[0].name: self._input[:inputs]}, outputs)
        self._bound[inputs] = runner, {**outputs, "x": self._input[:inputs]}
        return self._bound[inputs]

    def maps(self, inputs: int) -> NDArray[np.float32]:
        """The residual maps (inputs, height, width) of the last ``run``, at the model's size; valid until the next."""
        return self._maps[:inputs]

    def run(
        self, frames: Sequence[Frame], *, boxes: Sequence[Box] | None = None, map: bool = False
    ) -> tuple[NDArray[np.float32], Timing]:
        """Score 1 to ``max_batch`` frames; the scores (N,) are valid until the next call.

        Where the model looks at boxes, ``boxes`` are those of the one frame. With ``map``, which needs a rule that has
        one, ``maps`` gives the residual maps.

        Raises:
            FrameError: a frame is not what the model expects, or has more boxes than go through the engine at once.
        """
        n = len(frames)
        if self._spec.boxes and not boxes:
            raise FrameError("the model looks at boxes: pass boxes=[(left, top, right, bottom), ...], at least one")
        views = self._spec.views or len(boxes or ()) * self._spec.rotations
        if n * views > len(self._input):
            raise FrameError(
                f"the frame has {len(boxes or ())} boxes and so {views} views, but {len(self._input)} go through the "
                "engine at once: load with a larger max_batch"
            )
        runner, tensors = self._bound.get(n * views) or self._bind(n * views)
        start = perf_counter()
        for i, frame in enumerate(frames):
            to = self._input[i] if views == 1 else self._input[i * views : (i + 1) * views]
            self._prepare(frame, to, boxes=boxes)
        prepared = perf_counter()
        runner.run()
        computed = perf_counter()
        scores = self._scores[:n]
        self._scorer(tensors, scores, self._maps[: n * views] if map else None, views=views)
        done = perf_counter()
        return scores, Timing((prepared - start) / n, (computed - prepared) / n, (done - computed) / n)

    def close(self) -> None:
        """Release bindings and engine."""
        self._bound.clear()
        self._engine.close()


def engine_batch(spec: PrepareSpec, max_batch: int) -> int:
    """Inputs that go through the engine at once: those of ``max_batch`` frames, or ``max_batch`` boxes."""
    return max_batch * (spec.views or spec.rotations)
