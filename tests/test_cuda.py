"""The operations on a CUDA device, from Python: the bits of the NumPy twins.

Where there is no device the same tests run against an extension built with KIZU_CUDA=EMULATED; see tests/cuda_on_cpu.
"""

from __future__ import annotations

import threading
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kizu import _core
from kizu.errors import ScoreError
from kizu.heat_map import MapSmoother
from kizu.heat_map_reference import smooth_map_reference
from kizu.pixel_format import PIXEL_FORMATS
from kizu.prepare import Preparer, PrepareSpec, Tiles, output_shape
from kizu.prepare_reference import prepare_reference, resize_reference
from kizu.scoring import RULES, Scorer
from kizu.scoring_reference import map_reference, score_reference


def camera(rng: np.random.Generator, name: str, height: int, width: int) -> Any:
    """A frame of noise in a pixel format."""
    found = PIXEL_FORMATS[name]
    top = 256 if found.dtype == np.uint8 else 1 << found.bit_depth
    return rng.integers(0, top, found.array_shape(height, width), found.dtype)


VIEWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "crop": {"crop": (3, 5, 61, 44)},
    "centre": {"resize": (41, 37)},
    "tiles": {"tiles": Tiles(2, 3, 4)},
    "rotations": {"rotations": 5},
    "tiles turned": {"tiles": Tiles(2, 1, 3), "rotations": 4},
}


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize(
    "name", ["RGB8", "BGR8", "Mono8", "RGB12", "Mono16", "BayerRG8", "BayerGB10", "Mono10p", "Mono12Packed"]
)
def test_prepare_is_the_twin(cuda: None, name: str, views: str, half: bool) -> None:
    rng = np.random.default_rng(zlib.crc32(f"{name} {views} {half}".encode()))
    found = PIXEL_FORMATS[name]
    color: Any = "rgb" if found.channels == 3 else "mono"
    depth: Any = found.bit_depth
    spec = PrepareSpec(size=(33, 36), color=color, bit_depth=depth, **VIEWS[views])
    frames = [camera(rng, name, 60, 70) for _ in range(2)]
    preparer = Preparer(spec, pixel_format=name, device="cuda")
    out = np.full(output_shape(frames, spec, pixel_format=name), np.nan, np.float16 if half else np.float32)
    preparer(frames, out)
    expected = prepare_reference(frames, spec, pixel_format=name)
    np.testing.assert_array_equal(out, expected.astype(out.dtype))
    integers = np.zeros(output_shape(frames, spec, pixel_format=name, resized=True), spec.dtype)
    preparer.resize(frames, integers)
    np.testing.assert_array_equal(integers, resize_reference(frames, spec, pixel_format=name))


@pytest.mark.gpu
@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 90)), st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.booleans(), st.sampled_from([(1, 1), (-1, 1), (1, -1), (2, 3)]), st.integers(0, 2**32),
)  # fmt: skip
def test_prepare_of_any_geometry(
    cuda: None, shape: tuple[int, int], size: tuple[int, int], transposed: bool, steps: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = shape[::-1] if transposed else shape
    frame = rng.integers(0, 256, (height * abs(steps[0]), width * abs(steps[1]), 3), np.uint8)[:: steps[0], :: steps[1]]
    spec = PrepareSpec(size=size)
    out = np.full((5, *size), np.nan, np.float32)
    Preparer(spec, device="cuda")(frame, out)
    np.testing.assert_array_equal(out, prepare_reference(frame, spec))


@pytest.mark.gpu
def test_a_preparer_follows_frames_and_boxes_that_change(cuda: None) -> None:
    rng = np.random.default_rng(1)
    spec = PrepareSpec(size=(20, 24), boxes=True)
    preparer = Preparer(spec, device="cuda")
    for _ in range(12):
        height, width = (int(n) for n in rng.integers(30, 90, 2))
        frame = rng.integers(0, 256, (height, width, 3), np.uint8)
        boxes = []
        for _ in range(int(rng.integers(1, 4))):
            left, top = int(rng.integers(0, width - 1)), int(rng.integers(0, height - 1))
            boxes.append((left, top, int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))))
        out = np.full(output_shape(frame, spec, boxes=boxes), np.nan, np.float32)
        preparer(frame, out, boxes=boxes)
        np.testing.assert_array_equal(out, prepare_reference(frame, spec, boxes=boxes).reshape(out.shape))


@pytest.mark.gpu
def test_frames_that_a_device_cannot_read_in_place(cuda: None) -> None:
    # Samples of 16 bits at odd addresses and strides, and one channel of many.
    rng = np.random.default_rng(5)
    memory = rng.integers(0, 256, 100_000, np.uint8)
    odd = np.ndarray((40, 37), np.uint16, buffer=memory.data, strides=(75, 2))
    sparse = np.moveaxis(rng.integers(0, 256, (50, 60, 300), np.uint8), 2, 0)[7]
    depths: tuple[Any, ...] = (16, 8)
    for frame, depth in zip((odd, sparse), depths, strict=True):
        spec = PrepareSpec(size=(24, 20), color="mono", bit_depth=depth)
        out = np.full((1, 24, 20), np.nan, np.float32)
        Preparer(spec, device="cuda")(frame, out)
        np.testing.assert_array_equal(out, prepare_reference(frame, spec))


@pytest.mark.gpu
@pytest.mark.parametrize(("images", "views"), [(70_000, 2), (65_535, 1)])
def test_more_images_than_one_launch_takes(cuda: None, images: int, views: int) -> None:
    logit = np.random.default_rng(6).normal(size=images).astype(np.float32)
    out = np.full(images // views, np.nan, np.float32)
    Scorer("logit", views=views, device="cuda")({"logit": logit}, out)
    np.testing.assert_array_equal(out, (-logit).reshape(-1, views).max(1))


@pytest.mark.gpu
def test_no_boxes_make_no_inputs(cuda: None) -> None:
    frame, spec = np.zeros((9, 9, 3), np.uint8), PrepareSpec(size=(8, 8), boxes=True)
    out = np.empty((0, 5, 8, 8), np.float32)
    Preparer(spec, device="cuda")(frame, out, boxes=[])
    with pytest.raises(ValueError, match=r"the output's shape must be \(0, 5, 8, 8\)"):
        Preparer(spec, device="cuda")(frame, np.empty((1, 5, 8, 8), np.float32), boxes=[])


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_score_is_the_twin(cuda: None, rule: str, views: int, half: bool) -> None:
    rng = np.random.default_rng(7)
    kind = np.float16 if half else np.float32
    weight = 0.3 if RULES[rule].weighs else 0.0
    scorer = Scorer(rule, weight=weight, views=views, reduce="mean", device="cuda")
    for channels, side, features in ((1, 5, 1), (3, 48, 700), (5, 50, 4100)):
        n = 2 * views
        tensors = {
            "x": rng.normal(size=(n, channels, side, side)).astype(kind),
            "x_hat": rng.normal(size=(n, channels, side, side)).astype(kind),
            "f": rng.normal(size=(n, features)).astype(kind),
            "f_hat": rng.normal(size=(n, features)).astype(kind),
            "logit": rng.normal(size=n).astype(kind),
        }
        out = np.full(2, np.nan, np.float32)
        maps = np.full((n, side, side), np.nan, np.float32) if RULES[rule].residual else None
        scorer(tensors, out, maps)
        np.testing.assert_array_equal(out, score_reference(rule, tensors, weight=weight, views=views, reduce="mean"))
        if maps is not None:
            np.testing.assert_array_equal(maps, map_reference(tensors["x"], tensors["x_hat"]))


@pytest.mark.gpu
def test_smooth_map_is_the_twin(cuda: None) -> None:
    maps = np.random.default_rng(3).random((3, 24, 17), np.float32)
    out = np.full((3, 90, 41), np.nan, np.float32)
    MapSmoother((24, 17), (90, 41), sigma=(3.0, 1.5), device="cuda")(maps, out)
    for map, smoothed in zip(maps, out, strict=True):
        np.testing.assert_array_equal(smoothed, smooth_map_reference(map, (90, 41), sigma=(3.0, 1.5)))


@pytest.mark.gpu
def test_several_threads_have_a_stream_each(cuda: None) -> None:
    spec = PrepareSpec(size=(16, 16))
    frames = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(3)]
    expected = [prepare_reference(frame, spec) for frame in frames]
    wrong: list[int] = []

    def work(i: int) -> None:
        preparer, out = Preparer(spec, device="cuda"), np.empty((5, 16, 16), np.float32)
        for _ in range(5):
            preparer(frames[i], out)
            if not np.array_equal(out, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_device_that_is_not_there_is_refused() -> None:
    spec = PrepareSpec(size=(16, 16))
    unknown: Any = "tpu"
    with pytest.raises(ValueError, match="device is 'tpu', but must be 'cpu' or 'cuda'"):
        Preparer(spec, device=unknown)
    with pytest.raises(ScoreError, match="device is 'tpu'"):
        Scorer("logit", device=unknown)
    with pytest.raises(ScoreError, match="device is 'tpu'"):
        MapSmoother((4, 4), (8, 8), sigma=(0, 0), device=unknown)
    if _core.cuda_devices() == 0:
        with pytest.raises(
            ValueError, match=r"device is 'cuda', but (the driver offers no|kizu was built without) CUDA"
        ):
            Preparer(spec, device="cuda")
