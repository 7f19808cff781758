"""From a residual map to a heat map of the frame: brought to the frame's size, Gaussian-smoothed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kizu import _core
from kizu.errors import ScoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kizu.prepare import Box, Device, PrepareSpec

Size = tuple[int, int]
Part = tuple[float, float, float, float]


class MapSmoother:
    """``smooth_map`` bound to one geometry, with its weights and work space kept between calls.

    Args:
        map_size: (height, width) of the maps.
        size: (height, width) in pixels of the region that they are brought to.
        sigma: standard deviations (vertical, horizontal) of the Gaussian in pixels of the region; 0 does not smooth.
        covered: the part (left, top, right, bottom) of the region, in its pixels, that the maps were computed of; the
            whole if None. What lies outside counts as 0.
        threads: how many threads share the work.
        device: "cpu", or "cuda" to compute the same bits on a CUDA device; maps are copied there and back.

    Raises:
        ScoreError: there is no such geometry or device.
    """

    def __init__(
        self,
        map_size: Size,
        size: Size,
        *,
        sigma: tuple[float, float],
        covered: Part | None = None,
        threads: int = 1,
        device: Device = "cpu",
    ) -> None:
        self.size = size
        height, width = size
        covered = covered or (0.0, 0.0, float(width), float(height))
        try:
            self._op = _core.SmoothMap(
                map_size=map_size, size=size, covered=covered, sigma=sigma, threads=threads, device=device
            )
        except (TypeError, ValueError) as error:
            raise ScoreError(f"a map cannot be brought to this size: {error}") from error

    def __call__(self, maps: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write the maps (N, height, width) at the region's size; both float32 and C-contiguous.

        Raises:
            ScoreError: an array does not fit the geometry.
        """
        try:
            self._op.run(maps, out)
        except (TypeError, ValueError) as error:
            raise ScoreError(f"maps cannot be smoothed: {error}") from error


def smooth_map(
    map: NDArray[np.float32], size: Size, *, sigma: tuple[float, float], covered: Part | None = None, threads: int = 1
) -> NDArray[np.float32]:
    """Return one map (height, width) at another size; see ``MapSmoother``."""
    height, width = map.shape
    out = np.empty((1, *size), np.float32)
    smoother = MapSmoother((height, width), size, sigma=sigma, covered=covered, threads=threads)
    smoother(np.ascontiguousarray(map)[None], out)
    resized: NDArray[np.float32] = out[0]
    return resized


class HeatMaps:
    """Heat maps of frames from residual maps at the model's size; keeps the weights of the last geometry.

    Args:
        spec: how frames become the model's input.
        threads: how many threads share the work of one map.
    """

    def __init__(self, spec: PrepareSpec, *, threads: int = 1) -> None:
        self._spec = spec
        self._threads = threads
        self._geometry: tuple[int, int, float] | None = None
        self._smoother: MapSmoother | None = None

    def __call__(
        self, maps: NDArray[np.float32], frame_size: Size, *, sigma: float, boxes: Sequence[Box] | None = None
    ) -> NDArray[np.float32]:
        """Return the heat map of one frame.

        Args:
            maps: float32 (views, height, width) of the model's inputs, C-contiguous. Of a region's rotations the first
                is used, which is not turned; where regions overlap, the largest value.
            frame_size: (height, width) of the frame.
            sigma: standard deviation of the smoothing in pixels of the model's input; 0 does not smooth.
            boxes: the frame's, where the model looks at boxes.

        Returns:
            float32 (height, width) of the frame; 0 outside the regions that the model looks at.
        """
        regions = self._spec.crop_and_cut(*frame_size) if boxes is None else boxes
        whole = np.zeros(frame_size, np.float32)
        for (left, top, right, bottom), map in zip(regions, maps[:: self._spec.rotations], strict=True):
            smoothed = np.empty((1, bottom - top, right - left), np.float32)
            self._smooth(map[None], smoothed, sigma)
            place = whole[top:bottom, left:right]
            np.maximum(place, smoothed[0], out=place)
        return whole

    def _smooth(self, maps: NDArray[np.float32], out: NDArray[np.float32], sigma: float) -> None:
        geometry = (out.shape[1], out.shape[2], sigma)
        if self._smoother is None or self._geometry != geometry:
            self._smoother = self._smoother_for(geometry[:2], sigma)
            self._geometry = geometry
        self._smoother(maps, out)

    def _smoother_for(self, region: Size, sigma: float) -> MapSmoother:
        spec = self._spec
        resized = spec.resize or spec.size
        scale = region[0] / resized[0], region[1] / resized[1]  # pixels of the region in one of the model's
        top, left = ((r - s) // 2 for r, s in zip(resized, spec.size, strict=True))  # the kept centre's
        bottom, right = top + spec.size[0], left + spec.size[1]
        covered = (
            left * scale[1],
            top * scale[0],
            min(right * scale[1], float(region[1])),  # which rounding could exceed
            min(bottom * scale[0], float(region[0])),
        )
        return MapSmoother(
            spec.size, region, sigma=(sigma * scale[0], sigma * scale[1]), covered=covered, threads=self._threads
        )
