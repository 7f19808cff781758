"""Image files: finding them, checking them, decoding them without changing a pixel.

Files are decoded as they are stored. An EXIF orientation tag is ignored everywhere, in training and on the
line alike: a camera that sets it would otherwise turn pictures in one place and not in another.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kizu.errors import DataError

Color = Literal["rgb", "mono"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")

# What Pillow's decoders raise on damaged input.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ACCEPTED: dict[Color, str] = {
    "mono": "8-bit grey or bilevel images, or palettes of pure greys",
    "rgb": "8-bit RGB images, or palettes with colours",
}


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an image file says.

    `mode` is Pillow's, with a remark where Pillow hides something ("RGB, 16 bits a channel"). `color` is the
    colour in which the file can be read without losing or inventing anything, None where there is none (an
    odd image).
    """

    mode: str
    color: Color | None
    width: int
    height: int


def _facts(image: Image.Image) -> ImageFacts:
    mode, color = image.mode, _color_of_mode(image)
    remark = ""
    if "transparency" in image.info and mode in ("1", "L", "P", "RGB"):
        remark = " with transparency"
    elif _wide(image):
        remark = ", 16 bits a channel"
    elif getattr(image, "n_frames", 1) > 1:
        remark = f", {getattr(image, 'n_frames', 1)} pictures in one file"
    return ImageFacts(mode + remark, None if remark else color, image.width, image.height)


def _color_of_mode(image: Image.Image) -> Color | None:
    if image.mode in ("L", "1"):
        return "mono"
    if image.mode == "RGB":
        return "rgb"
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [0, 0, 0], np.uint8).reshape(-1, 3)
        return "mono" if bool((palette == palette[:, :1]).all()) else "rgb"
    return None


def _wide(image: Image.Image) -> bool:
    """Whether Pillow will silently cut 16-bit colour channels to 8 bits."""
    if image.mode != "RGB":
        return False
    for tile in getattr(image, "tile", ()):
        codec, args = tile[0], tile[3]
        values = args if isinstance(args, tuple) else (args,)
        if any(isinstance(value, str) and "16" in value for value in values):
            return True
        if codec in ("ppm", "ppm_plain") and any(isinstance(v, int) and v > 255 for v in values):
            return True
    return False


def check_image(path: str | os.PathLike[str]) -> ImageFacts:
    """Facts of an image file after a check that it can be decoded to its end.

    PNG files have a checksum in every chunk, which is checked without decoding; other formats are decoded.
    Raises DataError, naming the path, if the file is missing, empty, truncated or not an image.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            facts = _facts(image)
            if image.format == "PNG":
                image.verify()
            else:
                # JPEG decoders can stop at an eighth of the size: every byte is read, few pixels are made.
                image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
    except _DECODE_ERRORS as error:
        raise DataError(_unreadable(path, error)) from error
    return facts


def read_image(path: str | os.PathLike[str], color: Color, *, convert: bool = False) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        path: a PNG, JPEG, BMP, TIFF, WebP or PGM/PPM file.
        color: "rgb" gives [H, W, 3] in the order red, green, blue; "mono" gives [H, W].
        convert: without it, a file is read only if nothing is lost or invented (grey as mono, RGB as rgb,
            bilevel as 0 and 255, palettes by their colours). With it other modes are converted: colour to
            grey by ITU-R 601 luma, grey to three equal channels, CMYK to RGB, transparency dropped, the upper
            8 of 16 bits, the first of several pictures.

    Returns:
        A C-contiguous, writable uint8 array of its own, values 0 to 255.

    Raises:
        DataError: the path names no file, or one that is empty, truncated, not an image, or of an odd mode.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            facts = _facts(image)
            if facts.color == color or convert:
                image.load()
                return _pixels(image, color)
    except _DECODE_ERRORS as error:
        raise DataError(_unreadable(path, error)) from error
    raise DataError(f"{path}: the image mode is {facts.mode}; {odd_mode_advice(color)}")


def odd_mode_advice(color: Color) -> str:
    """What is accepted for a colour and what to do otherwise, as the end of an error message."""
    return (
        f"{color} accepts {_ACCEPTED[color]}. Convert the file, or pass --convert (convert=True) to have it "
        "converted on reading"
    )


def _pixels(image: Image.Image, color: Color) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range and are not converted")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integer pixels beyond 16 bits are not converted")
        image = Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))
    if color == "rgb":
        return np.array(image.convert("RGB"), np.uint8, order="C")
    # L and RGB are the only modes from which Pillow's step to L is luma of the colours as they show.
    grey = image if image.mode in ("L", "1") else image.convert("RGB")
    return np.array(grey.convert("L"), np.uint8, order="C")


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """Decode a defect mask: [H, W], True where the defect is.

    Masks come as grey, palette or RGBA files. A pixel's weight is its strongest colour channel times its
    opacity; it belongs to the defect from half of the greatest weight in the mask. Raises DataError, naming
    the path, if it cannot be decoded.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"), np.uint32)
    except _DECODE_ERRORS as error:
        raise DataError(_unreadable(path, error)) from error
    weight = pixels[..., :3].max(axis=-1) * pixels[..., 3]
    found: NDArray[np.bool_] = (2 * weight >= weight.max()) & (weight > 0)
    return found


def _unreadable(path: Path, error: BaseException) -> str:
    if not path.exists():
        return f"{path}: no such file"
    if path.is_dir():
        return f"{path}: this is a folder, not an image file"
    if path.stat().st_size == 0:
        return f"{path}: the file is empty (0 bytes)"
    # Pillow repeats the path in this message.
    reason = "not an image Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{path}: cannot be decoded ({reason or type(error).__name__})"


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Image files named by `paths`, in a fixed order.

    A file is taken as it is, whatever its suffix. A folder gives the files below it, at any depth, that end
    in one of `SUFFIXES` (any case), sorted by their path; hidden files and folders are passed over and
    linked folders are not entered. A file named twice is given once. Raises DataError if a path does not
    exist or a folder holds no image.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[Path, None] = {}
    for item in map(Path, given):
        if item.is_dir():
            inside = images_below(item)
            if not inside:
                raise DataError(f"{item}: no images in this folder; looked for {' '.join(SUFFIXES)}")
            found.update(dict.fromkeys(inside))
        elif item.exists():
            found[item] = None
        else:
            raise DataError(f"{item}: no such file or folder")
    return tuple(found)


def images_below(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by their path; empty if there are none."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone. DataError names the path."""
    try:
        with Image.open(path) as image:
            return image.width, image.height
    except _DECODE_ERRORS as error:
        raise DataError(_unreadable(path, error)) from error
