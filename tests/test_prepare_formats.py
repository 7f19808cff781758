"""prepare's pixel formats: packed and deep samples and Bayer patterns, against decoders written independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers import python_output
from kizu.errors import FrameError
from kizu.pixel_format import PIXEL_FORMATS, PixelFormat
from kizu.prepare import Preparer, PrepareSpec, output_shape, prepare
from kizu.prepare_reference import demosaic_reference, prepare_reference, resize_reference, unpack_reference

NAMES = sorted(PIXEL_FORMATS)
PACKED = [name for name in NAMES if PIXEL_FORMATS[name].packing]


def frame_of(found: PixelFormat, height: int, width: int, seed: int = 0, *, frames: int | None = None) -> NDArray[Any]:
    """Random samples; packed rows are random bytes."""
    rng = np.random.default_rng(seed)
    shape = (() if frames is None else (frames,)) + found.array_shape(height, width)
    top = 256 if found.packing else 2**found.bit_depth
    return rng.integers(0, top, shape).astype(found.dtype)


def spec_of(found: PixelFormat, size: tuple[int, int], **options: Any) -> PrepareSpec:
    color: Any = "rgb" if found.channels == 3 else "mono"
    depth: Any = found.bit_depth
    return PrepareSpec(size=size, color=color, bit_depth=depth, **options)


def resized(frame: NDArray[Any], spec: PrepareSpec, name: str | None = None, *, threads: int = 1) -> NDArray[Any]:
    out = np.empty(output_shape(frame, spec, pixel_format=name, resized=True), spec.dtype)
    Preparer(spec, pixel_format=name, threads=threads).resize(frame, out)
    return out


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 200), st.integers(2, 200), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 2**32),
    st.integers(1, 3), st.sampled_from([np.float32, np.float16]), st.booleans(),
)  # fmt: skip
def test_every_format_is_its_twin(
    name: str, height: int, width: int, size: tuple[int, int], seed: int, threads: int, dtype: Any, backwards: bool
) -> None:
    found = PIXEL_FORMATS[name]
    frame, spec = frame_of(found, height, width, seed), spec_of(found, size)
    if backwards:
        frame = frame[::-1] if found.packing else frame[::-1, ::-1]
    out = np.full((spec.channels, *size), np.nan, dtype)
    Preparer(spec, pixel_format=name, threads=threads)(frame, out)
    expected = prepare_reference(frame, spec, pixel_format=name, dtype=dtype)
    np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(
        resized(frame, spec, name, threads=threads), resize_reference(frame, spec, pixel_format=name)
    )


# Packed samples, by Python's integers


def bits(row: bytes, name: str, i: int) -> int:
    """Sample i of a packed row, from the standards' drawings."""
    if name == "Mono12Packed":
        first, middle, last = (row[3 * (i // 2) + k] if 3 * (i // 2) + k < len(row) else 0 for k in range(3))
        return first * 16 + middle % 16 if i % 2 == 0 else last * 16 + middle // 16
    depth = {"Mono10p": 10, "Mono12p": 12}[name]
    return (int.from_bytes(row, "little") >> depth * i) % (1 << depth)


@pytest.mark.parametrize("name", PACKED)
@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 2**32))
def test_packed_samples_are_unpacked(name: str, height: int, row_bytes: int, seed: int) -> None:
    if name == "Mono12Packed" and row_bytes % 3 == 1:
        row_bytes += 1
    frame = np.random.default_rng(seed).integers(0, 256, (height, row_bytes), np.uint8)
    width = row_bytes * 8 // PIXEL_FORMATS[name].bit_depth
    expected = [[bits(row.tobytes(), name, i) for i in range(width)] for row in frame]
    np.testing.assert_array_equal(unpack_reference(frame, PIXEL_FORMATS[name]), expected)
    np.testing.assert_array_equal(resized(frame, spec_of(PIXEL_FORMATS[name], (height, width)), name)[0], expected)


def test_packed_samples_by_hand() -> None:
    row = np.array([[0x21, 0x43, 0x65, 0x87, 0xA9]], np.uint8)
    assert unpack_reference(row[:, :3], PIXEL_FORMATS["Mono12p"]).tolist() == [[0x321, 0x654]]
    assert unpack_reference(row[:, :3], PIXEL_FORMATS["Mono12Packed"]).tolist() == [[0x213, 0x654]]
    assert unpack_reference(row, PIXEL_FORMATS["Mono10p"]).tolist() == [[0x321, 0x150, 0x076, 0x2A6]]


@pytest.mark.parametrize("name", PACKED)
def test_a_crop_may_begin_within_a_group_of_packed_samples(name: str) -> None:
    found = PIXEL_FORMATS[name]
    frame = frame_of(found, 9, 24)
    for left in range(9):
        spec = spec_of(found, (5, 7), crop=(left, 2, left + 7, 7))
        expected = unpack_reference(frame, found)[2:7, left : left + 7]
        np.testing.assert_array_equal(resized(frame, spec, name)[0], expected)


# Bayer


OPENCV = {"rggb": "BAYER_BG", "grbg": "BAYER_GB", "gbrg": "BAYER_GR", "bggr": "BAYER_RG"}  # named by another corner


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("pattern", OPENCV)
def test_demosaicking_is_opencvs_inside(pattern: str, dtype: Any) -> None:
    import cv2

    mosaic = np.random.default_rng(3).integers(0, np.iinfo(dtype).max + 1, (41, 38)).astype(dtype)
    expected = cv2.cvtColor(mosaic, getattr(cv2, f"COLOR_{OPENCV[pattern]}2RGB"))
    found = demosaic_reference(mosaic, pattern)
    np.testing.assert_array_equal(found[1:-1, 1:-1], expected[1:-1, 1:-1])


@pytest.mark.parametrize("name", ["BayerRG8", "BayerGR8", "BayerGB12", "BayerBG16"])
def test_a_bayer_frame_of_one_colour_gives_that_colour(name: str) -> None:
    found = PIXEL_FORMATS[name]
    color = np.array([200, 100, 50])
    sites = np.array(["rgb".index(c) for c in found.bayer]).reshape(2, 2)
    for height, width in ((2, 2), (3, 5), (40, 33)):
        mosaic = color[np.tile(sites, (20, 20))[:height, :width]].astype(found.dtype)
        planes = resized(mosaic, spec_of(found, (height, width)), name)
        np.testing.assert_array_equal(planes, np.broadcast_to(color[:, None, None], planes.shape))


def test_demosaicking_comes_before_the_crop() -> None:
    found = PIXEL_FORMATS["BayerGB8"]
    frame = frame_of(found, 30, 32)
    whole = np.moveaxis(demosaic_reference(frame, found.bayer), 2, 0)
    for left, top in ((0, 0), (1, 0), (0, 1), (5, 3)):
        spec = spec_of(found, (20, 21), crop=(left, top, left + 21, top + 20))
        np.testing.assert_array_equal(resized(frame, spec, found.name), whole[:, top : top + 20, left : left + 21])


# Samples of more than 8 bits


def triangle(image: NDArray[Any], n_out: int, axis: int) -> NDArray[np.float64]:
    """The triangle filter along an axis in float64, each weight from its definition."""
    source = np.moveaxis(image.astype(np.float64), axis, 0)
    scale = len(source) / n_out
    centres = (np.arange(n_out)[:, None] + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(len(source)) + 0.5 - centres) / max(scale, 1), 0, None)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, source, 1), 0, axis)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120), st.integers(1, 120), st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers(0, 2**32),
    st.sampled_from(["Mono16", "RGB12", "BGR16", "Mono10"]),
)  # fmt: skip
def test_the_deep_resize_is_the_triangle_filter(
    height: int, width: int, size: tuple[int, int], seed: int, name: str
) -> None:
    found = PIXEL_FORMATS[name]
    frame = frame_of(found, height, width, seed)
    image = frame.reshape(height, width, -1)[:, :, :: -1 if found.bgr else 1]
    expected = np.moveaxis(triangle(triangle(image, size[0], 0), size[1], 1), 2, 0)
    # Each pass rounds its weights to 2^-17 and its result to an integer.
    taps = 2 * (max(height / size[0], 1) + max(width / size[1], 1)) + 4
    np.testing.assert_allclose(
        resized(frame, spec_of(found, size), name), expected, rtol=0, atol=1 + taps * 2**found.bit_depth / 2**16
    )


@pytest.mark.parametrize("value", [0, 1, 1023, 40000, 65535])
@pytest.mark.parametrize(("shape", "size"), [((97, 203), (31, 17)), ((5, 3), (64, 64)), ((256, 256), (1, 1))])
def test_a_deep_constant_stays_one(value: int, shape: tuple[int, int], size: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), value, np.uint16)
    assert (resized(frame, PrepareSpec(size=size, bit_depth=16)) == value).all()


def test_a_deep_frame_of_the_models_size_is_not_changed() -> None:
    frame = frame_of(PIXEL_FORMATS["RGB16"], 33, 47)
    found = resized(frame, PrepareSpec(size=(33, 47), bit_depth=16))
    np.testing.assert_array_equal(found, np.moveaxis(frame, 2, 0))


@pytest.mark.parametrize("depth", [10, 12, 14, 16])
@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_deep_normalisation_is_the_formula(depth: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    top = 2**depth - 1
    frame = np.random.default_rng(0).integers(0, top + 1, (32, 32, 3)).astype(np.uint16)
    frame[0, 0], frame[0, 1] = 0, top
    found = prepare(frame, PrepareSpec(size=(32, 32), bit_depth=depth, mean=mean, std=std))
    pixels = np.moveaxis(frame, 2, 0) / top
    pixels = np.concatenate([pixels, pixels.max(0, keepdims=True), pixels.mean(0, keepdims=True)])
    means, stds = (*mean, *[sum(mean) / 3] * 2), (*std, *[sum(std) / 3] * 2)
    expected = (pixels - np.reshape(means, (-1, 1, 1))) / np.reshape(stds, (-1, 1, 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * 2.0**-24 * np.abs(expected).max())


def test_deep_strides_are_followed() -> None:
    frame = frame_of(PIXEL_FORMATS["RGB12"], 60, 80)
    spec = PrepareSpec(size=(20, 30), bit_depth=12)
    views = [frame[:, ::-1], frame[::2, 1::3], frame[:, :, ::-1], np.asfortranarray(frame), frame.transpose(1, 0, 2)]
    views.append(np.broadcast_to(frame[:, :, :1], frame.shape))
    memory = np.empty(frame.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(np.uint16).reshape(frame.shape)
    unaligned[:] = frame
    for view in (*views, unaligned, unaligned[:, ::-1]):
        np.testing.assert_array_equal(prepare(view, spec), prepare_reference(view, spec))


def test_float16_is_float32_rounded() -> None:
    for name in ("RGB8", "Mono8", "RGB12", "BayerRG16", "Mono10p"):
        found = PIXEL_FORMATS[name]
        spec = spec_of(found, (37, 41), std=(0.001,) * found.channels)  # large values round visibly
        frame = frame_of(found, 60, 64)
        exact = prepare(frame, spec, pixel_format=name)
        half = prepare(frame, spec, pixel_format=name, dtype=np.float16)
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, exact.astype(np.float16))


def test_float16_rounds_as_numpy_does_everywhere() -> None:
    # Every integer of 16 bits through several scales: subnormal, normal and infinite halves, and ties.
    frame = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for std in (1e-6, 1e-5, 2.0**-16, 0.3, 65535 / 65536, 1.0, 1e4, 2.0**22, 1e9):
        spec = PrepareSpec(size=(256, 256), color="mono", bit_depth=16, mean=(0.25,), std=(std,))
        exact = prepare(frame, spec)
        with np.errstate(over="ignore", under="ignore"):
            expected = exact.astype(np.float16)
        found = prepare(frame, spec, dtype=np.float16)
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


# What does not fit


def test_a_name_that_is_unknown_is_refused_with_those_known() -> None:
    for name in ("RGB", "rgb8", "BayerRG8p", "", "YUV422_8", None, 8):
        with pytest.raises(FrameError, match=r"pixel_format is .* must be one of Mono8, .*BayerRG12.*Mono12Packed"):
            PixelFormat.parse(name)  # type: ignore[arg-type]
    assert len(PIXEL_FORMATS) == 5 * (1 + 2 + 4) + 3
    assert all(PixelFormat.parse(name).name == name for name in NAMES)


@pytest.mark.parametrize(
    ("color", "depth", "name", "fit"),
    [
        ("rgb", 8, "Mono8", "RGB8, BGR8, BayerRG8, BayerGR8, BayerGB8, BayerBG8 fit it"),
        ("rgb", 8, "RGB10", "trained on 8-bit rgb frames; RGB8"),
        ("rgb", 12, "RGB8", "trained on 12-bit rgb frames; RGB12, BGR12, BayerRG12"),
        ("mono", 12, "Mono10p", "trained on 12-bit mono frames; Mono12, Mono12p, Mono12Packed fit it"),
        ("mono", 8, "BGR8", "trained on 8-bit mono frames; Mono8 fit it"),
    ],
)
def test_a_format_of_another_kind_is_refused_with_those_that_fit(color: Any, depth: Any, name: str, fit: str) -> None:
    with pytest.raises(FrameError, match=f"pixel_format is {name}, .*{fit}"):
        Preparer(PrepareSpec(size=(8, 8), color=color, bit_depth=depth), pixel_format=name)


def test_the_models_own_format_is_the_default() -> None:
    for color, depth, name in (("rgb", 8, "RGB8"), ("mono", 8, "Mono8"), ("rgb", 14, "RGB14"), ("mono", 16, "Mono16")):
        spec = PrepareSpec(size=(8, 8), color=color, bit_depth=depth)  # type: ignore[arg-type]
        assert Preparer(spec).pixel_format.name == name


@pytest.mark.parametrize(
    ("name", "frame", "fault"),
    [
        ("Mono12", np.zeros((8, 8), np.uint8), "dtype is uint8, but the model expects a uint16 mono frame"),
        ("Mono12", np.zeros((8, 8), ">u2"), "dtype is >u2 in the other byte order, but the model expects a uint16"),
        ("Mono12", np.zeros((8, 8), np.int16), "dtype is int16"),
        ("RGB12", np.zeros((8, 8), np.uint16), r"shape is \(8, 8\), but the model expects a uint16 rgb frame"),
        ("BayerRG8", np.zeros((8, 8, 3), np.uint8), r"expects a uint8 rgb frame of shape \(height, width\) or"),
        ("BayerRG8", np.zeros((1, 8), np.uint8), r"shape is \(1, 8\), but a Bayer pattern has 2 x 2 pixels"),
        ("BayerRG12", np.zeros((8, 1), np.uint16), "a Bayer pattern has 2 x 2 pixels"),
        ("Mono12p", np.zeros((8, 12), np.uint16), r"uint8 mono frame of shape \(height, bytes of a row\)"),
        ("Mono12p", np.zeros((8, 12, 1), np.uint8), r"shape is \(8, 12, 1\)"),
        ("Mono12p", np.zeros((8, 1), np.uint8), "it has no pixels"),
        ("Mono12p", np.zeros((8, 24), np.uint8)[:, ::2], "the bytes of a packed row must be adjacent"),
        ("Mono12Packed", np.zeros((8, 13), np.uint8), "rows have 13 bytes, but Mono12Packed has 2 pixels in 3 bytes"),
        ("Mono16", np.zeros((8, 2560), np.uint16), "8 x 2560 pixels is more than 256 times .*9 x 9"),
    ],
)
def test_a_frame_that_is_not_of_its_format_is_refused(name: str, frame: NDArray[Any], fault: str) -> None:
    found = PIXEL_FORMATS[name]
    spec = spec_of(found, (9, 9))
    preparer, out = Preparer(spec, pixel_format=name), np.zeros((spec.channels, 9, 9), np.float32)
    with pytest.raises(FrameError, match=fault):
        preparer(frame, out)
    with pytest.raises(FrameError, match=fault):
        preparer.check(frame)
    assert not out.any()


def test_resized_integers_of_deep_frames_are_uint16() -> None:
    preparer = Preparer(PrepareSpec(size=(8, 8), color="mono", bit_depth=12))
    with pytest.raises((TypeError, ValueError), match="uint16"):
        preparer.resize(np.zeros((9, 9), np.uint16), np.zeros((1, 8, 8), np.uint8))


# Each format in memory that ends, and in memory that begins, at a page without access.
GUARDED = """
import ctypes, mmap
import numpy as np
from kizu.pixel_format import PIXEL_FORMATS
from kizu.prepare import Preparer, PrepareSpec
from kizu.prepare_reference import prepare_reference

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 66 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for address in (start, start + 65 * page):
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
inside = np.frombuffer(memory, np.uint8)[page : 65 * page]

checked = 0
for seed, name in enumerate([*PIXEL_FORMATS] * 3):
    rng = np.random.default_rng(seed)
    found = PIXEL_FORMATS[name]
    height, width = (int(n) for n in rng.integers(2, 180 if found.channels == 1 or found.bayer else 100, 2))
    shape = found.array_shape(height, width)
    height, width = found.size(shape)
    n = int(np.prod(shape)) * found.dtype.itemsize
    crop = (width // 2, height // 2, width, height) if seed % 3 == 1 else None
    size = tuple(int(v) for v in rng.integers(1, 50, 2))
    color = "rgb" if found.channels == 3 else "mono"
    spec = PrepareSpec(size=size, color=color, bit_depth=found.bit_depth, crop=crop)
    for part in (inside[:n], inside[inside.size - n :]):
        frame = part.view(found.dtype).reshape(shape)
        frame[:] = rng.integers(0, 256 if found.packing else 2**found.bit_depth, shape)
        for view in (frame, frame[::-1], frame if found.packing else frame[:, ::-1]):
            out = np.empty((spec.channels, *size), np.float32)
            Preparer(spec, pixel_format=name, threads=1 + seed % 3)(view, out)
            assert np.array_equal(out, prepare_reference(view, spec, pixel_format=name)), name
            checked += 1
print(checked)
"""


def test_nothing_outside_a_frame_of_any_format_is_read() -> None:
    assert int(python_output(GUARDED)) == len(PIXEL_FORMATS) * 18
