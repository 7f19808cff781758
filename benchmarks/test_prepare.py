"""prepare against what a user would write with other libraries, one thread on every side.

900 x 900 RGB to 5 x 256 x 256 float32, and 2448 x 2048 mono to 1 x 256 x 256 against reading the frame once. Each
side's result is checked before it is timed, and the sides take turns, so that a slow minute of the machine hits all
of them.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kizu.prepare import Preparer, PrepareSpec
from kizu.prepare_reference import resize_reference

TURNS = range(5)
ROUNDS = 40
SIDES = ("prepare_kizu", "prepare_torch", "prepare_opencv", "prepare_pillow")
SPEC = PrepareSpec(size=(256, 256))
LEVEL = 1 / 127.5  # one step of 256 in [-1, 1]
Frame = NDArray[np.uint8]
Planes = NDArray[np.float32]
Prepare = Callable[[Frame], Planes]


def by_kizu() -> Prepare:
    preparer, out = Preparer(SPEC), np.empty((5, 256, 256), np.float32)

    def prepare(frame: Frame) -> Planes:
        preparer(frame, out)
        return out

    return prepare


def by_torch() -> Prepare:
    """Torch's resize of uint8 with antialiasing, the rest into preallocated tensors."""
    import torch
    from torch.nn.functional import interpolate

    out = torch.empty((5, 256, 256))

    def prepare(frame: Frame) -> Planes:
        with torch.inference_mode():
            image = torch.from_numpy(frame).permute(2, 0, 1)[None]  # channels last, as the resize has it fastest
            resized = interpolate(image, (256, 256), mode="bilinear", antialias=True)[0]
            out[:3].copy_(resized).mul_(LEVEL).sub_(1)
            torch.amax(out[:3], 0, out=out[3])
            torch.mean(out[:3], 0, out=out[4])
        return out.numpy()

    return prepare


def by_opencv() -> Prepare:
    """OpenCV's default resize, which does not antialias, and its tables and weighted sums straight into the output."""
    import cv2

    out = np.empty((5, 256, 256), np.float32)
    table = (np.arange(256) / 127.5 - 1).astype(np.float32)
    resized = np.empty((256, 256, 3), np.uint8)
    planes = [np.empty((256, 256), np.uint8) for _ in range(3)]
    largest = np.empty((256, 256), np.uint8)

    def prepare(frame: Frame) -> Planes:
        cv2.resize(frame, (256, 256), dst=resized, interpolation=cv2.INTER_LINEAR)
        cv2.split(resized, planes)
        for plane, row in zip(planes, out, strict=False):
            cv2.LUT(plane, table, row)
        cv2.max(planes[0], planes[1], largest)
        cv2.max(largest, planes[2], largest)
        cv2.LUT(largest, table, out[3])
        cv2.add(out[0], out[1], out[4])
        cv2.addWeighted(out[4], 1 / 3, out[2], 1 / 3, 0, out[4])
        return out

    return prepare


def by_pillow() -> Prepare:
    """Pillow's resize, the rest in NumPy as one would write it down."""

    def prepare(frame: Frame) -> Planes:
        resized = np.asarray(Image.fromarray(frame).resize((256, 256), Image.Resampling.BILINEAR))
        x = resized.transpose(2, 0, 1).astype(np.float32) * np.float32(LEVEL) - 1
        return np.concatenate([x, x.max(0, keepdims=True), x.mean(0, keepdims=True)])

    return prepare


MAKE = {
    "prepare_kizu": by_kizu,
    "prepare_torch": by_torch,
    "prepare_opencv": by_opencv,
    "prepare_pillow": by_pillow,
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def check(side: str, frame: Frame, found: Planes) -> None:
    """Exactly Pillow's image for kizu and Pillow; a level beside it for torch; like it for OpenCV."""
    resized = np.asarray(Image.fromarray(frame).resize((256, 256), Image.Resampling.BILINEAR))
    expected = resized.transpose(2, 0, 1) / 127.5 - 1
    expected = np.concatenate([expected, expected.max(0, keepdims=True), expected.mean(0, keepdims=True)])
    if side == "prepare_kizu":
        np.testing.assert_array_equal(np.rint((found[:3] + 1) * 127.5), resize_reference(frame, SPEC))
    off = np.abs(found - expected)
    assert off.max() <= {"prepare_torch": 1.01 * LEVEL, "prepare_opencv": 0.5}.get(side, 1e-6), side
    assert off.mean() <= {"prepare_torch": 0.5 * LEVEL, "prepare_opencv": 0.08}.get(side, 1e-6), side


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("turn", "side"), [(turn, side) for turn in TURNS for side in SIDES])
def test_prepare(benchmark: Any, turn: int, side: str, frames: Sequence[Frame]) -> None:
    prepare = MAKE[side]()
    if turn == 0:
        for frame in frames[:2]:
            check(side, frame, prepare(frame))
    turns = itertools.cycle(frames)
    benchmark.extra_info["side"] = side
    benchmark.pedantic(lambda: prepare(next(turns)), rounds=ROUNDS, warmup_rounds=5)


# A camera's frame that no cache holds, against one pass over it


def last_level_cache() -> int:
    """Bytes of the largest cache, as the system says; 64 MiB where it does not."""
    sizes = [64 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 0))
    return max(sizes)


@pytest.fixture(scope="module")
def evicted() -> Iterator[Frame]:
    """5-megapixel frames in turn, so many that each has left the caches when it comes again."""
    count = -(-3 * last_level_cache() // (2048 * 2448))
    rng = np.random.default_rng(2)
    ring = rng.integers(0, 255, (count, 2048, 2448), np.uint8)  # none has a 255, for memchr to read to the end
    return itertools.cycle(ring)


def readers() -> dict[str, Callable[[Frame], object]]:
    """Ways to read each byte of a frame once."""
    import cv2

    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    return {
        "memchr": lambda frame: memchr(frame.ctypes.data, 255, frame.nbytes),
        "cv2.norm": lambda frame: cv2.norm(frame, cv2.NORM_L1),
        "numpy.bitwise_xor": lambda frame: np.bitwise_xor.reduce(frame.reshape(-1).view(np.uint64)),
    }


def fastest_reader(evicted: Iterator[Frame]) -> tuple[str, Callable[[Frame], object]]:
    def seconds(read: Callable[[Frame], object]) -> float:
        taken = []
        for frame in itertools.islice(evicted, 15):
            start = perf_counter()
            read(frame)
            taken.append(perf_counter() - start)
        return float(np.median(taken))

    return min(readers().items(), key=lambda item: seconds(item[1]))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("turn", "side"), [(turn, side) for turn in TURNS for side in ("frame_read", "prepare_5mp")])
def test_prepare_of_a_frame_in_no_cache(benchmark: Any, turn: int, side: str, evicted: Iterator[Frame]) -> None:
    spec = PrepareSpec(size=(256, 256), color="mono")
    benchmark.extra_info["side"] = side
    if side == "prepare_5mp":
        preparer, out = Preparer(spec), np.empty((1, 256, 256), np.float32)
        frame = next(evicted)
        preparer(frame, out)
        if turn == 0:
            pillow = np.asarray(Image.fromarray(frame).resize((256, 256), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(np.rint((out[0] + 1) * 127.5), pillow)
        benchmark.pedantic(lambda: preparer(next(evicted), out), rounds=ROUNDS, warmup_rounds=5)
    else:
        name, read = fastest_reader(evicted)
        assert readers()["memchr"](next(evicted)) is None  # it did read to the end
        benchmark.extra_info["reader"] = name
        benchmark.pedantic(lambda: read(next(evicted)), rounds=ROUNDS, warmup_rounds=5)
