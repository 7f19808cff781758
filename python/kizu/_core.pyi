"""The native operations. They check what they are given and release the GIL while they work."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]:
    """Instruction sets of this build that this processor has, best first; KIZU_SIMD names one to use."""

class Prepare:
    """``prepare`` for one spec; see kizu.prepare.Preparer. Raises ValueError or TypeError on a mismatch."""

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        crop: tuple[int, int, int, int] | None,
        tables: Sequence[NDArray[np.float32]],
        threads: int,
    ) -> None: ...
    def run(self, frame: NDArray[np.uint8], out: NDArray[np.float32], bgr: bool) -> None:
        """Write the model's input (tables, height, width) of a frame (H, W, channels) or (H, W)."""

    def resize(self, frame: NDArray[np.uint8], out: NDArray[np.uint8], bgr: bool) -> None:
        """Write the resized integers (channels, height, width) before normalisation."""
