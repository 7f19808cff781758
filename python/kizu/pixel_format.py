"""How a camera writes its pixels, by the names of GenICam's Pixel Format Naming Convention (PFNC)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kizu.errors import FrameError

_BAYER = {"BayerRG": "rggb", "BayerGR": "grbg", "BayerGB": "gbrg", "BayerBG": "bggr"}
_PACKED = {"Mono10p": 10, "Mono12p": 12, "Mono12Packed": 12}


@dataclass(frozen=True)
class PixelFormat:
    """What a frame's samples are. Samples of more than 8 bits are uint16, their value in the low bits.

    Attributes:
        name: as PFNC has it, e.g. "BGR8".
        channels: of a decoded pixel: 3 (red, green, blue) or 1.
        bit_depth: bits of a sample: 8, 10, 12, 14 or 16.
        bgr: the three samples of a pixel begin with blue.
        bayer: one sample a pixel, behind a colour filter: the colours of the top left 2x2 pixels, e.g. "rggb".
        packing: several samples share bytes: "mono10p", "mono12p" (lowest bits first, no gaps) or "mono12packed"
            (GigE Vision's two samples in three bytes); each row begins with a byte.
    """

    name: str
    channels: int
    bit_depth: int
    bgr: bool = False
    bayer: str = ""
    packing: str = ""

    @classmethod
    def parse(cls, name: str) -> PixelFormat:
        """The format of this name; raises FrameError for one that is unknown."""
        try:
            return PIXEL_FORMATS[name]
        except (KeyError, TypeError):
            known = ", ".join(PIXEL_FORMATS)
            raise FrameError(f"pixel_format is {name!r}, but must be one of {known}") from None

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Of a frame's array."""
        return np.dtype(np.uint8) if self.bit_depth == 8 or self.packing else np.dtype(np.uint16)

    @property
    def shapes(self) -> str:
        """The shapes that a frame's array may have, in words."""
        if self.packing:
            return "(height, bytes of a row)"
        if self.channels == 3 and not self.bayer:
            return "(height, width, 3)"
        return "(height, width) or (height, width, 1)"

    def is_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether one frame's array may have this shape."""
        if self.packing:
            return len(shape) == 2
        if self.channels == 3 and not self.bayer:
            return len(shape) == 3 and shape[2] == 3
        return len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)

    def array_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of the array of a frame with so many pixels."""
        if self.packing:
            return height, -(-width * self.bit_depth // 8)
        return (height, width, 3) if self.channels == 3 and not self.bayer else (height, width)

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) in pixels of a frame whose array has this shape; raises FrameError for half a pixel."""
        if self.packing == "mono12packed" and shape[1] % 3 == 1:
            raise FrameError(f"the frame's rows have {shape[1]} bytes, but {self.name} has 2 pixels in 3 bytes")
        return shape[0], 8 * shape[1] // self.bit_depth if self.packing else shape[1]


def _formats() -> dict[str, PixelFormat]:
    found = [PixelFormat(f"Mono{depth}", 1, depth) for depth in (8, 10, 12, 14, 16)]
    for order in ("RGB", "BGR"):
        found += [PixelFormat(f"{order}{depth}", 3, depth, bgr=order == "BGR") for depth in (8, 10, 12, 14, 16)]
    for name, pattern in _BAYER.items():
        found += [PixelFormat(f"{name}{depth}", 3, depth, bayer=pattern) for depth in (8, 10, 12, 14, 16)]
    found += [PixelFormat(name, 1, bits, packing=name.lower()) for name, bits in _PACKED.items()]
    return {item.name: item for item in found}


PIXEL_FORMATS = _formats()
