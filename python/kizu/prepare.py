"""From a camera frame to the model's inputs: decode, crop, resize, rotate, normalise, append channel maximum and mean.

The operation is defined on integers, so that training, export and the line compute the same bits: the resize
of 8-bit frames is what Pillow 13 computes for ``crop(region).resize(size, BILINEAR)``, whichever Pillow is
installed, and each output value is read from a table indexed by the resized integers. ``prepare_reference`` has
the definitions in NumPy.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from kizu import _core
from kizu.errors import FrameError
from kizu.pixel_format import PIXEL_FORMATS, PixelFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

Color = Literal["rgb", "mono"]
Reduce = Literal["max", "mean"]
Device = Literal["cpu", "cuda"]
BitDepth = Literal[8, 10, 12, 14, 16]
Frame: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16]"
Frames: TypeAlias = "Frame | Sequence[Frame]"
AnyFrame: TypeAlias = "Frame | DeviceFrame"
Box: TypeAlias = tuple[int, int, int, int]
MAX_FRAME_SIDE = 32768
MAX_VIEWS = 4096
MAX_ROTATIONS = 3600


@dataclass(frozen=True)
class Tiles:
    """A region cut into rows x columns tiles of one size, which cover it and overlap by at least ``overlap`` pixels.

    Over n pixels r tiles have ``t = ceil((n + (r - 1) overlap) / r)`` pixels each and begin at
    ``floor(i (n - t) / (r - 1))``.
    """

    rows: int
    columns: int
    overlap: int = 0

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in (self.rows, self.columns, self.overlap))
        if not whole or min(self.rows, self.columns) < 1 or not 0 <= self.overlap < MAX_FRAME_SIDE:
            raise FrameError(
                f"tiles are {self}, but must be whole numbers: rows and columns from 1, overlap from 0 to "
                f"{MAX_FRAME_SIDE - 1}"
            )
        if self.rows * self.columns > MAX_VIEWS:
            raise FrameError(f"tiles are {self}, but a frame may be cut into {MAX_VIEWS} at most")

    def along(self, n: int, count: int) -> list[tuple[int, int]]:
        """(begin, size) of ``count`` tiles over n pixels; raises FrameError if they would not exceed the overlap."""
        if count == 1:
            return [(0, n)]
        size = -(-(n + (count - 1) * self.overlap) // count)
        if self.overlap >= size or count > n:
            raise FrameError(f"tiles that overlap by {self.overlap} pixels do not fit {count} times into {n}")
        return [(i * (n - size) // (count - 1), size) for i in range(count)]


@dataclass(frozen=True)
class PrepareSpec:
    """What the model expects of a frame and how a frame becomes its inputs.

    Attributes:
        size: (height, width) of the model's input in pixels.
        color: "rgb" (three channels) or "mono" (one).
        bit_depth: bits of the samples that the model was trained on; frames of another depth are refused.
        pool: append the maximum and the mean over the channels ("rgb" only: 3 channels become 5).
        crop: region (left, top, right, bottom) of the frame in pixels, or None for the whole frame.
        tiles: cut the region into these; each becomes an input of its own.
        boxes: regions come with every call instead, e.g. from an object detector.
        resize: (height, width) that a region is resized to, of which the centre ``size`` is kept; None: ``size``.
        rotations: each region is also turned by r / rotations of a full turn, counter-clockwise, r = 0, 1, ...
        reduce: how the scores of a frame's inputs become one: their "max" or "mean".
        mean, std: normalisation ``(p - mean) / std`` of pixels p in [0, 1], one value for each of the frame's own
            channels; the default maps to [-1, 1]. The pooled channels use the average of the values.
    """

    size: tuple[int, int]
    color: Color = "rgb"
    bit_depth: BitDepth = 8
    pool: bool = True
    crop: Box | None = None
    tiles: Tiles | None = None
    boxes: bool = False
    resize: tuple[int, int] | None = None
    rotations: int = 1
    reduce: Reduce = "max"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in (("color", Color), ("bit_depth", BitDepth), ("reduce", Reduce)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(map(str, get_args(kind)))
                raise FrameError(f"{name} is {getattr(self, name)!r}, but must be one of {known}")
        for name in ("size", "resize"):
            sides = getattr(self, name)
            if sides is not None and (len(sides) != 2 or not all(_whole(side, 1, MAX_FRAME_SIDE) for side in sides)):
                raise FrameError(f"{name} is {sides}, but must be (height, width), each from 1 to {MAX_FRAME_SIDE}")
        if self.resize is not None and not all(r >= s for r, s in zip(self.resize, self.size, strict=True)):
            raise FrameError(f"resize is {self.resize}, but must be at least the size {self.size} cut from it")
        if not _whole(self.rotations, 1, MAX_ROTATIONS):
            raise FrameError(f"rotations is {self.rotations}, but must be a whole number from 1 to {MAX_ROTATIONS}")
        if self.boxes and not (self.crop is None and self.tiles is None):
            raise FrameError("boxes come with every call in place of crop and tiles: leave these out")
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
        if min(self.std) < 1e-6:
            raise FrameError(f"std is {self.std}, but each value must be at least 1e-6")
        if self.crop is not None:
            left, top, right, bottom = self.crop
            whole = all(_whole(side, 0, MAX_FRAME_SIDE) for side in self.crop)
            if not (whole and left < right and top < bottom):
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
    def regions(self) -> int | None:
        """Regions of a frame, or None where they come as boxes."""
        if self.boxes:
            return None
        return 1 if self.tiles is None else self.tiles.rows * self.tiles.columns

    @property
    def views(self) -> int | None:
        """Model inputs made of one frame, or None where that depends on the boxes."""
        return None if self.regions is None else self.regions * self.rotations

    @property
    def top(self) -> int:
        """The largest value of a sample: white."""
        return int(2**self.bit_depth - 1)

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Of the resized integers."""
        return np.dtype(np.uint8) if self.bit_depth == 8 else np.dtype(np.uint16)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """The mean subtracted from each channel of the model's input, in units of a pixel in [0, 1]."""
        return self.mean + (float(np.mean(self.mean)),) * (self.channels - self.own_channels)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """The divisor of each channel of the model's input, in units of a pixel in [0, 1]."""
        return self.std + (float(np.mean(self.std)),) * (self.channels - self.own_channels)

    @property
    def channel_top(self) -> tuple[int, ...]:
        """White in each channel's integers; those of the mean are the channels' sum."""
        return (self.top,) * (self.channels - self.pool) + (self.top * self.own_channels,) * self.pool

    @property
    def tables(self) -> list[NDArray[np.float32]]:
        """8-bit samples: the value of each integer, a table a channel: 256 entries, 766 for the sum of three."""
        if self.bit_depth != 8:
            return []
        return [
            ((np.arange(top + 1) / top - mean) / std).astype(np.float32)
            for top, mean, std in zip(self.channel_top, self.channel_mean, self.channel_std, strict=True)
        ]

    @property
    def lines(self) -> list[tuple[float, float]]:
        """8-bit samples: scale and offset, in float64, of the line that each table's entries lie on."""
        if self.bit_depth != 8:
            return []
        constants = zip(self.channel_top, self.channel_mean, self.channel_std, strict=True)
        return [(1 / (top * std), -mean / std) for top, mean, std in constants]

    @property
    def affine(self) -> list[tuple[np.float32, np.float32]]:
        """Deeper samples: scale and offset of each channel's integers, whose value is ``v * scale + offset``."""
        if self.bit_depth == 8:
            return []
        return [
            (np.float32(1 / (top * std)), np.float32(-mean / std))
            for top, mean, std in zip(self.channel_top, self.channel_mean, self.channel_std, strict=True)
        ]

    def pixel_format(self, name: str | None = None) -> PixelFormat:
        """The format of this name, or the model's own; raises FrameError unless its frames fit the model."""
        own = f"{'RGB' if self.color == 'rgb' else 'Mono'}{self.bit_depth}"
        found = PixelFormat.parse(own if name is None else name)
        fitting = {n: f for n, f in PIXEL_FORMATS.items() if self._fits(f)}
        if found.name not in fitting:
            raise FrameError(
                f"pixel_format is {found.name}, but the model was trained on {self.bit_depth}-bit {self.color} frames; "
                f"{', '.join(fitting)} fit it"
            )
        return found

    def _fits(self, found: PixelFormat) -> bool:
        return found.channels == self.own_channels and found.bit_depth == self.bit_depth

    def crop_and_cut(self, height: int, width: int) -> list[Box]:
        """Regions (left, top, right, bottom) of a frame of this size: the crop or its tiles, row by row.

        Raises FrameError if tiles do not fit.
        """
        left, top, right, bottom = self.crop or (0, 0, width, height)
        tiles = self.tiles or Tiles(1, 1)
        return [
            (left + x, top + y, left + x + columns, top + y + rows)
            for y, rows in tiles.along(bottom - top, tiles.rows)
            for x, columns in tiles.along(right - left, tiles.columns)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        tiles = None if self.tiles is None else [self.tiles.rows, self.tiles.columns, self.tiles.overlap]
        return {
            "size": list(self.size),
            "color": self.color,
            "bit_depth": self.bit_depth,
            "pool": self.pool,
            "crop": None if self.crop is None else list(self.crop),
            "tiles": tiles,
            "boxes": self.boxes,
            "resize": None if self.resize is None else list(self.resize),
            "rotations": self.rotations,
            "reduce": self.reduce,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrepareSpec:
        """The spec that ``as_dict`` wrote; raises TypeError, ValueError or KeyError for anything else."""
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"prepare has unknown fields {', '.join(sorted(unknown))}: it is from another version")
        for name, kind in (("pool", bool), ("boxes", bool), ("bit_depth", int), ("rotations", int)):
            if type(values[name]) is not kind:
                raise TypeError(f"{name} is {values[name]!r}, but must be {_JSON[kind]}")
        height, width = _numbers(values["size"], int)
        crop, resize, tiles = None, None, None
        if values["crop"] is not None:
            left, top, right, bottom = _numbers(values["crop"], int)
            crop = (left, top, right, bottom)
        if values["resize"] is not None:
            rows, columns = _numbers(values["resize"], int)
            resize = (rows, columns)
        if values["tiles"] is not None:
            rows, columns, overlap = _numbers(values["tiles"], int)
            tiles = Tiles(rows, columns, overlap)
        return cls(
            size=(height, width),
            color=values["color"],
            bit_depth=values["bit_depth"],
            pool=values["pool"],
            crop=crop,
            tiles=tiles,
            boxes=values["boxes"],
            resize=resize,
            rotations=values["rotations"],
            reduce=values["reduce"],
            mean=tuple(_numbers(values["mean"], int, float)),
            std=tuple(_numbers(values["std"], int, float)),
        )


_JSON = {bool: "true or false", int: "a whole number"}


def _numbers(values: Any, *kinds: type) -> list[Any]:
    if not isinstance(values, list) or any(type(value) not in kinds for value in values):
        raise TypeError(f"{values!r} is not a list of {' or '.join(kind.__name__ for kind in kinds)}")
    return values


class Preparer:
    """``prepare`` bound to one spec, pixel format and thread count; it keeps weights and work space between frames.

    The first frames of a size compute the weights; from then on a call allocates nothing where the frames are used
    as they lie in memory. One call at a time: others wait for their turn.

    Args:
        spec: what to compute.
        pixel_format: how frames come, a name of GenICam's such as "BGR8" or "BayerRG12"; by default the model's own,
            e.g. "RGB8" or "Mono8". Its colour and depth must be the spec's.
        threads: how many threads share the work (1: the caller's own, none is spawned).
        device: "cpu", or "cuda" to compute the same bits on a CUDA device; frames are copied there and inputs back.

    Raises:
        ValueError: there is no such device, or the number of threads is out of range.
    """

    def __init__(
        self, spec: PrepareSpec, *, pixel_format: str | None = None, threads: int = 1, device: Device = "cpu"
    ) -> None:
        self.spec = spec
        self.pixel_format = found = spec.pixel_format(pixel_format)
        self._op = _core.Prepare(native_spec(spec, found), threads=threads, device=device)

    def __call__(
        self, frames: Frames, out: NDArray[np.float32] | NDArray[np.float16], *, boxes: Sequence[Box] | None = None
    ) -> None:
        """Write the model's inputs of one frame or of several of one size.

        Args:
            frames: one frame, (height, width, 3) for colour, (height, width[, 1]) for mono and Bayer, any strides;
                uint8, or uint16 for formats of more than 8 bits. Packed formats: uint8 (height, bytes of a row). Or
                a batch: an array of these with one more axis in front, or a sequence of frames laid out alike.
            out: float32 or float16, (channels, height, width) for one frame that makes one input, else
                (frames * views, channels, height, width): for each frame its regions, for each of these its
                rotations. C-contiguous; written in place.
            boxes: (left, top, right, bottom) in pixels of every region, if the spec has boxes.

        Raises:
            FrameError: a frame or box is not what the model expects.
        """
        self._run(self._op.run, frames, out, boxes)

    def resize(self, frames: Frames, out: Frame, *, boxes: Sequence[Box] | None = None) -> None:
        """Write the resized integers before rotation and normalisation.

        uint8, or uint16 for deeper samples: (own channels, height, width) for one frame with one region, else
        (frames * regions, own channels, height, width); see ``__call__``.
        """
        self._run(self._op.resize, frames, out, boxes)

    def _run(self, op: Any, frames: Any, out: Any, boxes: Sequence[Box] | None) -> None:
        if (boxes is not None) != self.spec.boxes:
            raise FrameError(
                "the model's regions come as boxes with every call: pass boxes=[(left, top, right, bottom), ...]"
                if self.spec.boxes
                else "boxes were given, but the model makes its regions itself (PrepareSpec.boxes is False)"
            )
        try:
            op(frames, out, () if boxes is None else boxes)
        except (TypeError, ValueError):
            for frame in self._listed(frames, out):  # say it in the words of the person on the line
                self.check(frame, boxes=boxes)
            raise

    def _listed(self, frames: Any, out: Any) -> Sequence[Any]:
        """The frames one by one; an output for one input takes one frame."""
        if isinstance(frames, np.ndarray):
            batch = np.ndim(out) != 3 and frames.ndim > 1 and not self.pixel_format.is_shape(frames.shape)
            return list(frames[:1]) if batch else [frames]
        return frames if isinstance(frames, (list, tuple)) else [frames]

    def check(self, frame: object, *, boxes: Sequence[Box] | None = None) -> None:
        """Raise FrameError unless ``frame`` is what the model expects, and the boxes lie in it."""
        check_frame(frame, self.spec, self.pixel_format, boxes=boxes)


class DeviceFrame(Protocol):
    """A frame in a CUDA device's memory, of any library: it has ``__dlpack__`` or ``__cuda_array_interface__``."""

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        ...


def native_spec(spec: PrepareSpec, found: PixelFormat) -> dict[str, Any]:
    """The spec and the format of its frames as the native operations take them."""
    tiles = spec.tiles or Tiles(1, 1)
    return {
        "channels": found.channels,
        "bit_depth": found.bit_depth,
        "bgr": found.bgr,
        "bayer": found.bayer,
        "packing": found.packing,
        "size": spec.size,
        "resize": spec.resize or spec.size,
        "crop": spec.crop,
        "tiles": (tiles.rows, tiles.columns, tiles.overlap),
        "boxes": spec.boxes,
        "rotations": spec.rotations,
        "pool": spec.pool,
        "tables": spec.tables,
        "lines": spec.lines,
        "affine": spec.affine,
    }


def check_frame(frame: object, spec: PrepareSpec, expects: PixelFormat, *, boxes: Sequence[Box] | None = None) -> None:
    """Raise FrameError unless ``frame`` is what the model expects in this format, and the boxes lie in it."""
    expected = f"the model expects a {expects.dtype} {spec.color} frame of shape {expects.shapes}"
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"the frame is a {type(frame).__name__}, but {expected} as a NumPy array")
    if frame.dtype != expects.dtype:
        order = " in the other byte order" if frame.dtype.newbyteorder("=") == expects.dtype else ""
        raise FrameError(f"the frame's dtype is {frame.dtype}{order}, but {expected}")
    if not expects.is_shape(frame.shape):
        raise FrameError(f"the frame's shape is {frame.shape}, but {expected}")
    height, width = expects.size(frame.shape)
    if not height or not width:
        raise FrameError(f"the frame's shape is {frame.shape}: it has no pixels; {expected}")
    if max(height, width) > MAX_FRAME_SIDE:
        raise FrameError(f"the frame's shape is {frame.shape}, but a side may have {MAX_FRAME_SIDE} pixels at most")
    if expects.packing and frame.shape[1] > 1 and frame.strides[1] != 1:
        raise FrameError(f"the frame's strides are {frame.strides}, but the bytes of a packed row must be adjacent")
    if expects.bayer and min(height, width) < 2:
        raise FrameError(f"the frame's shape is {frame.shape}, but a Bayer pattern has 2 x 2 pixels")
    if spec.crop is not None and (spec.crop[2] > width or spec.crop[3] > height):
        raise FrameError(
            f"the frame is {width} pixels wide and {height} high, but the model crops the region "
            f"(left, top, right, bottom) = {spec.crop} out of it"
        )
    regions = spec.crop_and_cut(height, width) if boxes is None else [_box(box) for box in boxes]
    for left, top, right, bottom in regions:
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise FrameError(
                f"the box (left, top, right, bottom) = {(left, top, right, bottom)} does not lie in the frame, "
                f"which is {width} pixels wide and {height} high"
            )
        to_height, to_width = spec.resize or spec.size
        if spec.bit_depth > 8 and (bottom - top > 256 * to_height or right - left > 256 * to_width):
            raise FrameError(
                f"a region of {bottom - top} x {right - left} pixels is more than 256 times the size it is resized "
                f"to, {to_height} x {to_width}: too much for samples of more than 8 bits"
            )


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, (int, np.integer)) and least <= int(value) <= most


def _box(box: Any) -> Box:
    try:
        left, top, right, bottom = map(operator.index, box)
    except (TypeError, ValueError):
        raise FrameError(f"a box is {box!r}, but must be whole pixels (left, top, right, bottom)") from None
    return left, top, right, bottom


def prepare(
    frames: Frames,
    spec: PrepareSpec,
    *,
    pixel_format: str | None = None,
    boxes: Sequence[Box] | None = None,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Return the model's inputs of one frame or a batch, in an array of their own; see ``Preparer``."""
    preparer = Preparer(spec, pixel_format=pixel_format)
    out = np.empty(output_shape(frames, spec, pixel_format=pixel_format, boxes=boxes), dtype)
    preparer(frames, out, boxes=boxes)
    return out


def output_shape(
    frames: Frames,
    spec: PrepareSpec,
    *,
    pixel_format: str | None = None,
    boxes: Sequence[Box] | None = None,
    resized: bool = False,
) -> tuple[int, ...]:
    """The shape of what ``Preparer`` writes for these frames, or with ``resized`` of what its ``resize`` does."""
    found = spec.pixel_format(pixel_format)
    single = isinstance(frames, np.ndarray) and (found.is_shape(frames.shape) or frames.ndim < 2)
    regions = len(() if boxes is None else boxes) if spec.regions is None else spec.regions
    views = regions if resized else regions * spec.rotations
    image = (spec.own_channels if resized else spec.channels, *spec.size)
    return image if single and views == 1 else ((1 if single else len(frames)) * views, *image)


def frame_digest(frame: Frame) -> str:
    """A short digest of a frame's shape and pixels: 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()[:16]
