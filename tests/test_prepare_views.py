"""prepare's views of a frame: tiles, boxes, centre crop, rotations and batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from helpers import python_output
from kizu import _core
from kizu.errors import FrameError
from kizu.pixel_format import PIXEL_FORMATS
from kizu.prepare import Preparer, PrepareSpec, Tiles, output_shape, prepare
from kizu.prepare_reference import prepare_reference, resize_reference, rotate_reference

BILINEAR = Image.Resampling.BILINEAR


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def resized(frames: Any, spec: PrepareSpec, *, boxes: Any = None) -> NDArray[Any]:
    out = np.empty(output_shape(frames, spec, boxes=boxes, resized=True), spec.dtype)
    Preparer(spec).resize(frames, out, boxes=boxes)
    return out


# Tiles


@given(st.integers(1, 5000), st.integers(1, 12), st.integers(0, 300))
def test_tiles_are_equal_cover_everything_and_overlap_enough(n: int, count: int, overlap: int) -> None:
    tiles = Tiles(count, 1, overlap)
    try:
        found = tiles.along(n, count)
    except FrameError:
        # Refused only where no tile of the frame could be larger than the overlap, or there are more tiles than pixels.
        assert -(-(n + (count - 1) * overlap) // count) <= overlap or count > n
        return
    assert len(found) == count
    assert len({size for _, size in found}) == 1
    assert found[0][0] == 0
    assert found[-1][0] + found[-1][1] == n
    for (begin, size), (following, _) in itertools.pairwise(found):
        assert begin <= following <= begin + size - overlap
    if count > 1:  # and no tile is larger than it must be
        assert (found[0][1] - 1) * count < n + (count - 1) * overlap


@settings(max_examples=60, deadline=None)
@given(
    st.data(), st.integers(1, 120), st.integers(1, 120), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9),
    st.booleans(),
)  # fmt: skip
def test_tiles_are_crops(
    data: st.DataObject, height: int, width: int, rows: int, columns: int, overlap: int, cropped: bool
) -> None:
    frame, size = noise(height, height, width, 3), (17, 12)
    crop = (width // 3, height // 4, width, height) if cropped else None
    spec = PrepareSpec(size=size, crop=crop, tiles=Tiles(rows, columns, overlap))
    try:
        regions = spec.crop_and_cut(height, width)
    except FrameError:
        with pytest.raises(FrameError, match=r"tiles that overlap by \d+ pixels do not fit"):
            resized(frame, spec)
        return
    assert spec.views == rows * columns == len(regions)
    found = resized(frame, spec).reshape(-1, 3, *size)
    for planes, region in zip(found, regions, strict=True):
        np.testing.assert_array_equal(planes, resized(frame, PrepareSpec(size=size, crop=region)))


def test_tiles_come_row_by_row() -> None:
    frame = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 10, 0), 10, 1)
    out = resized(frame, PrepareSpec(size=(4, 4), color="mono", tiles=Tiles(2, 3)))
    assert [int(tile.max()) for tile in out] == [int(tile.min()) for tile in out] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("values", [(0, 1, 0), (1, 0, 0), (1, 1, -1), (1.5, 1, 0), (True, 1, 0)])
def test_tiles_that_make_no_sense_are_refused(values: Any) -> None:
    with pytest.raises(FrameError, match="tiles are"):
        Tiles(*values)


# Boxes


def test_boxes_are_crops() -> None:
    frame, size = noise(1, 90, 130, 3), (20, 31)
    preparer = Preparer(PrepareSpec(size=size, boxes=True), threads=2)
    assert preparer.spec.views is None
    rng = np.random.default_rng(2)
    for count in (3, 1, 7, 0, 2, 2):  # another number of them each time
        boxes = []
        for _ in range(count):
            left, top = int(rng.integers(0, 130)), int(rng.integers(0, 90))
            boxes.append((left, top, int(rng.integers(left + 1, 131)), int(rng.integers(top + 1, 91))))
        out = np.empty(output_shape(frame, preparer.spec, boxes=boxes), np.float32)
        preparer(frame, out, boxes=boxes)
        for planes, box in zip(out.reshape(-1, 5, *size), boxes, strict=True):
            np.testing.assert_array_equal(planes, prepare(frame, PrepareSpec(size=size, crop=box)))


def test_boxes_may_be_an_array_of_integers() -> None:
    frame, spec = noise(1, 40, 50, 3), PrepareSpec(size=(8, 8), boxes=True)
    boxes: Any = np.array([[1, 2, 30, 40], [0, 0, 50, 40]])
    np.testing.assert_array_equal(prepare(frame, spec, boxes=boxes), prepare(frame, spec, boxes=boxes.tolist()))


@pytest.mark.parametrize(
    ("boxes", "fault"),
    [
        (None, r"pass boxes=\[\(left, top, right, bottom\), ...\]"),
        ([(0, 0, 51, 40)], r"box .* = \(0, 0, 51, 40\) does not lie in the frame, which is 50 pixels wide and 40 high"),
        ([(0, 0, 50, 40), (-1, 0, 5, 5)], r"\(-1, 0, 5, 5\) does not lie"),
        ([(5, 0, 5, 5)], r"\(5, 0, 5, 5\) does not lie"),
        ([(0, 0, 5)], r"a box is \(0, 0, 5\), but must be whole pixels \(left"),
        (["abcd"], "a box is 'abcd'"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes: Any, fault: str) -> None:
    preparer = Preparer(PrepareSpec(size=(8, 8), boxes=True))
    out = np.zeros((max(1, len(boxes or ())), 5, 8, 8), np.float32)
    if len(out) == 1:
        out = out[0]
    with pytest.raises(FrameError, match=fault):
        preparer(noise(0, 40, 50, 3), out, boxes=boxes)
    assert not out.any()


def test_boxes_are_refused_where_the_model_has_none() -> None:
    with pytest.raises(FrameError, match=r"boxes were given, but .*PrepareSpec.boxes is False"):
        prepare(noise(0, 40, 50, 3), PrepareSpec(size=(8, 8)), boxes=[(0, 0, 5, 5)])


# Centre crop


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 256), st.integers(1, 256), st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(0, 30),
    st.integers(0, 30), st.sampled_from([8, 12]),
)  # fmt: skip
def test_the_centre_of_the_resized_image_is_kept(
    height: int, width: int, size: tuple[int, int], more_rows: int, more_columns: int, depth: Any
) -> None:
    frame = noise(height, height, width, 3)
    if depth > 8:
        frame = frame.astype(np.uint16) * 16  # type: ignore[assignment]
    larger = (size[0] + more_rows, size[1] + more_columns)
    found = resized(frame, PrepareSpec(size=size, bit_depth=depth, resize=larger))
    whole = resized(frame, PrepareSpec(size=larger, bit_depth=depth))
    top, left = more_rows // 2, more_columns // 2
    np.testing.assert_array_equal(found, whole[:, top : top + size[0], left : left + size[1]])
    if depth == 8:
        picture = Image.fromarray(frame)
        # Both passes, in the order of the definition, by any version of Pillow.
        rows_first = height - larger[0] > max(0, 2 * (width - larger[1]))
        between = (width, larger[0]) if rows_first else (larger[1], height)
        pillow = np.asarray(picture.resize(between, BILINEAR).resize(larger[::-1], BILINEAR))
        np.testing.assert_array_equal(whole, np.moveaxis(pillow, 2, 0))


# Rotation


@pytest.mark.parametrize("side", [1, 2, 31, 32])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_quarter_turns_of_a_square_are_exact(side: int, count: int) -> None:
    frame = noise(side, side, side, 3)
    found = prepare(frame, PrepareSpec(size=(side, side), rotations=count))
    assert found.shape == (count, 5, side, side)
    for r in range(count):
        quarters, rest = divmod(4 * r, count)
        if rest == 0:
            upright = prepare(np.rot90(frame, quarters), PrepareSpec(size=(side, side)))
            np.testing.assert_array_equal(found[r], upright)


def test_a_half_turn_of_any_image_is_exact() -> None:
    frame = noise(0, 40, 61, 1)
    found = prepare(frame, PrepareSpec(size=(40, 61), color="mono", rotations=2))
    np.testing.assert_array_equal(found[1, 0], found[0, 0, ::-1, ::-1])


@pytest.mark.parametrize("count", [3, 5, 7, 64])
def test_rotation_is_pillows_inside(count: int) -> None:
    y, x = np.mgrid[0:80, 0:96]
    smooth = (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7 + x / 31)).astype(np.uint8)
    for r in range(0, count, max(1, count // 7)):
        found = rotate_reference(smooth[None], r, count)[0].astype(int)
        expected = np.asarray(Image.fromarray(smooth).rotate(360 * r / count, BILINEAR)).astype(int)
        disc = np.hypot(y - 39.5, x - 47.5) < 36
        assert np.abs(found - expected)[disc].max() <= 2
        assert np.abs(found - expected)[disc].mean() <= 0.6


def test_what_a_rotation_uncovers_is_black() -> None:
    planes = rotate_reference(np.full((1, 32, 64), 255, np.uint8), 1, 4)[0]
    assert (planes[:, 16:48] == 255).all()
    assert not planes[:, :16].any()
    assert not planes[:, 48:].any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 100), st.integers(1, 100), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(2, 9),
    st.sampled_from(["RGB8", "Mono8", "BGR12", "BayerGR8", "Mono12p"]), st.integers(1, 3),
)  # fmt: skip
def test_rotations_are_their_twin(
    height: int, width: int, size: tuple[int, int], rotations: int, name: str, threads: int
) -> None:
    found, rng = PIXEL_FORMATS[name], np.random.default_rng(height * 101 + width)
    shape = (2, *found.array_shape(height + 1, width + 1))
    frames: Any = rng.integers(0, 256 if found.packing else 2**found.bit_depth, shape).astype(found.dtype)
    color: Any = "rgb" if found.channels == 3 else "mono"
    depth: Any = found.bit_depth
    spec = PrepareSpec(size=size, color=color, bit_depth=depth, rotations=rotations, tiles=Tiles(1, 2))
    assert spec.views == 2 * rotations
    out = np.empty((2 * 2 * rotations, spec.channels, *size), np.float32)
    Preparer(spec, pixel_format=name, threads=threads)(frames, out)
    np.testing.assert_array_equal(out, prepare_reference(frames, spec, pixel_format=name))


# Batches


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"tiles": Tiles(2, 2, 3)}, {"rotations": 3}, {"resize": (30, 40)}, {"boxes": True}], ids=str
)
def test_a_batch_is_its_frames_one_by_one(options: dict[str, Any], threads: int) -> None:
    frames = noise(3, 5, 70, 61, 3)
    spec = PrepareSpec(size=(24, 26), **options)
    boxes = [(1, 2, 30, 40), (5, 5, 61, 70)] if spec.boxes else None
    one_by_one = [prepare_reference(frame, spec, boxes=boxes).reshape(-1, 5, 24, 26) for frame in frames]
    preparer = Preparer(spec, threads=threads)
    for batch in (frames, list(frames), tuple(frames), frames[::-1][::-1]):
        out = np.full((len(one_by_one[0]) * 5, 5, 24, 26), np.nan, np.float32)
        preparer(batch, out, boxes=boxes)
        np.testing.assert_array_equal(out, np.concatenate(one_by_one))
    backwards = np.empty_like(out)
    preparer(frames[::-1], backwards, boxes=boxes)
    np.testing.assert_array_equal(backwards, np.concatenate(one_by_one[::-1]))
    np.testing.assert_array_equal(resized(frames, spec, boxes=boxes), resize_reference(frames, spec, boxes=boxes))


def test_a_batch_of_one_has_an_axis_for_it() -> None:
    frames, spec = noise(3, 1, 30, 30), PrepareSpec(size=(8, 8), color="mono")
    assert prepare(frames, spec).shape == (1, 1, 8, 8)
    assert prepare([frames[0]], spec).shape == (1, 1, 8, 8)
    assert prepare(frames[0], spec).shape == (1, 8, 8)
    assert prepare(frames[0][:, :, None], spec).shape == (1, 8, 8)  # one frame, its channel spelled out
    np.testing.assert_array_equal(prepare(frames, spec)[0], prepare(frames[0], spec))


@pytest.mark.parametrize(
    ("frames", "shape", "fault"),
    [
        ([], (0, 5, 8, 8), "there are no frames"),
        (np.zeros((0, 9, 9, 3), np.uint8), (0, 5, 8, 8), "there are no frames"),
        ([noise(0, 9, 9, 3), noise(0, 9, 8, 3)], (2, 5, 8, 8), "of one size, but are 9x9 and 9x8"),
        ([noise(0, 9, 9, 3), noise(0, 18, 9, 3)[::2]], (2, 5, 8, 8), "the same strides"),
        ([noise(0, 9, 9, 3), noise(0, 9, 9)], (2, 5, 8, 8), r"shape is \(9, 9\), but the model expects"),
        ([noise(0, 9, 9, 3), "frame"], (2, 5, 8, 8), "the frame is a str"),
        (noise(0, 2, 9, 9, 3), (1, 5, 8, 8), r"the output's shape must be \(2, 5, 8, 8\)"),
        (noise(0, 2, 9, 9, 3), (5, 8, 8), r"shape is \(2, 9, 9, 3\), but the model expects"),
        (noise(0, 9, 9, 3), (1, 5, 8, 8), r"the output's shape must be \(5, 8, 8\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(frames: Any, shape: tuple[int, ...], fault: str) -> None:
    out = np.zeros(shape, np.float32)
    with pytest.raises((FrameError, ValueError), match=fault):
        Preparer(PrepareSpec(size=(8, 8)))(frames, out)
    assert not out.any()


def test_nothing_outside_the_output_is_written_for_any_view() -> None:
    frames = noise(1, 2, 60, 50, 3)
    views: list[dict[str, Any]] = [{"tiles": Tiles(2, 3)}, {"rotations": 5}, {"resize": (40, 30)}]
    for options in views:
        spec = PrepareSpec(size=(17, 19), **options)
        count = 2 * int(spec.views or 0)
        for dtype in (np.float32, np.float16):
            for threads in (1, 3):
                canary = np.full(512 + count * 5 * 17 * 19, 77, dtype)
                out = canary[256:-256].reshape(count, 5, 17, 19)
                Preparer(spec, threads=threads)(frames, out)
                assert (canary[:256] == 77).all()
                assert (canary[-256:] == 77).all()
                assert not (out == 77).any()


DIGESTS = """
import hashlib
import numpy as np
from kizu.pixel_format import PIXEL_FORMATS
from kizu.prepare import PrepareSpec, Preparer, Tiles, output_shape

VIEWS = ({}, {"tiles": Tiles(2, 2, 1)}, {"rotations": 3}, {"resize": (50, 60)}, {"boxes": True})
total = hashlib.sha256()
for seed in range(len(PIXEL_FORMATS) * len(VIEWS)):
    rng = np.random.default_rng(seed)
    found, options = [*PIXEL_FORMATS.values()][seed // len(VIEWS)], VIEWS[seed % len(VIEWS)]
    shape = (2, *found.array_shape(*(int(n) for n in rng.integers(20, 200, 2))))
    frames = rng.integers(0, 256 if found.packing else 2**found.bit_depth, shape).astype(found.dtype)
    color = "rgb" if found.channels == 3 else "mono"
    size = tuple(int(n) for n in rng.integers(1, 50, 2))
    spec = PrepareSpec(size=size, color=color, bit_depth=found.bit_depth, **options)
    boxes = [(1, 2, 9, 20), (0, 0, 10, 11)] if spec.boxes else None
    for dtype in (np.float32, np.float16):
        out = np.empty(output_shape(frames, spec, pixel_format=found.name, boxes=boxes), dtype)
        Preparer(spec, pixel_format=found.name, threads=1 + seed % 3)(frames, out, boxes=boxes)
        total.update(out.tobytes())
print(total.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits_for_all_formats_and_views() -> None:
    digests = {name: python_output(DIGESTS, environment={"KIZU_SIMD": name}) for name in _core.instruction_sets()}
    assert len(digests) > 1
    assert len(set(digests.values())) == 1, digests


# The spec


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"bit_depth": 9}, "bit_depth is 9, but must be one of 8, 10, 12, 14, 16"),
        ({"reduce": "median"}, "reduce is 'median', but must be one of max, mean"),
        ({"resize": (31, 40)}, r"resize is \(31, 40\), but must be at least the size \(32, 32\)"),
        ({"resize": (40,)}, "resize is"),
        ({"resize": (40, 40000)}, "resize is"),
        ({"rotations": 0}, "rotations is 0, but must be a whole number from 1 to 3600"),
        ({"boxes": True, "crop": (0, 0, 5, 5)}, "in place of crop and tiles"),
        ({"boxes": True, "tiles": Tiles(2, 2)}, "in place of crop and tiles"),
    ],
)
def test_views_that_make_no_sense_are_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(FrameError, match=fault):
        PrepareSpec(**{"size": (32, 32), **change})


@pytest.mark.parametrize(
    ("options", "views"),
    [
        ({}, 1), ({"rotations": 64}, 64), ({"tiles": Tiles(2, 3)}, 6), ({"tiles": Tiles(2, 3), "rotations": 4}, 24),
        ({"boxes": True, "rotations": 4}, None),
    ],
)  # fmt: skip
def test_a_spec_knows_its_views(options: dict[str, Any], views: int | None) -> None:
    assert PrepareSpec(size=(8, 8), **options).views == views
