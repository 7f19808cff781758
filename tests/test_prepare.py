"""prepare: Pillow's bits, NumPy's normalisation, any strides, and no byte touched that is not its own."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from helpers import python, python_output
from kizu import _core
from kizu.errors import FrameError
from kizu.prepare import MAX_FRAME_SIDE, Preparer, PrepareSpec, Tiles, prepare
from kizu.prepare_reference import prepare_reference, resize_reference
from rows import OPS, OpRow

Frame = NDArray[np.uint8]
Crop = tuple[int, int, int, int]
BILINEAR = Image.Resampling.BILINEAR
PILLOW_13 = int(version("Pillow").partition(".")[0]) >= 13


def rows_come_first(image: NDArray[Any], size: tuple[int, int]) -> bool:
    fewer_rows, fewer_columns = int(image.shape[0]) - size[0], int(image.shape[1]) - size[1]
    return fewer_rows > 0 and fewer_rows > 2 * fewer_columns


def cut(frame: Frame, crop: Crop | None) -> Frame:
    if crop is None:
        return frame
    left, top, right, bottom = crop
    return frame[top:bottom, left:right]


def pillow_passes(frame: Frame, size: tuple[int, int], crop: Crop | None = None) -> Frame:
    """(C, H, W) by Pillow, one axis at a time: the same with any version of Pillow."""
    image = np.ascontiguousarray(cut(frame, crop))
    height, width = size
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if rows_come_first(image, size):
        picture = picture.resize((picture.width, height), BILINEAR).resize((width, height), BILINEAR)
    else:
        picture = picture.resize((width, picture.height), BILINEAR).resize((width, height), BILINEAR)
    return np.moveaxis(np.asarray(picture).reshape(height, width, -1), 2, 0)


def pillow_direct(frame: Frame, size: tuple[int, int], crop: Crop | None = None) -> Frame:
    """(C, H, W) by the call that defines the op."""
    image = np.ascontiguousarray(frame)
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if crop is not None:
        picture = picture.crop(crop)
    resized = np.asarray(picture.resize((size[1], size[0]), BILINEAR))
    return np.moveaxis(resized.reshape(*size, -1), 2, 0)


def normalised(planes: Frame, mean: tuple[float, ...], std: tuple[float, ...], *, pool: bool) -> NDArray[np.float64]:
    """What the resized integers become, from the formula, in float64."""
    pixels = planes.astype(np.float64) / 255
    if pool:
        pixels = np.concatenate([pixels, pixels.max(0, keepdims=True), pixels.mean(0, keepdims=True)])
        mean, std = (*mean, *[sum(mean) / 3] * 2), (*std, *[sum(std) / 3] * 2)
    result: NDArray[np.float64] = (pixels - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    return result


def noise(seed: int, *shape: int) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def native(frame: Frame, spec: PrepareSpec, *, threads: int = 1, pixel_format: str | None = None) -> Frame:
    out = np.full((spec.own_channels, *spec.size), 77, np.uint8)
    Preparer(spec, pixel_format=pixel_format, threads=threads).resize(frame, out)
    return out


def spec_for(frame: Frame, size: tuple[int, int], crop: Crop | None = None) -> PrepareSpec:
    return PrepareSpec(size=size, color="rgb" if frame.ndim == 3 and frame.shape[2] == 3 else "mono", crop=crop)


# Each makes a frame of the given shape whose memory is laid out in its own way.
LAYOUTS: dict[str, Callable[[int, int, int, int], Frame]] = {
    "contiguous": lambda s, h, w, c: noise(s, h, w, c),
    "rows reversed": lambda s, h, w, c: noise(s, h, w, c)[::-1],
    "columns reversed": lambda s, h, w, c: noise(s, h, w, c)[:, ::-1],
    "all reversed": lambda s, h, w, c: noise(s, h, w, c)[::-1, ::-1, ::-1],
    "channels reversed": lambda s, h, w, c: noise(s, h, w, c)[:, :, ::-1],
    "every third row": lambda s, h, w, c: noise(s, 3 * h, w, c)[1::3],
    "every second column": lambda s, h, w, c: noise(s, h, 2 * w, c)[:, ::2],
    "every second column backwards": lambda s, h, w, c: noise(s, h, 2 * w, c)[:, ::-2],
    "transposed": lambda s, h, w, c: noise(s, w, h, c).transpose(1, 0, 2),
    "Fortran": lambda s, h, w, c: np.asfortranarray(noise(s, h, w, c)),
    "planar": lambda s, h, w, c: np.moveaxis(noise(s, c, h, w), 0, 2),
    "inside a larger frame": lambda s, h, w, c: noise(s, h + 5, w + 3, c)[2 : 2 + h, 1 : 1 + w],
    "first of four channels": lambda s, h, w, c: noise(s, h, w, 4)[:, :, :c],
    "last of four channels": lambda s, h, w, c: noise(s, h, w, 4)[:, :, 4 - c :],
    "one row repeated": lambda s, h, w, c: np.broadcast_to(noise(s, 1, w, c), (h, w, c)),
    "one column repeated": lambda s, h, w, c: np.broadcast_to(noise(s, h, 1, c), (h, w, c)),
    "one pixel repeated": lambda s, h, w, c: np.broadcast_to(noise(s, 1, 1, 1), (h, w, c)),
    "one channel repeated": lambda s, h, w, c: np.broadcast_to(noise(s, h, w, 1), (h, w, c)),
}

side = st.one_of(st.integers(1, 40), st.integers(1, 2000), st.sampled_from([15, 16, 17, 31, 32, 33, 64, 255, 256]))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """(height, width) from 1 to 2000, seldom both large."""
    a = draw(side)
    b = draw(side if a <= 64 else st.integers(1, max(1, 120_000 // a)))
    return draw(st.sampled_from([(a, b), (b, a)]))


@st.composite
def crops(draw: st.DrawFn, height: int, width: int) -> Crop | None:
    if draw(st.booleans()):
        return None
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))


@settings(max_examples=250, deadline=None)
@given(
    st.data(), shapes(), shapes(), st.sampled_from([1, 3]), st.sampled_from(sorted(LAYOUTS)), st.integers(1, 4),
    st.integers(0, 2**32),
)  # fmt: skip
def test_resize_is_pillows(
    data: st.DataObject,
    shape: tuple[int, int],
    size: tuple[int, int],
    channels: int,
    layout: str,
    threads: int,
    seed: int,
) -> None:
    frame = LAYOUTS[layout](seed, *shape, channels)
    crop = data.draw(crops(*shape))
    found = native(frame, spec_for(frame, size, crop), threads=threads)
    np.testing.assert_array_equal(found, pillow_passes(frame, size, crop))
    if PILLOW_13:
        np.testing.assert_array_equal(found, pillow_direct(frame, size, crop))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "size", "crop"),
    [
        ((1, 1), (1, 1), None),
        ((1, 1), (64, 64), None),
        ((1, 2000), (256, 256), None),
        ((2000, 1), (256, 256), None),
        ((2000, 3), (7, 500), None),
        ((3, 2000), (500, 7), None),
        ((900, 900), (256, 256), None),
        ((1999, 1021), (256, 256), None),
        ((2000, 2000), (32, 32), (7, 3, 1993, 1999)),
        ((2000, 2000), (2000, 1), None),
        ((2000, 2000), (1, 2000), None),
        ((257, 257), (256, 256), (1, 1, 257, 257)),
        ((64, 64), (64, 64), None),
    ],
)
def test_resize_is_pillows_at_the_extremes(
    shape: tuple[int, int], size: tuple[int, int], crop: Crop | None, channels: int
) -> None:
    frame = noise(1, *shape, channels)
    for image in (frame, (frame > 127).astype(np.uint8) * 255, np.full_like(frame, 255)):
        found = native(image, spec_for(image, size, crop), threads=2)
        np.testing.assert_array_equal(found, pillow_passes(image, size, crop))
        if PILLOW_13:
            np.testing.assert_array_equal(found, pillow_direct(image, size, crop))


def test_both_orders_of_the_axes_are_covered() -> None:
    # The last bit tells the orders apart, so the frames above do test which one is taken.
    for shape, size, rows_first in (((200, 30), (32, 20), True), ((200, 190), (32, 20), False)):
        frame = noise(5, *shape, 3)
        assert rows_come_first(frame, size) is rows_first
        columns_then_rows = np.asarray(
            Image.fromarray(frame).resize((size[1], shape[0]), BILINEAR).resize(size[::-1], BILINEAR)
        )
        same = np.array_equal(np.moveaxis(columns_then_rows, 2, 0), native(frame, spec_for(frame, size)))
        assert same is not rows_first


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_axes_change_order_where_the_definition_says(excess: int) -> None:
    # 2 * (width shrunk by 30) + excess rows fewer: rows come first only for excess 1.
    size = (20, 20)
    frame = noise(3, 20 + 60 + excess, 50, 3)
    np.testing.assert_array_equal(native(frame, spec_for(frame, size)), pillow_passes(frame, size))


@settings(max_examples=60, deadline=None)
@given(shapes(), shapes(), st.sampled_from(sorted(LAYOUTS)), st.integers(0, 2**32))
def test_bgr_is_rgb_backwards(shape: tuple[int, int], size: tuple[int, int], layout: str, seed: int) -> None:
    frame = LAYOUTS[layout](seed, *shape, 3)
    spec = PrepareSpec(size=size)
    np.testing.assert_array_equal(native(frame, spec, pixel_format="BGR8"), pillow_passes(frame[:, :, ::-1], size))
    np.testing.assert_array_equal(prepare(frame, spec, pixel_format="BGR8"), prepare(frame[:, :, ::-1], spec))


@pytest.mark.parametrize("name", [None, "Mono8"])
def test_a_mono_frame_may_have_two_axes_or_three(name: str | None) -> None:
    frame = noise(4, 50, 41)
    spec = PrepareSpec(size=(32, 32), color="mono")
    expected = pillow_passes(frame[:, :, None], (32, 32))
    for view in (frame, frame[:, :, None], np.ascontiguousarray(frame.T).T):
        np.testing.assert_array_equal(native(view, spec, pixel_format=name), expected)
        assert prepare(view, spec, pixel_format=name).shape == (1, 32, 32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.05, 2), min_size=3, max_size=3),
)
@example(0, 3, True, [0.5] * 3, [0.5] * 3)
@example(0, 3, True, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
def test_normalisation_and_pooling_are_the_formula(
    seed: int, channels: int, pool: bool, mean: list[float], std: list[float]
) -> None:
    frame = noise(seed, 37, 45, channels)
    means, stds = tuple(mean[:channels]), tuple(std[:channels])
    spec = PrepareSpec(size=(16, 24), color="mono" if channels == 1 else "rgb", pool=pool, mean=means, std=stds)
    found = prepare(frame, spec)
    pooled = pool and channels == 3
    expected = normalised(pillow_passes(frame, (16, 24)), means, stds, pool=pooled)
    assert found.shape == (5 if pooled else channels, 16, 24)
    assert found.dtype == np.float32
    # One rounding to float32, plus what float64 loses in another order of operations.
    np.testing.assert_allclose(found, expected, rtol=2.0**-24, atol=1e-12)


def test_every_table_entry_is_reached_and_right() -> None:
    # All 256 grey levels, and sums of three from 0 to 765, without a resize in between.
    levels = np.arange(256, dtype=np.uint8)
    frame = np.stack([np.repeat(levels, 3), np.repeat(levels, 3), np.repeat(levels, 3)], axis=1)
    frame[1::3, 0] = np.minimum(frame[1::3, 0].astype(int) + 1, 255)
    frame[2::3, :2] = np.minimum(frame[2::3, :2].astype(int) + 1, 255)
    frame = frame.reshape(24, 32, 3)
    found = prepare(frame, PrepareSpec(size=(24, 32)))
    np.testing.assert_array_equal(np.unique(frame.sum(2)), np.arange(766))
    expected = normalised(np.moveaxis(frame, 2, 0), (0.5,) * 3, (0.5,) * 3, pool=True)
    np.testing.assert_allclose(found, expected, rtol=2.0**-24, atol=1e-12)
    assert found.min() == -1.0
    assert found.max() == 1.0
    assert found[4].min() == -1.0  # black and white are exact in the mean as well
    assert found[4].max() == 1.0


@pytest.mark.parametrize("row", [row for row in OPS if row.takes == "frames"], ids=lambda row: row.name)
@settings(max_examples=40, deadline=None)
@given(st.data(), shapes(), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([1, 3]))
def test_native_is_the_reference_twin(
    row: OpRow, data: st.DataObject, shape: tuple[int, int], size: tuple[int, int], channels: int
) -> None:
    assert row.tolerance == 0
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    frame = LAYOUTS[layout](data.draw(st.integers(0, 2**32)), *shape, channels)
    spec = spec_for(frame, size, data.draw(crops(*shape)))
    name = data.draw(st.sampled_from(["RGB8", "BGR8"] if channels == 3 else ["Mono8"]))
    found, expected = row.run(frame, spec, pixel_format=name), row.reference(frame, spec, pixel_format=name)
    np.testing.assert_array_equal(found, expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    for shape, size in (((301, 403), (64, 64)), ((900, 20), (33, 64)), ((20, 900), (3, 64)), ((5, 5), (2, 2))):
        frame = noise(8, *shape, 3)
        spec = PrepareSpec(size=size)
        expected = prepare_reference(frame, spec)
        for threads in (1, 2, 3, 4):
            preparer, out = Preparer(spec, threads=threads), np.empty((5, *size), np.float32)
            for _ in range(5):
                out.fill(np.nan)
                preparer(frame, out)
                np.testing.assert_array_equal(out, expected)


def test_a_preparer_follows_frames_of_changing_size_and_layout() -> None:
    preparer, out = Preparer(PrepareSpec(size=(32, 48)), threads=2), np.empty((5, 32, 48), np.float32)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        layout = sorted(LAYOUTS)[seed % len(LAYOUTS)]
        frame = LAYOUTS[layout](seed, int(rng.integers(1, 300)), int(rng.integers(1, 300)), 3)
        preparer(frame, out)
        np.testing.assert_array_equal(out, prepare_reference(frame, preparer.spec))


DIGESTS = """
import hashlib
import numpy as np
from kizu.prepare import PrepareSpec
from kizu.prepare import prepare

total = hashlib.sha256()
for seed in range(60):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 400, 2))
    size = tuple(int(n) for n in rng.integers(1, 90, 2))
    mono = seed % 3 == 0
    frame = rng.integers(0, 256, (height, width) if mono else (height, width, 3), np.uint8)
    spec = PrepareSpec(size=size, color="mono" if mono else "rgb")
    total.update(prepare(frame if seed % 2 else frame[:, ::-1], spec).tobytes())
print(total.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    names = _core.instruction_sets()
    assert names[-1] == "scalar"
    assert len(names) > 1
    twin = python_output(
        DIGESTS.replace(
            "kizu.prepare import prepare\n", "kizu.prepare_reference import prepare_reference as prepare\n", 1
        )
    )
    for name in names:
        assert python_output(DIGESTS, environment={"KIZU_SIMD": name}) == twin, name


def test_an_unknown_instruction_set_is_refused() -> None:
    done = python(DIGESTS, environment={"KIZU_SIMD": "mmx"})
    assert done.returncode != 0
    assert "KIZU_SIMD is 'mmx', but this processor and build have: " in done.stderr
    assert "scalar" in done.stderr


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_outside_the_output_is_written(channels: int) -> None:
    for seed, (shape, size) in enumerate([((300, 40), (17, 19)), ((40, 300), (17, 19)), ((9, 9), (33, 5))]):
        frame = noise(seed, *shape, channels)
        spec = spec_for(frame, size)
        for threads in (1, 3):
            canary = np.full(4096 + spec.channels * size[0] * size[1], -12345.0, np.float32)
            out = canary[2048:-2048].reshape(spec.channels, *size)
            Preparer(spec, threads=threads)(frame, out)
            assert (canary[:2048] == -12345.0).all()
            assert (canary[-2048:] == -12345.0).all()
            assert not (out == -12345.0).any()  # and all of it is
            bytes_ = np.full(4096 + channels * size[0] * size[1], 251, np.uint8)
            planes = bytes_[2048:-2048].reshape(channels, *size)
            Preparer(spec, threads=threads).resize(np.minimum(frame, 250), planes)
            assert (bytes_[:2048] == 251).all()
            assert (bytes_[-2048:] == 251).all()
            assert not (planes == 251).any()


def test_the_frame_is_not_changed() -> None:
    frame = noise(2, 100, 100, 3)
    before = frame.copy()
    prepare(frame, PrepareSpec(size=(32, 32)), pixel_format="BGR8")
    np.testing.assert_array_equal(frame, before)
    frame.flags.writeable = False
    prepare(frame, PrepareSpec(size=(32, 32)))


# A frame that ends where a page without access begins, and one that begins where such a page ends.
GUARDED = """
import ctypes, mmap
import numpy as np
from kizu.prepare import Preparer, PrepareSpec
from kizu.prepare_reference import prepare_reference

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE

def guarded(pages):
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for address in (start, start + (pages + 1) * page):
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
    return np.frombuffer(memory, np.uint8)[page : (pages + 1) * page]

checked = 0
for seed in range(80):
    rng = np.random.default_rng(seed)
    channels = (1, 3)[seed % 2]
    height, width = (int(n) for n in rng.integers(1, (400, 60) if seed % 4 < 2 else (60, 400)))
    size = tuple(int(n) for n in rng.integers(1, 70, 2))
    n = height * width * channels
    inside = guarded(-(-n // page))
    crop = None
    if seed % 5 == 0:
        crop = (width // 2, height // 2, width, height)
    spec = PrepareSpec(size=size, color="mono" if channels == 1 else "rgb", crop=crop)
    for memory in (inside[:n], inside[inside.size - n :]):
        memory[:] = rng.integers(0, 256, n, np.uint8)
        frame = memory.reshape(height, width, channels)
        for view in (frame, frame[::-1], frame[:, ::-1], frame[:, :, ::-1], frame[::2, ::2]):
            if view.shape != frame.shape and crop is not None:
                continue
            for name in ("RGB8", "BGR8") if channels == 3 else ("Mono8",):
                out = np.empty((spec.channels, *size), np.float32)
                Preparer(spec, pixel_format=name, threads=1 + seed % 3)(view, out)
                assert np.array_equal(out, prepare_reference(view, spec, pixel_format=name))
                checked += 1
print(checked)
"""


def test_nothing_outside_the_frame_is_read() -> None:
    assert int(python_output(GUARDED)) > 800


def test_the_guard_page_would_have_caught_it() -> None:
    reads_on = GUARDED.partition("checked = 0")[0] + (
        "inside = guarded(1)\nprint(int(np.lib.stride_tricks.as_strided(inside, (page + 1,), (1,))[page]))\n"
    )
    assert python(reads_on).returncode < 0


def test_it_writes_into_the_callers_buffer() -> None:
    frame, spec = noise(6, 70, 80, 3), PrepareSpec(size=(32, 32))
    batch = np.zeros((4, 5, 32, 32), np.float32)
    preparer = Preparer(spec)
    assert preparer(frame, batch[2]) is None  # type: ignore[func-returns-value]
    np.testing.assert_array_equal(batch[2], prepare_reference(frame, spec))
    assert not batch[[0, 1, 3]].any()


@pytest.mark.parametrize(
    ("out", "fault"),
    [
        (np.empty((5, 32, 32), np.float64), "float32"),
        (np.empty((5, 32, 32), np.int32), "float32"),
        (np.empty((3, 32, 32), np.float32), r"\(5, 32, 32\)"),
        (np.empty((1, 5, 32, 32), np.float32), r"\(5, 32, 32\)"),
        (np.empty((5, 32, 64), np.float32)[:, :, ::2], "C-contiguous"),
        (np.empty((5, 32, 32), np.float32).transpose(0, 2, 1), "C-contiguous"),
        (np.empty((5, 32, 32), ">f4"), "float32"),
        (np.ndarray((5, 32, 32), np.float32, bytearray(5 * 32 * 32 * 4 + 1), offset=1), "aligned"),
    ],
    ids=["float64", "int32", "channels", "rank", "strided", "transposed", "byte order", "unaligned"],
)
def test_an_output_that_does_not_fit_is_refused(out: NDArray[Any], fault: str) -> None:
    with pytest.raises((TypeError, ValueError), match=fault):
        Preparer(PrepareSpec(size=(32, 32)))(noise(0, 9, 9, 3), out)


def test_a_read_only_output_is_refused() -> None:
    out = np.zeros((5, 32, 32), np.float32)
    out.flags.writeable = False
    with pytest.raises((TypeError, ValueError), match=r"writ|read-only"):
        Preparer(PrepareSpec(size=(32, 32)))(noise(0, 9, 9, 3), out)
    assert not out.any()


RGB, MONO = PrepareSpec(size=(32, 32)), PrepareSpec(size=(32, 32), color="mono")
BAD_FRAMES = [
    (RGB, np.zeros((8, 8, 3), np.float32), "dtype is float32.*uint8 rgb frame of shape \\(height, width, 3\\)"),
    (RGB, np.zeros((8, 8, 3), np.uint16), "dtype is uint16.*uint8 rgb frame"),
    (RGB, np.zeros((8, 8, 3), np.int8), "dtype is int8"),
    (RGB, np.zeros((8, 8, 3), bool), "dtype is bool"),
    (RGB, np.zeros((8, 8), np.uint8), r"shape is \(8, 8\), but the model expects .*\(height, width, 3\)"),
    (RGB, np.zeros((8, 8, 1), np.uint8), r"shape is \(8, 8, 1\)"),
    (RGB, np.zeros((8, 8, 4), np.uint8), r"shape is \(8, 8, 4\)"),
    (RGB, np.zeros((3, 8, 8), np.uint8), r"shape is \(3, 8, 8\)"),
    (RGB, np.zeros((1, 8, 8, 3), np.uint8), r"shape is \(1, 8, 8, 3\)"),
    (RGB, np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\): it has no pixels"),
    (RGB, np.zeros((8, 0, 3), np.uint8), r"\(8, 0, 3\): it has no pixels"),
    (RGB, np.uint8(3), "uint8, but the model expects"),
    (RGB, [[[0, 0, 0]]], "the frame is a list, but the model expects .* as a NumPy array"),
    (RGB, None, "the frame is a NoneType"),
    (RGB, b"pixels", "the frame is a bytes"),
    (RGB, np.broadcast_to(np.uint8(0), (40000, 8, 3)), f"{MAX_FRAME_SIDE} pixels at most"),
    (RGB, np.broadcast_to(np.uint8(0), (8, 40000, 3)), f"{MAX_FRAME_SIDE} pixels at most"),
    (MONO, np.zeros((8, 8, 3), np.uint8), r"uint8 mono frame of shape \(height, width\) or \(height, width, 1\)"),
    (MONO, np.zeros(8, np.uint8), r"shape is \(8,\)"),
    (
        PrepareSpec(size=(32, 32), crop=(0, 0, 9, 5)),
        np.zeros((8, 8, 3), np.uint8),
        r"8 pixels wide and 8 high, but the model crops .*\(0, 0, 9, 5\)",
    ),
]


@pytest.mark.parametrize(("spec", "frame", "fault"), BAD_FRAMES, ids=range(len(BAD_FRAMES)))
def test_a_wrong_frame_is_refused_with_what_is_expected(spec: PrepareSpec, frame: Any, fault: str) -> None:
    preparer = Preparer(spec)
    out = np.zeros((spec.channels, 32, 32), np.float32)
    with pytest.raises(FrameError, match=fault):
        preparer(frame, out)
    with pytest.raises(FrameError, match=fault):
        preparer.check(frame)
    with pytest.raises(FrameError, match=fault):
        preparer.resize(frame, np.zeros((spec.own_channels, 32, 32), np.uint8))
    assert not out.any()
    preparer(np.full((9, 9, 3)[: 3 if spec.color == "rgb" else 2], 200, np.uint8), out)  # and it goes on working
    assert out.all()


def test_the_largest_frame_is_taken() -> None:
    spec = PrepareSpec(size=(2, 2), color="mono")
    for shape in ((MAX_FRAME_SIDE, 2), (2, MAX_FRAME_SIDE)):
        frame = np.broadcast_to(np.uint8(51), shape)
        np.testing.assert_allclose(prepare(frame, spec), 51 / 127.5 - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"size": (0, 32)}, "size is"),
        ({"size": (32, 32768 + 1)}, "size is"),
        ({"size": (32,)}, "size is"),
        ({"color": "yuv"}, "color is 'yuv', but must be one of rgb, mono"),
        ({"crop": (5, 0, 5, 9)}, "crop is"),
        ({"crop": (-1, 0, 5, 9)}, "crop is"),
        ({"crop": (0, 9, 5, 3)}, "crop is"),
        ({"mean": (0.5,)}, "mean has 1 values"),
        ({"mean": (0.5, 0.5, float("nan"))}, "finite"),
        ({"std": (0.5, 0.5, 0.0)}, "std is"),
        ({"std": (0.5, 0.5, float("inf"))}, "finite"),
        ({"color": "mono", "std": (0.5, 0.5, 0.5)}, "std has 3 values"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(FrameError, match=fault):
        PrepareSpec(**{"size": (32, 32), **change})


def test_a_mono_spec_has_one_channel_whatever_pool_says() -> None:
    assert PrepareSpec(size=(32, 32), color="mono", pool=True) == PrepareSpec(size=(32, 32), color="mono", pool=False)
    assert PrepareSpec(size=(32, 32), color="mono").channels == 1
    assert PrepareSpec(size=(32, 32), pool=False).channels == 3
    assert PrepareSpec(size=(32, 32)).channels == 5


@given(
    st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    st.sampled_from(["rgb", "mono"]),
    st.sampled_from([8, 10, 12, 14, 16]),
    st.booleans(),
    st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(100, 999), st.integers(100, 999)),
    st.none() | st.builds(Tiles, st.integers(1, 9), st.integers(1, 9), st.integers(0, 99)),
    st.sampled_from([None, (4096, 5000)]),
    st.integers(1, 64),
    st.sampled_from(["max", "mean"]),
    st.floats(0, 1),
    st.floats(1e-3, 10),
)
def test_a_spec_survives_json(
    size: tuple[int, int], color: Any, depth: Any, pool: bool, crop: Crop | None, tiles: Tiles | None,
    resize: tuple[int, int] | None, rotations: int, reduce: Any, mean: float, std: float,
) -> None:  # fmt: skip
    n = 3 if color == "rgb" else 1
    spec = PrepareSpec(
        size=size,
        color=color,
        bit_depth=depth,
        pool=pool,
        crop=crop,
        tiles=tiles,
        boxes=crop is None and tiles is None,
        resize=resize,
        rotations=rotations,
        reduce=reduce,
        mean=(mean,) * n,
        std=(std,) * n,
    )
    assert PrepareSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"size": None},
        {"size": [32]},
        {"size": [32.5, 32]},
        {"size": ["32", "32"]},
        {"color": "yuv"},
        {"pool": "no"},
        {"boxes": 0},
        {"bit_depth": 8.0},
        {"bit_depth": 9},
        {"rotations": "4"},
        {"rotations": True},
        {"tiles": [2, 2]},
        {"tiles": [0, 2, 0]},
        {"resize": [64]},
        {"resize": [16, 16]},
        {"reduce": "min"},
        {"crop": [0, 0, 5]},
        {"mean": "0.5"},
        {"mean": [True, True, True]},
        {"gamma": 2.2},
    ],
    ids=str,
)
def test_json_that_is_no_spec_is_refused(change: dict[str, Any]) -> None:
    values = {**PrepareSpec(size=(32, 32)).as_dict(), **change}
    with pytest.raises((KeyError, TypeError, ValueError)):
        PrepareSpec.from_dict(values)


def test_a_spec_lacking_a_field_is_refused() -> None:
    for field in dataclasses.fields(PrepareSpec):
        values = PrepareSpec(size=(32, 32)).as_dict()
        del values[field.name]
        with pytest.raises(KeyError, match=field.name):
            PrepareSpec.from_dict(values)


@pytest.mark.parametrize("threads", [0, -1, 2000])
def test_a_thread_count_out_of_range_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}, but must be from 1 to 1024"):
        Preparer(PrepareSpec(size=(32, 32)), threads=threads)


def test_one_preparer_serves_several_threads() -> None:
    # The detector holds a lock of its own; this is what keeps the op whole without one.
    preparer = Preparer(PrepareSpec(size=(32, 32)), threads=2)
    frames = [noise(i, 50 + 30 * i, 200 - 20 * i, 3) for i in range(4)]
    expected = [resize_reference(frame, preparer.spec) for frame in frames]
    wrong: list[int] = []

    def work(i: int) -> None:
        out = np.empty((3, 32, 32), np.uint8)
        for _ in range(200):
            preparer.resize(frames[i], out)
            if not np.array_equal(out, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_gil_is_released_while_it_works() -> None:
    # With a switch interval of an hour another thread moves only when this one lets go of the GIL.
    frame = np.broadcast_to(noise(0, 1, 12000), (MAX_FRAME_SIDE, 12000))
    preparer, out = Preparer(PrepareSpec(size=(32, 32), color="mono")), np.empty((1, 32, 32), np.float32)
    steps, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            steps[0] += 1
            time.sleep(1e-4)

    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(3600)
        preparer(frame, out)
        before = steps[0]
        for _ in range(3):
            preparer(frame, out)
        moved = steps[0] - before
        before = steps[0]
        sum(range(2_000_000))  # holds the GIL for about as long
        held = steps[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert held <= 1
    assert moved >= 3 + held


def test_frames_live_as_long_as_they_are_read() -> None:
    class Fresh(Sequence[Any]):
        """Makes each frame when it is asked for, and keeps none."""

        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: Any) -> Any:
            if i >= 40:
                raise IndexError
            return np.full((700, 700, 3), i, np.uint8)

    spec = PrepareSpec(size=(16, 16))
    frames: Any = Fresh()
    out = np.empty((40, 5, 16, 16), np.float32)
    Preparer(spec, threads=2)(frames, out)
    np.testing.assert_array_equal(out[:, 0, 0, 0], spec.tables[0][np.arange(40)])
