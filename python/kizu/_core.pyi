"""The native operations. They check what they are given and release the GIL while they work."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]:
    """Instruction sets of this build that this processor has, best first; KIZU_SIMD names one to use."""

def cuda_devices() -> int:
    """CUDA devices that the driver offers; 0 without a driver or where kizu was built without CUDA."""

class Prepare:
    """``prepare`` for one spec; see kizu.prepare.Preparer. Raises ValueError or TypeError on a mismatch."""

    def __init__(
        self,
        *,
        channels: int,
        bit_depth: int,
        bgr: bool,
        bayer: str,
        packing: str,
        size: tuple[int, int],
        resize: tuple[int, int],
        crop: tuple[int, int, int, int] | None,
        tiles: tuple[int, int, int],
        boxes: bool,
        rotations: int,
        pool: bool,
        tables: Sequence[NDArray[np.float32]],
        lines: Sequence[tuple[float, float]],
        affine: Sequence[tuple[np.float32, np.float32]],
        threads: int,
        device: str,
    ) -> None: ...
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
