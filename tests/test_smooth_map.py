"""smooth_map: Pillow's bilinear resize and SciPy's Gaussian, and the twin's bits for any machine and threads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from kizu.errors import ScoreError
from kizu.heat_map import HeatMaps, MapSmoother, smooth_map
from kizu.heat_map_reference import axis_reference
from kizu.prepare import PrepareSpec, Tiles
from rows import OPS

Map = NDArray[np.float32]
ROW = next(row for row in OPS if row.name == "smooth_map")
BILINEAR = Image.Resampling.BILINEAR


def noise(seed: int, *shape: int) -> Map:
    return np.random.default_rng(seed).random(shape, np.float32)


def by_scipy(map: Map, size: tuple[int, int], sigma: tuple[float, float]) -> NDArray[np.float64]:
    """The two steps, one after the other."""
    enlarged = np.asarray(Image.fromarray(map).resize((size[1], size[0]), BILINEAR), np.float64)
    smoothed: NDArray[np.float64] = gaussian_filter(enlarged, sigma, mode="nearest", truncate=4.0)
    return smoothed


CASES = [
    ((16, 12), (90, 71), (4.0, 4.0)),
    ((9, 13), (50, 33), (0.0, 0.0)),
    ((9, 13), (50, 33), (0.0, 3.0)),
    ((40, 37), (40, 37), (1.5, 0.7)),
    ((120, 90), (31, 40), (1.0, 1.0)),
    ((20, 90), (60, 23), (2.5, 1.5)),
    ((1, 1), (17, 9), (2.0, 2.0)),
    ((30, 7), (1, 1), (0.5, 0.5)),
    ((6, 5), (21, 19), (15.0, 15.0)),
    ((64, 64), (300, 420), (18.75, 26.25)),
]


@pytest.mark.parametrize(("map_size", "size", "sigma"), CASES, ids=str)
def test_it_is_pillows_resize_and_scipys_gaussian(
    map_size: tuple[int, int], size: tuple[int, int], sigma: tuple[float, float]
) -> None:
    for seed in range(3):
        map = noise(seed, *map_size)
        found = smooth_map(map, size, sigma=sigma)
        assert found.shape == size
        np.testing.assert_allclose(found, by_scipy(map, size, sigma), rtol=0, atol=1e-6)


def test_a_part_of_the_region_is_covered_and_the_rest_counts_as_nothing() -> None:
    map = noise(1, 24, 20)
    whole = np.zeros((64, 80))  # the part's borders lie between pixels
    whole[8:56, 20:70] = np.asarray(Image.fromarray(map).resize((50, 48), BILINEAR))
    for sigma in (0.0, 3.0):
        found = smooth_map(map, (64, 80), sigma=(sigma, sigma), covered=(20, 8, 70, 56))
        expected = gaussian_filter(whole, sigma, mode="nearest", truncate=4.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_weights_of_a_part_that_begins_within_a_pixel() -> None:
    matrix = axis_reference(4, 10, 2.5, 7.5, 0.0)
    np.testing.assert_allclose(matrix.sum(1), [0, 0, 1, 1, 1, 1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(matrix[2], [1, 0, 0, 0], atol=1e-6)  # at the part's border: its edge, repeated
    np.testing.assert_allclose(matrix[4], [0, 0.9, 0.1, 0], atol=1e-6)  # (4.5 - 2.5) 4 / 5 - 0.5 = 1.1


def test_a_constant_stays_itself_and_sums_spread_evenly() -> None:
    np.testing.assert_allclose(smooth_map(np.full((7, 9), 0.25, np.float32), (65, 50), sigma=(3, 5)), 0.25, rtol=1e-6)
    point = np.zeros((61, 61), np.float32)
    point[30, 30] = 1
    found = smooth_map(point, (61, 61), sigma=(4, 4)).astype(np.float64)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    np.testing.assert_allclose(found, found[::-1, ::-1], atol=1e-9)
    assert found[30, 34] / found[30, 30] == pytest.approx(math.exp(-0.5), rel=1e-5)


sides = st.integers(1, 70)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32), st.tuples(sides, sides), st.tuples(sides, sides),
    st.tuples(st.floats(0, 1), st.floats(0, 1)), st.integers(1, 4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True), st.booleans(),
)  # fmt: skip
def test_any_geometry_has_the_bits_of_the_twin(
    seed: int,
    map_size: tuple[int, int],
    size: tuple[int, int],
    sigma: tuple[float, float],
    threads: int,
    cuts: list[float],
    partly: bool,
) -> None:
    map = noise(seed, *map_size)
    scaled = sigma[0] * size[0] / 3, sigma[1] * size[1] / 3
    (left, right), (top, bottom) = sorted(cuts[:2]), sorted(cuts[2:])
    covered = (left * size[1], top * size[0], right * size[1], bottom * size[0])
    if not partly or covered[0] >= covered[2] or covered[1] >= covered[3]:
        covered = None  # type: ignore[assignment]
    found = ROW.run(map, size, sigma=scaled, covered=covered, threads=threads)
    np.testing.assert_array_equal(found, ROW.reference(map, size, sigma=scaled, covered=covered))


def test_batch_position_and_threads_change_no_bit() -> None:
    maps = noise(2, 9, 45, 37)
    each = np.stack([smooth_map(map, (110, 67), sigma=(5, 2)) for map in maps])
    for threads in (1, 2, 3, 4):
        smoother = MapSmoother((45, 37), (110, 67), sigma=(5, 2), threads=threads)
        for n in (9, 1, 4):
            out = np.full((n, 110, 67), np.nan, np.float32)
            smoother(maps[:n], out)
            np.testing.assert_array_equal(out, each[:n])


def test_nothing_outside_the_output_is_written() -> None:
    memory = np.full(200 + 2 * 50 * 31, -5, np.float32)
    MapSmoother((9, 8), (50, 31), sigma=(1, 1), threads=2)(noise(3, 2, 9, 8), memory[100:-100].reshape(2, 50, 31))
    assert (memory[:100] == -5).all()
    assert (memory[-100:] == -5).all()
    assert (memory[100:-100] >= 0).all()


def test_what_is_not_finite_stays_near() -> None:
    map = noise(4, 40, 40)
    map[5, 5] = np.nan
    found = smooth_map(map, (80, 80), sigma=(1, 1))
    assert np.isnan(found[10, 10])
    assert np.isfinite(found[30:, 30:]).all()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"map_size": (0, 5)}, "must have from 1 to 32768"),
        ({"size": (40000, 5)}, "must have from 1 to 32768"),
        ({"size": (5.5, 5)}, "incompatible"),
        ({"sigma": (-1.0, 1.0)}, "sigma is -1 pixels, but must be from 0 to the region's 30"),
        ({"sigma": (1.0, math.nan)}, "sigma is nan"),
        ({"sigma": (31.0, 1.0)}, "sigma is 31"),
        ({"covered": (0, 0, 21, 30)}, "from 0 to 21, but that must be a part of 0 to 20"),
        ({"covered": (5, 0, 5, 30)}, "covers the region's pixels from 5 to 5"),
        ({"covered": (-1, 0, 20, 30)}, "from -1 to 20"),
        ({"covered": (math.nan, 0, 20, 30)}, "from nan to 20"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_a_geometry_that_makes_no_sense_is_refused(change: dict[str, Any], fault: str) -> None:
    arguments: dict[str, Any] = {"map_size": (10, 8), "size": (30, 20), "sigma": (1.0, 1.0), **change}
    with pytest.raises(ScoreError, match=fault):
        MapSmoother(**arguments)


def test_arrays_that_do_not_fit_are_refused() -> None:
    smoother = MapSmoother((10, 8), (30, 20), sigma=(1, 1))
    maps, out = noise(0, 2, 10, 8), np.empty((2, 30, 20), np.float32)
    smoother(maps, out)
    wrong: list[tuple[Any, Any, str]] = [
        (maps[0], out, r"map has the shape \(10, 8\), but must be \(maps, 10, 8\)"),
        (maps[:, :, ::-1], out, "map must be C-contiguous"),
        (maps[:1], out, "as many maps"),
        (maps[:0], out[:0], "map has the shape"),
        (maps.astype(np.float64), out, "map must be float32"),
        (maps, out[:, :29], "out has the shape"),
        (maps, np.broadcast_to(out[:1], out.shape), "out must be C-contiguous|read-only|writeable"),
        ([[1.0]], out, "incompatible"),
    ]
    for given_maps, given_out, fault in wrong:
        with pytest.raises(ScoreError, match=fault):
            smoother(given_maps, given_out)


# Heat maps of frames


def test_a_frames_heat_map_is_its_map_enlarged_and_smoothed() -> None:
    map = noise(5, 32, 40)
    maps = HeatMaps(PrepareSpec(size=(32, 40)), threads=2)
    for frame_size, sigma in (((96, 120), 4.0), ((50, 33), 4.0), ((96, 120), 0.0), ((96, 120), 4.0)):
        found = maps(map[None], frame_size, sigma=sigma)
        scaled = sigma * frame_size[0] / 32, sigma * frame_size[1] / 40
        np.testing.assert_allclose(found, by_scipy(map, frame_size, scaled), rtol=0, atol=1e-6)


def test_outside_the_crop_there_is_nothing() -> None:
    map = noise(6, 32, 32)
    found = HeatMaps(PrepareSpec(size=(32, 32), crop=(10, 20, 80, 70)))(map[None], (100, 90), sigma=2.0)
    assert found.shape == (100, 90)
    np.testing.assert_allclose(found[20:70, 10:80], by_scipy(map, (50, 70), (2 * 50 / 32, 2 * 70 / 32)), atol=1e-6)
    found[20:70, 10:80] = 0
    assert not found.any()


def test_a_centre_crop_covers_the_centre() -> None:
    map = noise(7, 32, 32)
    found = HeatMaps(PrepareSpec(size=(32, 32), resize=(40, 64)))(map[None], (80, 128), sigma=0.0)
    expected = np.zeros((80, 128))
    expected[8:72, 32:96] = np.asarray(Image.fromarray(map).resize((64, 64), BILINEAR))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for frame_size in ((77, 131), (3001, 17), (1, 1)):
        for resize in ((33, 47), (224, 32), (999, 1001)):
            spec = PrepareSpec(size=(32, 32), resize=resize)
            assert np.isfinite(HeatMaps(spec)(map[None], frame_size, sigma=1.0)).all()


def test_the_maps_of_views_are_put_where_they_were_computed() -> None:
    # Two tiles across a frame of 60 x 90, columns 0 to 49 and 40 to 89; the largest value where they overlap.
    spec = PrepareSpec(size=(60, 50), tiles=Tiles(1, 2, 10), rotations=3)
    maps = np.stack([noise(seed, 60, 50) for seed in range(6)])
    found = HeatMaps(spec)(maps, (60, 90), sigma=0.0)
    np.testing.assert_array_equal(found[:, :40], maps[0][:, :40])  # of each three the one that is not turned
    np.testing.assert_array_equal(found[:, 50:], maps[3][:, 10:])
    np.testing.assert_array_equal(found[:, 40:50], np.maximum(maps[0][:, 40:], maps[3][:, :10]))
    boxes = [(5, 3, 55, 63), (20, 40, 70, 100)]
    found = HeatMaps(PrepareSpec(size=(60, 50), boxes=True))(maps[:2], (120, 90), sigma=0.0, boxes=boxes)
    np.testing.assert_array_equal(found[3:40, 5:55], maps[0][:37])
    np.testing.assert_array_equal(found[63:100, 20:70], maps[1][23:])
    assert not found[100:].any()
