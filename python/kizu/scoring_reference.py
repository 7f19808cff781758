"""NumPy twins of the scoring rules: the same bits as the native operation, slowly.

They spell out the canonical order of csrc/ops/score.h: blocks of a plane are summed in float32 by lanes and then in
halves, the blocks' sums are added in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from kizu.prepare import Reduce

LANES = 256
BLOCK = 2048

# exp: ln 2 in two parts, the first of few bits; coefficients of Taylor's series from 1/13! to 1/2!
_LOG2E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_TAYLOR = [1 / float(np.prod(np.arange(1, n + 1))) for n in range(13, 1, -1)]


def exp_of_nonpositive(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(x) for x <= 0 by + - * / alone; see csrc/ops/softplus.h."""
    within = np.where(x >= -746, x, 0.0)
    k = np.trunc(within * _LOG2E - 0.5)
    r = (within - k * _LN2_HIGH) - k * _LN2_LOW
    p = np.full_like(r, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        p = p * r + coefficient
    power = np.ldexp(1 + (r + r * r * p), k.astype(np.int32))
    return np.where(x >= -746, power, np.where(x < 0, 0.0, x))


def softplus_reference(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 + exp(x)) by + - * / alone; see csrc/ops/softplus.h."""
    with np.errstate(all="ignore"):
        e = exp_of_nonpositive(np.where(x < 0, x, -x))
        s = e / (2 + e)
        square = s * s
        p = np.full_like(s, 1 / 35)
        for n in range(33, 1, -2):
            p = p * square + 1 / n
        log1p = 2 * s + 2 * s * square * p
        return np.where(np.isnan(x), x, np.where(x < -40, e, np.where(x < 0, log1p, x + log1p)))


def _block_sums(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., n) -> (..., blocks)."""
    n = d.shape[-1]
    padded = np.zeros((*d.shape[:-1], -(-n // BLOCK) * BLOCK), np.float32)
    padded[..., :n] = d
    rows = padded.reshape(*d.shape[:-1], -1, BLOCK // LANES, LANES)
    lanes = np.zeros((*rows.shape[:-2], LANES), np.float32)
    for row in range(BLOCK // LANES):
        lanes = lanes + rows[..., row, :]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def _mean(d: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of (N, planes, n) over all but the first axis."""
    sums = _block_sums(d).reshape(len(d), -1).astype(np.float64)
    means: NDArray[np.float64] = np.cumsum(sums, axis=1)[:, -1] / d[0].size  # a plain sum would go by pairs
    return means


def _difference(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    d: NDArray[np.float32] = np.abs(a.astype(np.float32) - b.astype(np.float32))
    return d


def score_reference(
    rule: str,
    tensors: Mapping[str, NDArray[Any]],
    *,
    weight: float = 0.0,
    views: int = 1,
    reduce: Reduce = "max",
) -> NDArray[np.float32]:
    """Scores (images / views) float32 of the tensors that ``Scorer`` takes."""
    with np.errstate(all="ignore"):
        if rule == "logit":
            scores = -tensors["logit"].astype(np.float32)
        else:
            x = tensors["x"]
            d = _difference(x, tensors["x_hat"])
            value = _mean(d.reshape(*x.shape[:2], -1))
            if rule == "residual_feature":
                other = _mean(_difference(tensors["f"], tensors["f_hat"]).reshape(len(x), 1, -1))
                value = (1 - weight) * value + weight * other
            elif rule == "residual_logit":
                other = softplus_reference(-tensors["logit"].astype(np.float64))
                value = (1 - weight) * value + weight * other
            scores = value.astype(np.float32)
        if views == 1:
            return scores
        of_frames = scores.reshape(-1, views)
        if reduce == "max":
            reduced: NDArray[np.float32] = np.max(of_frames, axis=1)
        else:
            reduced = (np.cumsum(of_frames, axis=1, dtype=np.float64)[:, -1] / views).astype(np.float32)
        return reduced


def map_reference(x: NDArray[Any], x_hat: NDArray[Any]) -> NDArray[np.float32]:
    """Residual maps (N, H, W): the mean over the channels of ``|x - x_hat|``."""
    with np.errstate(all="ignore"):
        d = _difference(x, x_hat)
        total = np.zeros_like(d[:, 0])
        for channel in range(d.shape[1]):
            total = total + d[:, channel]
        mean: NDArray[np.float32] = total / np.float32(d.shape[1])
        return mean
