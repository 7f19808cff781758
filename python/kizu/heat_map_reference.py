"""NumPy twin of ``heat_map.smooth_map``: the same bits, slowly; csrc/ops/smooth_map.h has the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kizu.scoring_reference import exp_of_nonpositive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kizu.heat_map import Part, Size

_TRUNCATE = 4.0  # standard deviations


def _interpolation(n_in: int, n_out: int, begin: float, end: float) -> NDArray[np.float64]:
    """The matrix (n_out, n_in) of Pillow's BILINEAR for inputs that cover [begin, end) of the outputs."""
    matrix = np.zeros((n_out, n_in))
    scale = n_in / (end - begin)
    support = max(scale, 1.0)
    for i in range(n_out):
        place = i + 0.5
        if not begin <= place < end:
            continue
        centre = (place - begin) * scale
        low = min(max(int(centre - support + 0.5), 0), n_in - 1)
        high = min(max(int(centre + support + 0.5), low + 1), n_in)
        taps = np.maximum(0.0, 1 - np.abs((np.arange(low, high) + 0.5 - centre) / support))
        matrix[i, low:high] = taps / np.cumsum(taps)[-1]  # a plain sum would go by pairs
    return matrix


def _gaussian(sigma: float) -> NDArray[np.float64]:
    radius = int(_TRUNCATE * sigma + 0.5)
    distances = np.arange(-radius, radius + 1) / sigma if radius else np.zeros(1)
    weights = exp_of_nonpositive(-0.5 * distances * distances)
    normalised: NDArray[np.float64] = weights / np.cumsum(weights)[-1]
    return normalised


def axis_reference(n_in: int, n_out: int, begin: float, end: float, sigma: float) -> NDArray[np.float32]:
    """Twin of csrc/ops/smooth_map.h's SmoothAxis: the matrix (n_out, n_in) of both steps, rounded to float32."""
    interpolation, gaussian = _interpolation(n_in, n_out, begin, end), _gaussian(sigma)
    radius = len(gaussian) // 2
    matrix = np.zeros((n_out, n_in))
    for tap, weight in enumerate(gaussian):
        matrix = matrix + weight * interpolation[np.clip(np.arange(n_out) + tap - radius, 0, n_out - 1)]
    return matrix.astype(np.float32)


def _apply(matrix: NDArray[np.float32], maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The product along the last axis, inputs ascending; an output reads as many as the one that needs most."""
    n_out, n_in = matrix.shape
    used = matrix != 0
    first = np.where(used.any(1), used.argmax(1), 0)
    last = np.where(used.any(1), n_in - used[:, ::-1].argmax(1), 1)
    taps = int((last - first).max())
    first = np.minimum(first, n_in - taps)
    out = np.zeros((*maps.shape[:-1], n_out), np.float32)
    for k in range(taps):
        out = out + matrix[np.arange(n_out), first + k] * maps[..., first + k]
    return out


def smooth_map_reference(
    map: NDArray[np.float32], size: Size, *, sigma: tuple[float, float], covered: Part | None = None
) -> NDArray[np.float32]:
    """NumPy twin of ``smooth_map``: the same bits, slowly."""
    left, top, right, bottom = covered or (0.0, 0.0, float(size[1]), float(size[0]))
    with np.errstate(all="ignore"):
        columns = _apply(axis_reference(map.shape[1], size[1], left, right, sigma[1]), map)
        rows = _apply(axis_reference(map.shape[0], size[0], top, bottom, sigma[0]), columns.T)
    return np.ascontiguousarray(rows.T)
