"""From a camera frame to the model's input: crop, resize, normalise, append channel maximum and mean.

The operation is defined on integers, so that training, export and the line compute the same bits: the resize
is what Pillow 13 computes for ``crop(region).resize(size, BILINEAR)`` on 8-bit images, whichever Pillow is
installed, and each output value is read from a table indexed by the resized integers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from kizu import _core
from kizu.errors import FrameError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Color = Literal["rgb", "mono"]
FrameOrder = Literal["rgb", "bgr"]
MAX_FRAME_SIDE = 32768
_PRECISION_BITS = 22


@dataclass(frozen=True)
class PrepareSpec:
    """What the model expects of a frame and how a frame becomes its input.

    Attributes:
        size: (height, width) of the model's input in pixels.
        color: "rgb" (three channels) or "mono" (one).
        pool: append the maximum and the mean over the channels ("rgb" only: 3 channels become 5).
        crop: region (left, top, right, bottom) of the frame in pixels, or None for the whole frame.
        mean, std: normalisation ``(p - mean) / std`` of pixels p in [0, 1], one value for each of the frame's own
            channels; the default maps to [-1, 1]. The pooled channels use the average of the values.
    """

    size: tuple[int, int]
    color: Color = "rgb"
    pool: bool = True
    crop: tuple[int, int, int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.color not in get_args(Color):
            raise FrameError(f"color is {self.color!r}, but must be one of {', '.join(get_args(Color))}")
        if len(self.size) != 2 or not all(1 <= side <= MAX_FRAME_SIDE for side in self.size):
            raise FrameError(f"size is {self.size}, but must be (height, width), each from 1 to {MAX_FRAME_SIDE}")
        if self.color == "mono":  # maximum and mean of one channel say nothing new
            object.__setattr__(self, "pool", False)
        for name in ("mean", "std"):
            values = getattr(self, name) or (0.5,) * self.own_channels
            if len(values) != self.own_channels or not np.isfinite(values).all():
                raise FrameError(
                    f"{name} has {len(values)} values {values}, but a {self.color} frame needs "
                    f"{self.own_channels} finite ones"
                )
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise FrameError(f"std is {self.std}, but each value must be greater than 0")
        if self.crop is not None:
            left, top, right, bottom = self.crop
            if not (0 <= left < right and 0 <= top < bottom):
                raise FrameError(
                    f"crop is {self.crop}, but must be (left, top, right, bottom) with 0 <= left < right and "
                    "0 <= top < bottom"
                )

    @property
    def own_channels(self) -> int:
        """Channels of the frame itself: 3 or 1."""
        return 3 if self.color == "rgb" else 1

    @property
    def channels(self) -> int:
        """Channels of the model's input: 5 for pooled RGB, else the frame's own."""
        return self.own_channels + 2 * self.pool

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """The mean subtracted from each channel of the model's input, in units of a pixel in [0, 1]."""
        return self.mean + (float(np.mean(self.mean)),) * (self.channels - self.own_channels)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """The divisor of each channel of the model's input, in units of a pixel in [0, 1]."""
        return self.std + (float(np.mean(self.std)),) * (self.channels - self.own_channels)

    @property
    def tables(self) -> list[NDArray[np.float32]]:
        """The value of each resized integer, a table a channel: 256 entries, 766 for the mean's sum of three."""
        highest = [255] * self.channels
        if self.pool:
            highest[-1] = 255 * self.own_channels
        return [
            ((np.arange(top + 1) / top - mean) / std).astype(np.float32)
            for top, mean, std in zip(highest, self.channel_mean, self.channel_std, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return {
            "size": list(self.size),
            "color": self.color,
            "pool": self.pool,
            "crop": None if self.crop is None else list(self.crop),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrepareSpec:
        """The spec that ``as_dict`` wrote; raises TypeError, ValueError or KeyError for anything else."""
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"prepare has unknown fields {', '.join(sorted(unknown))}: it is from another version")
        if not isinstance(values["pool"], bool):
            raise TypeError(f"pool is {values['pool']!r}, but must be true or false")
        height, width = _numbers(values["size"], int)
        crop = None
        if values["crop"] is not None:
            left, top, right, bottom = _numbers(values["crop"], int)
            crop = (left, top, right, bottom)
        return cls(
            size=(height, width),
            color=values["color"],
            pool=values["pool"],
            crop=crop,
            mean=tuple(_numbers(values["mean"], int, float)),
            std=tuple(_numbers(values["std"], int, float)),
        )


def _numbers(values: Any, *kinds: type) -> list[Any]:
    if not isinstance(values, list) or any(type(value) not in kinds for value in values):
        raise TypeError(f"{values!r} is not a list of {' or '.join(kind.__name__ for kind in kinds)}")
    return values


class Preparer:
    """``prepare`` bound to one spec and thread count, with its weights and work space kept between frames.

    The first frame of a geometry (height, width, strides do not matter) computes the weights; from then on a call
    allocates nothing. One call at a time: an instance is not shared between threads without a lock.

    Args:
        spec: what to compute.
        threads: how many threads share the work of one frame (1: the caller's own, none is spawned).
    """

    def __init__(self, spec: PrepareSpec, *, threads: int = 1) -> None:
        self.spec = spec
        self._op = _core.Prepare(
            height=spec.size[0],
            width=spec.size[1],
            channels=spec.own_channels,
            crop=spec.crop,
            tables=spec.tables,
            threads=threads,
        )

    def check(self, frame: object) -> None:
        """Raise FrameError unless ``frame`` is what the model expects."""
        spec = self.spec
        shapes = "(height, width, 3)" if spec.color == "rgb" else "(height, width) or (height, width, 1)"
        expected = f"the model expects a uint8 {spec.color} frame of shape {shapes}"
        if not isinstance(frame, np.ndarray):
            raise FrameError(f"the frame is a {type(frame).__name__}, but {expected} as a NumPy array")
        if frame.dtype != np.uint8:
            raise FrameError(f"the frame's dtype is {frame.dtype}, but {expected}")
        own = spec.own_channels
        if not (frame.ndim == 3 and frame.shape[2] == own) and not (frame.ndim == 2 and own == 1):
            raise FrameError(f"the frame's shape is {frame.shape}, but {expected}")
        height, width = frame.shape[:2]
        if not height or not width:
            raise FrameError(f"the frame's shape is {frame.shape}: it has no pixels; {expected}")
        if max(height, width) > MAX_FRAME_SIDE:
            raise FrameError(f"the frame's shape is {frame.shape}, but a side may have {MAX_FRAME_SIDE} pixels at most")
        if spec.crop is not None and (spec.crop[2] > width or spec.crop[3] > height):
            raise FrameError(
                f"the frame is {width} pixels wide and {height} high, but the model crops the region "
                f"(left, top, right, bottom) = {spec.crop} out of it"
            )

    def __call__(self, frame: NDArray[np.uint8], out: NDArray[np.float32], *, order: FrameOrder = "rgb") -> None:
        """Write the model's input of one frame.

        Args:
            frame: uint8, (height, width, 3) or for a mono model (height, width[, 1]); any strides.
            out: float32, (channels, height, width) of the spec, C-contiguous; written in place.
            order: channel order of an RGB model's frame; "bgr" is what OpenCV and many cameras deliver.

        Raises:
            FrameError: the frame is not what the model expects.
        """
        try:
            self._op.run(frame, out, order == "bgr")
        except (TypeError, ValueError):
            self.check(frame)  # say it in the words of the person on the line
            raise

    def resize(self, frame: NDArray[np.uint8], out: NDArray[np.uint8], *, order: FrameOrder = "rgb") -> None:
        """Write the resized integers before normalisation: uint8 (own channels, height, width); see ``__call__``."""
        try:
            self._op.resize(frame, out, order == "bgr")
        except (TypeError, ValueError):
            self.check(frame)
            raise


def prepare(frame: NDArray[np.uint8], spec: PrepareSpec, *, order: FrameOrder = "rgb") -> NDArray[np.float32]:
    """Return the model's input (channels, height, width) float32 of one uint8 frame; see ``Preparer``."""
    out = np.empty((spec.channels, *spec.size), np.float32)
    Preparer(spec)(frame, out, order=order)
    return out


def frame_digest(frame: NDArray[np.uint8]) -> str:
    """A short digest of a frame's shape and pixels: 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()[:16]


def resize_weights(n_in: int, n_out: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Pillow's BILINEAR weights along one axis: first input index and 22-bit fixed-point weights of each output."""
    scale = n_in / n_out
    support = max(scale, 1.0)  # the triangle's support, widened by the reduction
    first, weights = [], []
    for i in range(n_out):
        centre = (i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), n_in)
        taps = np.maximum(1.0 - np.abs((np.arange(low, high) - centre + 0.5) * (1.0 / support)), 0.0)
        total = 0.0
        for tap in taps.tolist():
            total += tap
        first.append(low)
        weights.append(((taps / total) * (1 << _PRECISION_BITS) + 0.5).astype(np.int64))
    return np.array(first, np.int64), weights


def _resize_axis(image: NDArray[np.uint8], n_out: int, axis: int) -> NDArray[np.uint8]:
    source = np.moveaxis(image, axis, 0).astype(np.int64)
    out = np.empty((n_out, *source.shape[1:]), np.uint8)
    for i, (low, taps) in enumerate(zip(*resize_weights(source.shape[0], n_out), strict=True)):
        total = np.tensordot(taps, source[low : low + len(taps)], 1) + (1 << (_PRECISION_BITS - 1))
        out[i] = np.clip(total >> _PRECISION_BITS, 0, 255)
    return np.moveaxis(out, 0, axis)


def resize_reference(frame: NDArray[np.uint8], spec: PrepareSpec, *, order: FrameOrder = "rgb") -> NDArray[np.uint8]:
    """NumPy twin of the crop and resize: uint8 (own channels, height, width), channels in RGB order."""
    image = frame.reshape(*frame.shape[:2], spec.own_channels)[:, :, :: -1 if order == "bgr" else 1]
    if spec.crop is not None:
        left, top, right, bottom = spec.crop
        image = image[top:bottom, left:right]
    # Each pass rounds to uint8, so their order is part of the definition: columns first, unless the height
    # shrinks and by more than twice as many pixels as the width.
    less_rows, less_columns = image.shape[0] - spec.size[0], image.shape[1] - spec.size[1]
    for axis in (0, 1) if less_rows > max(0, 2 * less_columns) else (1, 0):
        image = _resize_axis(image, spec.size[axis], axis)
    return np.moveaxis(image, 2, 0)


def prepare_reference(frame: NDArray[np.uint8], spec: PrepareSpec, *, order: FrameOrder = "rgb") -> NDArray[np.float32]:
    """NumPy twin of ``prepare``: the same bits, slowly."""
    planes = list(resize_reference(frame, spec, order=order))
    if spec.pool:
        planes += [np.max(planes, axis=0), np.sum(planes, axis=0, dtype=np.int64)]
    return np.stack([table[plane] for table, plane in zip(spec.tables, planes, strict=True)])
