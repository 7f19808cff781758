"""The pipeline of an engine that computes on a CUDA device: one captured graph a frame.

The first frames of a size and number run one by one and are captured; after that a call is one launch and one wait,
with the GIL released, and allocates nothing. Frames on the host are copied into the pinned slot, unless they were
written there; frames on the device (``__dlpack__``, ``__cuda_array_interface__``) are read where they lie.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from kizu import _core
from kizu.engine import DeviceTensor
from kizu.errors import DeviceLostError, EngineError, FrameError
from kizu.pipeline import Pipeline, Timing
from kizu.prepare import check_frame, native_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kizu.engine import CudaProgram, ExecutionContext, TensorSpec
    from kizu.prepare import AnyFrame, Box, Frame, PrepareSpec


_COPYING = 4  # threads that copy a frame on the host: more do not make the memory faster


class CudaPipeline(Pipeline):
    """A stream with its buffers, the engine's execution contexts and the graphs captured of them.

    Attributes:
        captures: graphs captured so far: one for each number of frames of a size, with and without maps.
    """

    def __init__(
        self,
        engine: CudaProgram,
        spec: PrepareSpec,
        rule: str,
        *,
        threads: int = 1,
        max_batch: int = 1,
        weight: float = 0.0,
        pixel_format: str | None = None,
    ) -> None:
        super().__init__(
            engine, spec, rule, threads=threads, max_batch=max_batch, weight=weight, pixel_format=pixel_format
        )
        (x,) = engine.inputs
        read = {output.name: output.dtype for output in engine.outputs if output.name in self.rule.outputs}
        if x.dtype not in ("float32", "float16") or set(read.values()) != {x.dtype}:
            raise EngineError(
                f"the graph's input is {x.dtype} and its outputs are {read}, but all must be float32 or all float16"
            )
        self._frames: tuple[AnyFrame, ...] = ()
        self._launched = 0.0  # seconds until they were
        self._boxes: Sequence[Box] = ()
        self._captures, self._closed = 0, False
        try:
            self._replay = _core.Replay(
                prepare=native_spec(spec, self.pixel_format),
                half=x.dtype == "float16",
                rule=self.rule.name,
                weight=self.weight,
                reduce=spec.reduce,
                inputs=self.inputs,
                input=x.name,
                outputs=[(output.name, _image_bytes(output)) for output in engine.outputs],
                workspace=engine.workspace,
                threads=min(threads, _COPYING),
                bind=_binder(engine),
            )
        except (ValueError, RuntimeError, MemoryError) as error:
            raise EngineError(f"the CUDA device has no room for the pipeline, or failed: {error}") from error
        self._scores = self._replay.scores()
        self._maps = self._replay.maps() if self.rule.residual else np.zeros((0, *spec.size), np.float32)

    @property
    def captures(self) -> int:  # noqa: D102
        if not self._closed:
            self._captures = self._replay.counts[0]
        return self._captures

    def frame_buffer(self, height: int, width: int) -> Frame:
        """See ``Pipeline``."""
        buffer: Frame = self._guarded(lambda: self._replay.frame_buffer(height, width))
        self.buffer = buffer
        return buffer

    def holds(self, frame: object) -> bool:
        """See ``Pipeline``."""
        buffer = self.buffer
        return buffer is not None and isinstance(frame, np.ndarray) and frame.ctypes.data == buffer.ctypes.data

    def submit(self, frames: Sequence[AnyFrame], *, boxes: Sequence[Box] | None = None, map: bool = False) -> None:
        """See ``Pipeline``; the frames are of one size, and all on the host or all on the device."""
        self._views(len(frames), boxes)
        if boxes is not None and not self._spec.boxes:
            raise FrameError("boxes were given, but the model makes its regions itself (PrepareSpec.boxes is False)")
        self._frames, self._boxes = tuple(frames), boxes or ()
        try:
            self._launched = self._guarded(lambda: self._replay.start(self._frames, self._boxes, map))
        except BaseException:
            self._frames = ()
            raise

    def collect(self) -> tuple[NDArray[np.float32], Timing]:
        """See ``Pipeline``."""
        n = len(self._frames)
        try:
            waited = self._guarded(self._replay.finish)
        finally:
            self._frames = ()
        return self._scores[:n], Timing(self._launched / n, waited / n, 0.0)

    def run(
        self, frames: Sequence[AnyFrame], *, boxes: Sequence[Box] | None = None, map: bool = False
    ) -> tuple[NDArray[np.float32], Timing]:
        """See ``Pipeline``. Frames of a size that lie side by side in the sequence go through the engine together."""
        if len(frames) > 1:
            alike = [list(group) for _, group in groupby(frames, _kind)]
            if len(alike) > 1:
                return self._run_groups(alike, map)
        self.submit(frames, boxes=boxes, map=map)
        return self.collect()

    def _run_groups(self, groups: list[list[AnyFrame]], map: bool) -> tuple[NDArray[np.float32], Timing]:
        scores: list[NDArray[np.float32]] = []
        maps: list[NDArray[np.float32]] = []
        seconds = np.zeros(3)
        for group in groups:
            self.submit(group, map=map)
            found, timing = self.collect()
            scores.append(found.copy())
            seconds += np.array(timing) * len(group)
            if map:
                maps.append(self._maps[: len(group) * self._views(1, None)].copy())
        if map:
            np.concatenate(maps, out=self._maps[: sum(len(m) for m in maps)])
        together = np.concatenate(scores)
        return together, Timing(*(seconds / len(together)).tolist())

    def maps(self, inputs: int) -> NDArray[np.float32]:
        """See ``Pipeline``."""
        return self._maps[:inputs]

    def close(self) -> None:
        """See ``Pipeline``."""
        self._scores = self._maps = np.zeros(0, np.float32)  # views of what is freed now
        self.buffer = None
        self._captures, self._closed = self.captures, True
        self._replay.close()

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Make a native call, and say what went wrong in the words of the person on the line."""
        try:
            return call()
        except (EngineError, RuntimeError, MemoryError) as error:
            if self._replay.lost:
                raise DeviceLostError(
                    f"the CUDA device stopped answering: {error}. The detector is closed; start the process anew, and "
                    "look at the driver's messages (dmesg) if that does not help"
                ) from error
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"the frame could not be computed on the CUDA device: {error}") from error
        except (TypeError, ValueError) as error:
            for frame in self._frames:
                if isinstance(frame, np.ndarray):
                    check_frame(frame, self._spec, self.pixel_format, boxes=self._boxes if self._spec.boxes else None)
            raise FrameError(f"{error} (the model expects {self.pixel_format.shapes})") from error


def _image_bytes(tensor: TensorSpec) -> int:
    return math.prod(n or 1 for n in tensor.shape[1:]) * np.dtype(tensor.dtype).itemsize


def _binder(engine: CudaProgram) -> Callable[[int, dict[str, int], int], ExecutionContext]:
    """Contexts of the engine from the addresses of its tensors; without the pipeline, which would hold itself alive."""
    tensors = (*engine.inputs, *engine.outputs)

    def bind(images: int, addresses: dict[str, int], workspace: int) -> ExecutionContext:
        bound = {
            t.name: DeviceTensor(addresses[t.name], (images, *(n or 1 for n in t.shape[1:])), t.dtype) for t in tensors
        }
        return engine.context(bound, workspace)

    return bind


def _kind(frame: object) -> tuple[object, ...]:
    return isinstance(frame, np.ndarray), getattr(frame, "shape", None), getattr(frame, "strides", None)
