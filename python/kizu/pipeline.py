"""Frame to score on preallocated buffers: prepare, engine, scoring rule. The one path that proof and line share."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kizu import scoring
from kizu.errors import EngineError
from kizu.prepare import Preparer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kizu.engine import Engine, Runner
    from kizu.prepare import FrameOrder, PrepareSpec


class Timing(NamedTuple):
    """Seconds spent on one frame (of a batch: the batch's time divided by its frames)."""

    prepare: float
    engine: float
    score: float


class Pipeline:
    """One engine with its input and output buffers for batches of up to ``max_batch`` frames.

    Used by one thread at a time. A batch size is bound on its first use; after that nothing is allocated.
    """

    def __init__(self, engine: Engine, spec: PrepareSpec, rule: str, *, threads: int, max_batch: int = 1) -> None:
        self.max_batch = max_batch
        self._engine = engine
        self._rule = scoring.rule(rule)
        self._prepare = Preparer(spec, threads=threads)
        shape = (spec.channels, *spec.size)
        (graph_input,) = engine.inputs
        if graph_input.shape[1:] != shape:
            raise EngineError(f"the graph's input is {graph_input.shape}, but prepare makes (batch, *{shape})")
        missing = set(self._rule.outputs) - {output.name for output in engine.outputs}
        if missing:
            raise EngineError(f"the graph has no output {', '.join(missing)}, which the rule {rule!r} reads")
        self._input = np.zeros((max_batch, *shape), np.float32)
        self._outputs = {
            output.name: np.zeros((max_batch, *(int(n or 1) for n in output.shape[1:])), np.float32)
            for output in engine.outputs
        }
        self._scores = np.zeros(max_batch, np.float32)
        self._bound: dict[int, tuple[Runner, dict[str, NDArray[np.float32]], NDArray[np.float32]]] = {}

    def _bind(self, n: int) -> tuple[Runner, dict[str, NDArray[np.float32]], NDArray[np.float32]]:
        outputs = {name: array[:n] for name, array in self._outputs.items()}
        runner = self._engine.bind({self._engine.inputs[0].name: self._input[:n]}, outputs)
        self._bound[n] = runner, outputs, self._scores[:n]
        return self._bound[n]

    def run(
        self, frames: Sequence[NDArray[np.uint8]], *, order: FrameOrder = "rgb"
    ) -> tuple[NDArray[np.float32], Timing]:
        """Score 1 to ``max_batch`` frames; the scores (N,) are valid until the next call. Raises FrameError."""
        n = len(frames)
        runner, outputs, scores = self._bound.get(n) or self._bind(n)
        start = perf_counter()
        for i, frame in enumerate(frames):
            self._prepare(frame, self._input[i], order=order)
        prepared = perf_counter()
        runner.run()
        computed = perf_counter()
        scoring.score(self._rule.name, outputs, scores)
        done = perf_counter()
        return scores, Timing((prepared - start) / n, (computed - prepared) / n, (done - computed) / n)

    def close(self) -> None:
        """Release bindings and engine."""
        self._bound.clear()
        self._engine.close()
