"""The native operations. They check what they are given and release the GIL while they work."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from kizu.engine import ExecutionContext

def instruction_sets() -> list[str]:
    """Instruction sets of this build that this processor has, best first; KIZU_SIMD names one to use."""

def cuda_devices() -> int:
    """CUDA devices that the driver offers; 0 without a driver or where kizu was built without CUDA."""

class CudaDevice(TypedDict):
    """A CUDA device: compute capability like "8.7", versions like 13000, whether it shares the host's memory."""

    name: str
    compute_capability: str
    driver: int
    runtime: int
    integrated: bool

def cuda_device() -> CudaDevice:
    """The current CUDA device; raises ValueError that says why there is none."""

class Prepare:
    """``prepare`` for one spec; see kizu.prepare.Preparer. Raises ValueError or TypeError on a mismatch."""

    def __init__(self, spec: dict[str, Any], *, threads: int, device: str) -> None:
        """Take the spec as kizu.prepare.native_spec gives it."""

    def run(
        self,
        frames: NDArray[Any] | Sequence[NDArray[Any]],
        out: NDArray[np.float32] | NDArray[np.float16],
        boxes: Sequence[tuple[int, int, int, int]],
    ) -> None:
        """Write the model's inputs of one frame, or of an array or sequence of frames."""

    def resize(
        self,
        frames: NDArray[Any] | Sequence[NDArray[Any]],
        out: NDArray[np.uint8] | NDArray[np.uint16],
        boxes: Sequence[tuple[int, int, int, int]],
    ) -> None:
        """Write the resized integers before rotation and normalisation."""

class Score:
    """``score`` for one rule; see kizu.scoring.Scorer. Raises ValueError or TypeError on a mismatch."""

    def __init__(self, *, rule: str, weight: float, reduce: str, threads: int, device: str) -> None: ...
    def run(
        self,
        tensors: tuple[NDArray[Any] | None, ...],
        scores: NDArray[np.float32],
        map: NDArray[np.float32] | None,
        views: int,
    ) -> None:
        """Write the scores (images / views) of x, x_hat, f, f_hat and logit, and the maps (images, height, width)."""

class Replay:
    """Frames to scores as one CUDA graph; see kizu.cuda_pipeline. Used by one thread at a time.

    Raises ValueError or TypeError for what does not fit, RuntimeError if CUDA fails, and what ``bind`` and its contexts
    raise. Missing where kizu was built without CUDA.
    """

    def __init__(
        self,
        *,
        prepare: dict[str, Any],
        half: bool,
        rule: str,
        weight: float,
        reduce: str,
        inputs: int,
        input: str,
        outputs: Sequence[tuple[str, int]],
        workspace: int,
        threads: int,
        bind: Callable[[int, dict[str, int], int], ExecutionContext],
    ) -> None:
        """Allocate for ``inputs`` images; ``threads`` copy frames on the host.

        ``outputs`` are names and bytes of one image; ``bind`` is given the number of images, the tensors' addresses and
        that of the workspace.
        """

    def frame_buffer(self, height: int, width: int) -> NDArray[Any]:
        """Pinned memory of one frame of this size, as an array that keeps it alive; another one for another size."""

    def scores(self) -> NDArray[np.float32]:
        """The pinned memory (inputs,) that ``finish`` finds the scores in."""

    def maps(self) -> NDArray[np.float32]:
        """The pinned memory (inputs, height, width) of the maps."""

    def start(self, frames: tuple[object, ...], boxes: Sequence[tuple[int, int, int, int]], map: bool) -> float:
        """Launch what scores the frames; the seconds that took. Frames may change once it returns."""

    def finish(self) -> float:
        """Wait for the result; the seconds that took."""

    def close(self) -> None:
        """Free all of it, after what is running; nothing if it is closed."""

    @property
    def lost(self) -> bool:
        """Whether the device stopped answering."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Graphs captured, graphs launched, and launches whose prepare kernels were given other arguments first."""

class SmoothMap:
    """``smooth_map`` for one geometry; see kizu.heat_map.MapSmoother. Raises ValueError or TypeError on a mismatch."""

    def __init__(
        self,
        *,
        map_size: tuple[int, int],
        size: tuple[int, int],
        covered: tuple[float, float, float, float],
        sigma: tuple[float, float],
        threads: int,
        device: str,
    ) -> None: ...
    def run(self, map: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write maps (N, height, width) at the region's size."""
