"""NumPy twins of ``prepare``: the same bits, slowly. They are the definition, for tests and for readers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kizu.pixel_format import PixelFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    from kizu.prepare import Box, Frames, PrepareSpec


def unpack_reference(frame: NDArray[np.uint8], pixel_format: PixelFormat) -> NDArray[np.uint16]:
    """Samples (height, width), uint16, of a packed frame (height, bytes of a row)."""
    height, width = pixel_format.size(frame.shape)
    if pixel_format.packing == "mono12packed":
        low, middle, high = (frame[:, k::3].astype(np.uint16) for k in range(3))
        out = np.empty((height, width), np.uint16)
        out[:, 0::2] = low[:, : middle.shape[1]] << 4 | middle & 15
        out[:, 1::2] = high << 4 | middle[:, : high.shape[1]] >> 4
        return out
    bits = np.unpackbits(frame, axis=1, bitorder="little")[:, : width * pixel_format.bit_depth]
    places = 1 << np.arange(pixel_format.bit_depth)
    samples: NDArray[np.int64] = bits.reshape(height, width, -1) @ places
    return samples.astype(np.uint16)


def demosaic_reference(mosaic: NDArray[Any], pattern: str) -> NDArray[Any]:
    """Bilinear colours (height, width, 3) of a Bayer mosaic (height, width) whose top left 2x2 are ``pattern``."""
    height, width = mosaic.shape
    padded = np.pad(mosaic.astype(np.int64), 1, mode="reflect")
    at = {(y, x): padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y in (-1, 0, 1) for x in (-1, 0, 1)}
    sides, ends = (at[0, -1] + at[0, 1] + 1) >> 1, (at[-1, 0] + at[1, 0] + 1) >> 1
    cross = (at[0, -1] + at[0, 1] + at[-1, 0] + at[1, 0] + 2) >> 2
    corners = (at[-1, -1] + at[-1, 1] + at[1, -1] + at[1, 1] + 2) >> 2
    out = np.empty((height, width, 3), mosaic.dtype)
    for y in (0, 1):
        for x in (0, 1):
            color = "rgb".index(pattern[2 * y + x])
            if color == 1:
                beside = "rgb".index(pattern[2 * y + 1 - x])  # the colour of the neighbours in this row
                values = {1: at[0, 0], beside: sides, 2 - beside: ends}
            else:
                values = {color: at[0, 0], 1: cross, 2 - color: corners}
            for c, plane in values.items():
                out[y::2, x::2, c] = plane[y::2, x::2]
    return out


def decode_reference(frame: NDArray[Any], pixel_format: PixelFormat) -> NDArray[Any]:
    """A frame's pixels (height, width, channels) in the order red, green, blue, uint8 or uint16."""
    if pixel_format.packing:
        frame = unpack_reference(frame.astype(np.uint8), pixel_format)
    if pixel_format.bayer:
        return demosaic_reference(frame.reshape(frame.shape[:2]), pixel_format.bayer)
    frame = frame.reshape(*frame.shape[:2], pixel_format.channels)
    return frame[:, :, ::-1] if pixel_format.bgr else frame


def resize_weights(n_in: int, n_out: int, bits: int = 22) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Pillow's BILINEAR weights along one axis: first input index and fixed-point weights of each output.

    With 22 bits they are Pillow's own, for 8-bit samples. With 16, for deeper ones, their sum is made 65536 by
    correcting the largest, the first of equals.
    """
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
        rounded = ((taps / total) * (1 << bits) + 0.5).astype(np.int64)
        if bits == 16:
            rounded[np.argmax(rounded)] += 65536 - rounded.sum()
        first.append(low)
        weights.append(rounded)
    return np.array(first, np.int64), weights


def _resize_axis(image: NDArray[Any], n_out: int, axis: int) -> NDArray[Any]:
    bits = 22 if image.dtype == np.uint8 else 16
    source = np.moveaxis(image, axis, 0).astype(np.int64)
    out = np.empty((n_out, *source.shape[1:]), image.dtype)
    for i, (low, taps) in enumerate(zip(*resize_weights(source.shape[0], n_out, bits), strict=True)):
        total = np.tensordot(taps, source[low : low + len(taps)], 1) + (1 << (bits - 1))
        out[i] = np.clip(total >> bits, 0, np.iinfo(image.dtype).max)
    return np.moveaxis(out, 0, axis)


def _resize_region(image: NDArray[Any], spec: PrepareSpec) -> NDArray[Any]:
    size, kept = spec.resize or spec.size, spec.size
    # Each pass rounds to integers, so their order is part of the definition: columns first, unless the height
    # shrinks and by more than twice as many pixels as the width.
    less_rows, less_columns = image.shape[0] - size[0], image.shape[1] - size[1]
    for axis in (0, 1) if less_rows > max(0, 2 * less_columns) else (1, 0):
        image = _resize_axis(image, size[axis], axis)
    top, left = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    return np.moveaxis(image[top : top + kept[0], left : left + kept[1]], 2, 0)


def rotate_reference(planes: NDArray[Any], index: int, count: int) -> NDArray[Any]:
    """Planes (channels, height, width) turned counter-clockwise about the centre by index / count of a turn.

    An output pixel takes the bilinear mean of the four pixels about its source, in 1/256 pixels; 0 outside.
    """
    height, width = planes.shape[1:]
    angle = 2.0 * math.pi * index / count
    cos, sin = math.floor(math.cos(angle) * 65536 + 0.5), math.floor(math.sin(angle) * 65536 + 0.5)
    dy, dx = (2 * np.arange(height)[:, None] - (height - 1)), (2 * np.arange(width)[None, :] - (width - 1))
    sx = cos * dx - sin * dy + (width - 1) * 65536  # in 2^-17 pixels
    sy = sin * dx + cos * dy + (height - 1) * 65536
    inside = (sx >= -65536) & (sx < (2 * width - 1) * 65536) & (sy >= -65536) & (sy < (2 * height - 1) * 65536)
    qx, qy = (sx + 256) >> 9, (sy + 256) >> 9
    fx, fy = qx & 255, qy & 255
    xs = [np.clip((qx >> 8) + k, 0, width - 1) for k in (0, 1)]
    ys = [np.clip((qy >> 8) + k, 0, height - 1) for k in (0, 1)]
    source = planes.astype(np.int64)
    above = (256 - fx) * source[:, ys[0], xs[0]] + fx * source[:, ys[0], xs[1]]
    below = (256 - fx) * source[:, ys[1], xs[0]] + fx * source[:, ys[1], xs[1]]
    mean = ((256 - fy) * above + fy * below + (1 << 15)) >> 16
    return np.where(inside, mean, 0).astype(planes.dtype)


def _listed(frames: Frames, pixel_format: PixelFormat) -> tuple[list[NDArray[Any]], bool]:
    """The frames one by one, and whether there was one that is no batch."""
    if isinstance(frames, np.ndarray) and pixel_format.is_shape(frames.shape):
        return [frames], True
    return list(frames), False


def resize_reference(
    frames: Frames, spec: PrepareSpec, *, pixel_format: str | None = None, boxes: Sequence[Box] | None = None
) -> NDArray[Any]:
    """NumPy twin of ``Preparer.resize``."""
    found = spec.pixel_format(pixel_format)
    listed, single = _listed(frames, found)
    planes = []
    for frame in listed:
        image = decode_reference(frame, found)
        regions = spec.crop_and_cut(*image.shape[:2]) if boxes is None else boxes
        planes += [_resize_region(image[top:bottom, left:right], spec) for left, top, right, bottom in regions]
    if single and len(planes) == 1:
        return planes[0]
    return np.array(planes, spec.dtype).reshape(len(planes), spec.own_channels, *spec.size)


def prepare_reference(
    frames: Frames,
    spec: PrepareSpec,
    *,
    pixel_format: str | None = None,
    boxes: Sequence[Box] | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """NumPy twin of ``prepare``."""
    resized = resize_reference(frames, spec, pixel_format=pixel_format, boxes=boxes)
    single = resized.ndim == 3 and spec.rotations == 1
    images = [
        rotate_reference(planes, r, spec.rotations)
        for planes in resized.reshape(-1, spec.own_channels, *spec.size)
        for r in range(spec.rotations)
    ]
    out = np.empty((len(images), spec.channels, *spec.size), dtype)
    for planes, row in zip(images, out, strict=True):
        channels = list(planes)
        if spec.pool:
            channels += [np.max(planes, axis=0), np.sum(planes, axis=0, dtype=np.int64)]
        for c, values in enumerate(channels):
            if spec.bit_depth == 8:
                row[c] = spec.tables[c][values]
            else:
                scale, offset = spec.affine[c]
                row[c] = values.astype(np.float32) * scale + offset
    return out[0] if single else out
