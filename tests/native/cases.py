"""Writes cases for run_cases: arguments of the native operations with the bits that their NumPy twins give.

    python tests/native/cases.py FILE [TEXT]

writes all cases, or those whose names contain TEXT. The file is lines of text, and arrays as little-endian bytes:

    kizu cases 1
    case operation/what
    key value...
    array name type side...
    <the bytes>
    end
    cases 1

The last line says how many cases there are, so that a file that was cut off is noticed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kizu.heat_map_reference import smooth_map_reference
from kizu.pixel_format import PIXEL_FORMATS
from kizu.prepare import PrepareSpec, Reduce, Tiles
from kizu.prepare_reference import prepare_reference, resize_reference
from kizu.scoring_reference import map_reference, score_reference

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One call: its name ``operation/what``, plain values, the arrays it reads and those it must write."""

    name: str
    values: Mapping[str, object]
    given: Mapping[str, Array]
    expected: Mapping[str, Array]
    devices: tuple[str, ...] = ("cpu", "cuda")

    def with_a_bit_flipped(self, name: str) -> Case:
        """The same with the last number that is expected in ``name`` changed in its lowest bit."""
        wrong = self.expected[name].copy()
        last = np.flatnonzero(wrong == wrong)[-1]  # any NaN is as good as another
        wrong.reshape(-1).view(f"u{wrong.itemsize}")[last] ^= 1
        return replace(self, expected={**self.expected, name: wrong})


def write_cases(path: Path, cases: Iterable[Case]) -> None:
    """Write the file that run_cases reads."""
    count = 0
    with path.open("wb") as file:
        file.write(b"kizu cases 1\n")
        for count, case in enumerate(cases, 1):  # noqa: B007
            file.write(f"case {case.name}\n".encode())
            for key, value in case.values.items():
                file.write(f"{key} {_text(value)}".rstrip().encode() + b"\n")
            for name, array in {**case.given, **case.expected}.items():
                sides = " ".join(map(str, array.shape))
                file.write(f"array {name} {array.dtype.name} {sides}\n".encode())
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() + b"\n")
            file.write(b"end\n")
        file.write(f"cases {count}\n".encode())


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(_text, value))
    return str(int(value)) if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


# prepare and resize


@dataclass(frozen=True)
class Row:
    """A case of prepare, and if ``resize`` says so of resize too: frames of (height, width) to inputs of ``size``."""

    name: str
    frame: tuple[int, int]
    size: tuple[int, int]
    format: str = "RGB8"  # a name of kizu.pixel_format
    layout: str = "plain"
    frames: int = 1
    resize: bool = False
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    white: bool = False  # every sample is the largest
    types: tuple[type[np.floating[Any]], ...] = (np.float32,)  # of the inputs; of several, one call after the other
    lines: Literal["exact", "near", "no"] = "exact"  # "near": they are not quite those of the tables
    spec: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    # sizes: of one thread block and above, no multiples of a vector's width
    Row("identity", (21, 35), (21, 35), resize=True),
    Row("larger", (7, 5), (41, 67), resize=True),
    Row("a_little_smaller", (75, 96), (70, 45), resize=True),
    Row("half_of_it", (64, 128), (32, 64), resize=True),
    Row("strong", (190, 231), (13, 17), resize=True),
    Row("rows_first", (180, 40), (19, 33), resize=True),
    Row("columns_first", (60, 260), (29, 31), resize=True),
    Row("taller_and_narrower", (20, 90), (43, 22)),
    Row("tall", (3000, 4), (3, 2), resize=True),
    Row("wide", (4, 3000), (2, 3), resize=True),
    Row("one_pixel", (1, 1), (3, 5)),
    Row("to_one_pixel", (50, 30), (1, 1)),
    Row("very_large_reduction", (700, 1500), (2, 3), format="Mono8", resize=True),
    Row("very_large_reduction_of_colours", (1100, 260), (5, 2)),
    Row("very_large_reduction_of_tiles", (60, 3100), (1, 1), format="Mono8", frames=2, spec={"tiles": Tiles(1, 2)}),
    Row("very_large_reduction_of_tall_tiles", (1600, 40), (1, 1), frames=2, spec={"tiles": Tiles(2, 1)}),
    Row("white", (40, 50), (23, 19), white=True),
    Row("white_16", (40, 50), (23, 19), format="RGB16", white=True),
    *(Row(f"width_{width}", (30, 47), (9, width)) for width in (1, 3, 4, 8, 15, 16, 31, 32, 33, 65)),
    # 8-bit samples are computed, or read from tables where no line gives their bits
    *(
        Row(f"{lines}_lines_{name}", (40, 50), (23, 19 + len(name)), format=name, lines=lines, spec=spec)
        for lines in ("near", "no")
        for name, spec in (("RGB8", {}), ("BGR8", {"rotations": 3}), ("Mono8", {}), ("BayerRG8", {"pool": False}))
    ),
    Row("no_lines_white", (40, 50), (23, 19), white=True, lines="no"),
    Row("no_lines_float16", (40, 50), (23, 19), types=(np.float16,), lines="no"),
    # formats
    Row("bgr", (50, 61), (24, 37), format="BGR8", resize=True),
    Row("bgr_rows_first", (150, 40), (20, 37), format="BGR8", resize=True),
    Row("mono", (50, 61), (70, 45), format="Mono8", resize=True),
    Row("mono_rows_first", (150, 31), (20, 37), format="Mono8"),
    Row("RGB10", (33, 52), (21, 23), format="RGB10", resize=True),
    Row("BGR12", (33, 52), (70, 45), format="BGR12", resize=True),
    Row("RGB16", (90, 52), (21, 43), format="RGB16", resize=True),
    Row("Mono10", (33, 52), (21, 23), format="Mono10"),
    Row("Mono16", (75, 96), (70, 45), format="Mono16", resize=True),
    *(
        Row(f"Bayer{p}{depth}", (33 + depth, 46 + i), (19, 22 + i), format=f"Bayer{p}{depth}", resize=i < 2)
        for i, p in enumerate(("RG", "GR", "GB", "BG"))
        for depth in (8, 12)
    ),
    Row("bayer_least", (2, 2), (5, 5), format="BayerGB8"),
    Row("bayer_cropped", (30, 41), (12, 13), format="BayerGR8", spec={"crop": (3, 5, 28, 26)}),
    Row("bayer_upside_down", (30, 41), (12, 13), format="BayerRG12", layout="flipped"),
    *(
        Row(f"{p}_{width}", (20, width), (17, 19), format=p, resize=width == 37)
        for p in ("Mono10p", "Mono12p", "Mono12Packed")
        for width in (37, 38, 39, 40)
    ),
    Row("mono12p_cropped", (20, 37), (9, 8), format="Mono12p", spec={"crop": (7, 2, 30, 19)}),
    Row("mono10p_upside_down", (20, 37), (9, 8), format="Mono10p", layout="rows_flipped"),
    # layouts
    *(
        Row(f"{layout}_{name}", (45, 38), (22, 29), format=name, layout=layout)
        for name in ("RGB8", "Mono8", "RGB10")
        for layout in ("flipped", "transposed", "planes", "sliced", "one_row", "one_column")
    ),
    *(
        Row(f"odd_rows_{name}_{width}", (45, 38), (22, width), format=name, layout="odd_rows")
        for name in ("RGB10", "Mono16", "BayerGR12")
        for width in (29, 38)
    ),
    Row("odd_rows_rows_first", (180, 41), (19, 33), format="Mono12", layout="odd_rows"),
    # regions
    Row("crop", (60, 80), (31, 33), spec={"crop": (11, 7, 72, 55)}, resize=True),
    Row("crop_of_one_pixel", (60, 80), (7, 9), spec={"crop": (79, 59, 80, 60)}),
    Row("centre_crop", (60, 80), (30, 34), spec={"resize": (41, 45)}, resize=True),
    Row("centre_crop_of_16_bits", (60, 80), (33, 31), format="RGB16", spec={"resize": (64, 40)}),
    Row("tiles", (70, 93), (20, 21), spec={"tiles": Tiles(2, 3, overlap=6)}, resize=True),
    Row("tiles_of_a_crop", (70, 93), (20, 21), format="Mono8", spec={"tiles": Tiles(3, 2), "crop": (5, 3, 90, 66)}),
    Row("boxes", (64, 96), (21, 26), boxes=((0, 0, 96, 64), (10, 3, 40, 60), (90, 60, 96, 64)), resize=True),
    Row("boxes_of_both_orders", (190, 150), (20, 24), boxes=((0, 0, 20, 190), (3, 5, 150, 33), (7, 0, 47, 170))),
    # the same spec once more: its plan has seen another size and other boxes
    Row("boxes_again", (80, 50), (21, 26), boxes=((1, 2, 50, 80),)),
    Row("larger_again", (90, 60), (41, 67)),
    # turns
    *(
        Row(f"turns_{k}_{name}", (50, 44), (27, 27 if k != 8 else 35), format=name, spec={"rotations": k})
        for k in (4, 5, 8)
        for name in ("RGB8", "Mono8", "RGB16")
    ),
    Row("turns_of_tiles", (50, 70), (18, 23), frames=2, spec={"rotations": 3, "tiles": Tiles(1, 2, overlap=4)}),
    # outputs and batches
    Row("float16", (50, 61), (33, 47), types=(np.float16,)),
    Row("float16_of_16_bits", (50, 61), (33, 47), format="RGB16", types=(np.float16,)),
    Row("float16_turned", (50, 61), (33, 31), format="Mono8", types=(np.float16,), spec={"rotations": 4}),
    # one work space for two plans of the same geometry, as in the binding
    Row("both_types", (50, 61), (33, 47), types=(np.float32, np.float16) * 2),
    Row("both_types_of_16_bits", (50, 61), (33, 47), format="RGB16", types=(np.float16, np.float32) * 2),
    Row("both_types_turned", (50, 61), (33, 31), types=(np.float32, np.float16) * 2, spec={"rotations": 3}),
    Row("no_pool", (50, 61), (24, 37), spec={"pool": False}),
    Row("no_pool_16", (50, 61), (24, 37), format="RGB10", spec={"pool": False}),
    Row("batch", (40, 52), (23, 31), frames=5, resize=True),
    Row("batch_of_boxes", (40, 52), (17, 14), frames=3, boxes=((0, 0, 52, 40), (4, 4, 30, 9))),
    Row("large_batch", (6, 7), (5, 4), frames=150),
)


def _laid_out(row: Row, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], top: int) -> Array:
    """One frame of random samples with the strides that the layout's name says."""
    height, width, *channels = shape

    def samples(*sides: int) -> Array:
        made: Array = rng.integers(top if row.white else 0, top, sides, dtype, endpoint=True)
        return made

    match row.layout:
        case "plain":
            return samples(*shape)
        case "flipped":
            return samples(*shape)[::-1, ::-1, ...]
        case "rows_flipped":
            return samples(*shape)[::-1]
        case "transposed":
            return np.moveaxis(samples(width, height, *channels), 0, 1)
        case "planes":
            return np.moveaxis(samples(*channels, height, width), 0, -1) if channels else samples(*shape)
        case "sliced":
            wider = samples(height + 2, 2 * width + 5, 4)[1:-1, 2 : 2 + 2 * width : 2]
            return wider[..., :3] if channels else wider[..., 0]
        case "odd_rows":  # an odd number of bytes from row to row
            made = samples(*shape)
            strides = (made[0].nbytes + 1, *made.strides[1:])
            rows: Array = np.ndarray(shape, dtype, bytearray(height * strides[0]), strides=strides)
            rows[:] = made
            return rows
        case "one_row":
            return np.broadcast_to(samples(1, width, *channels), shape)
        case "one_column":
            return np.broadcast_to(samples(height, 1, *channels), shape)
    raise ValueError(f"no layout is called {row.layout!r}")


def spread(frames: list[Array]) -> tuple[Array, int, tuple[int, ...]]:
    """The bytes (frames, bytes) from the lowest to the highest address of each frame, where in them its first sample
    lies, and its strides; all frames have the same strides."""
    strides = frames[0].strides
    steps = [(side - 1) * stride for side, stride in zip(frames[0].shape, strides, strict=True)]
    low = sum(min(step, 0) for step in steps)
    size = sum(map(abs, steps)) + frames[0].itemsize
    memory = []
    for frame in frames:
        assert frame.strides == strides
        address = frame.__array_interface__["data"][0] + low
        memory.append(np.frombuffer(ctypes.string_at(address, size), np.uint8))
    return np.stack(memory), -low, strides


def prepare_cases(rows: Iterable[Row]) -> Iterator[Case]:
    """Cases of prepare and resize."""
    for seed, row in enumerate(rows):
        rng = np.random.default_rng(seed)
        found = PIXEL_FORMATS[row.format]
        spec = PrepareSpec(
            size=row.size,
            color="rgb" if found.channels == 3 else "mono",
            bit_depth=found.bit_depth,  # type: ignore[arg-type]
            boxes=bool(row.boxes),
            mean=(0.485, 0.456, 0.406)[: found.channels],
            std=(0.229, 0.224, 0.225)[: found.channels],
            **row.spec,
        )
        top = 255 if found.packing else spec.top
        shape = found.array_shape(*row.frame)
        frames = [_laid_out(row, rng, shape, found.dtype, top) for _ in range(row.frames)]
        memory, first, strides = spread(frames)
        if found.packing:
            strides = (strides[0], 0, 0)
        values: dict[str, object] = {
            "format": (found.channels, found.bit_depth, found.bgr),
            "bayer": found.bayer or "none",
            "packing": found.packing or "none",
            "size": spec.size,
            "resize": spec.resize or spec.size,
            "crop": spec.crop or (),
            "tiles": (spec.tiles.rows, spec.tiles.columns, spec.tiles.overlap) if spec.tiles else (1, 1, 0),
            "rotations": spec.rotations,
            "flags": (spec.boxes, spec.pool),
            "frame": row.frame,
            "strides": (*strides, 0)[:3],
            "first": first,
            "sample": found.dtype.itemsize,
        }
        given = {"frames": memory, **{f"table{i}": table for i, table in enumerate(spec.tables)}}
        if spec.lines and row.lines != "no":
            given["lines"] = np.array(spec.lines, np.float64) + (1e-7 if row.lines == "near" else 0.0)
        if spec.affine:
            given["affine"] = np.array(spec.affine, np.float32)
        if row.boxes:
            given["boxes"] = np.array(row.boxes, np.int32)
        arguments: Any = {"pixel_format": row.format, "boxes": row.boxes or None}
        expected = {
            f"expected{i or ''}": prepare_reference(frames, spec, dtype=dtype, **arguments)
            for i, dtype in enumerate(row.types)
        }
        aligned = all(stride % found.dtype.itemsize == 0 for stride in strides)
        devices = ("cpu", "cuda") if aligned else ("cpu",)  # CUDA reads none that is not
        yield Case(f"prepare/{row.name}", values, given, expected, devices)
        if row.resize:
            resized = resize_reference(frames, spec, **arguments)
            yield Case(f"resize/{row.name}", values, given, {"expected": resized}, devices)


# score


@dataclass(frozen=True)
class ScoreRow:
    """A case of score: the tensors' sizes, and how the views of a frame become one."""

    name: str
    rule: str = "residual_feature"
    images: int = 1
    channels: int = 3
    pixels: int = 1000
    features: int = 100
    views: int = 1
    reduce: Reduce = "max"
    weight: float = 0.1
    half: bool = False
    map: bool = True
    values: tuple[float, ...] = ()  # strewn over the tensors


SCORE_ROWS = (
    # around the lanes and blocks of the canonical order
    *(
        ScoreRow(f"pixels_{n}", pixels=n, features=5001 - n, channels=1 + n % 5, map=n % 2 == 0, half=n % 3 == 0)
        for n in (
            1,
            2,
            31,
            127,
            128,
            129,
            255,
            256,
            257,
            300,
            511,
            1023,
            2047,
            2048,
            2049,
            2304,
            4095,
            4096,
            4097,
            5000,
        )
    ),
    *(
        ScoreRow(
            f"{rule}_{'half' if half else 'float'}{'_map' if map_ else ''}",
            rule,
            images=3,
            channels=5,
            pixels=2500,
            half=half,
            map=map_,
            weight=0.25,
        )
        for rule in ("residual", "residual_feature", "residual_logit")
        for half in (False, True)
        for map_ in (False, True)
    ),
    ScoreRow("logit", "logit", images=5, map=False),
    ScoreRow("logit_half", "logit", images=5, map=False, half=True),
    ScoreRow("logit_views", "logit", images=6, views=3, map=False),
    *(
        ScoreRow(f"batch_{n}", images=n, channels=n, pixels=900 + n, features=257 * n, half=n % 2 == 0)
        for n in (2, 3, 4, 5)
    ),
    ScoreRow("large_batch", images=70, channels=1, pixels=33, features=7),
    ScoreRow("large_features", pixels=10, features=40_001),
    ScoreRow("one_channel_of_many_blocks", channels=1, pixels=30_001, map=False),
    ScoreRow("views_max", images=6, views=3, pixels=400),
    ScoreRow("views_mean", images=6, views=3, pixels=400, reduce="mean"),
    ScoreRow("views_of_one_frame", images=5, views=5, pixels=130, reduce="mean", half=True),
    ScoreRow("many_views", "residual_logit", images=128, views=64, channels=1, pixels=9, map=False),
    ScoreRow("weight_0", weight=0.0),
    ScoreRow("weight_1", weight=1.0),
    ScoreRow("nan", images=16, views=2, pixels=300, values=(np.nan,)),
    ScoreRow("infinities", images=4, views=2, reduce="mean", values=(np.inf, -np.inf)),
    ScoreRow("residual_views", "residual", images=6, views=3, pixels=400, reduce="mean"),
    ScoreRow("residual_nan", "residual", images=4, views=2, pixels=300, values=(np.nan,)),
    ScoreRow("nan_half", "residual_logit", images=3, half=True, values=(np.nan, np.inf)),
    ScoreRow("extremes", values=(3e38, 1e-45, -3e38, -0.0)),
    ScoreRow("subnormal_half", half=True, values=(6e-8, 65504.0, -65504.0, 1e-5)),
)


def score_cases(rows: Iterable[ScoreRow]) -> Iterator[Case]:
    """Cases of score."""
    for seed, row in enumerate(rows, 1000):
        rng = np.random.default_rng(seed)

        def noise(*shape: int) -> Array:
            tensor = rng.normal(0, 2, shape).astype(np.float16 if row.half else np.float32)  # noqa: B023
            for value in row.values:  # noqa: B023
                tensor.reshape(-1)[rng.integers(0, tensor.size)] = value  # noqa: B023
            return tensor

        given = {}
        if row.rule != "logit":
            given = {name: noise(row.images, row.channels, 1, row.pixels) for name in ("x", "x_hat")}
        if row.rule == "residual_feature":
            given |= {name: noise(row.images, row.features) for name in ("f", "f_hat")}
        if row.rule in ("residual_logit", "logit"):
            given["logit"] = noise(row.images)
        expected = {
            "scores": score_reference(row.rule, given, weight=row.weight, views=row.views, reduce=row.reduce),
        }
        if row.map:
            expected["map"] = map_reference(given["x"], given["x_hat"])
        names = ("rule", "weight", "half", "views", "reduce", "images", "channels", "pixels", "features")
        yield Case(f"score/{row.name}", {name: getattr(row, name) for name in names}, given, expected)


# smooth_map


@dataclass(frozen=True)
class SmoothRow:
    """A case of smooth_map: maps of n_in = (height, width) over the part (top, bottom, left, right) of a region."""

    name: str
    n_in: tuple[int, int]
    n_out: tuple[int, int]
    sigma: tuple[float, float]
    maps: int = 1
    part: tuple[float, float, float, float] | None = None


SMOOTH_ROWS = (
    SmoothRow("enlarged", (16, 12), (90, 71), (4.0, 5.0)),
    SmoothRow("not_smoothed", (9, 13), (50, 33), (0.0, 0.0)),
    SmoothRow("same_size", (40, 37), (40, 37), (1.5, 1.875), maps=2),
    SmoothRow("reduced", (120, 90), (31, 40), (1.0, 1.25)),
    SmoothRow("reduced_across_only", (20, 90), (60, 23), (2.5, 3.125)),
    SmoothRow("one_pixel_map", (1, 1), (17, 9), (2.0, 2.5)),
    SmoothRow("to_one_pixel", (30, 7), (1, 1), (0.5, 0.625)),
    SmoothRow("part_of_a_region", (24, 20), (64, 80), (3.0, 3.75), maps=3, part=(4.0, 60.0, 12.5, 67.25)),
    SmoothRow("sigma_beyond_the_region", (6, 5), (21, 19), (15.0, 18.75)),
    SmoothRow("batch", (14, 15), (33, 70), (2.0, 2.5), maps=7),
)


def smooth_map_cases(rows: Iterable[SmoothRow]) -> Iterator[Case]:
    """Cases of smooth_map."""
    for seed, row in enumerate(rows, 2000):
        maps = np.random.default_rng(seed).gamma(1, 1, (row.maps, *row.n_in)).astype(np.float32)
        height, width = map(float, row.n_out)
        top, bottom, left, right = row.part or (0.0, height, 0.0, width)
        covered = (left, top, right, bottom)
        values = {
            "maps": row.maps,
            "rows": (row.n_in[0], row.n_out[0], top, bottom, row.sigma[0]),
            "columns": (row.n_in[1], row.n_out[1], left, right, row.sigma[1]),
        }
        out = [smooth_map_reference(each, row.n_out, sigma=row.sigma, covered=covered) for each in maps]
        yield Case(f"smooth_map/{row.name}", values, {"map": maps}, {"expected": np.stack(out)})


def all_cases() -> list[Case]:
    """Every operation's cases."""
    return [*prepare_cases(ROWS), *score_cases(SCORE_ROWS), *smooth_map_cases(SMOOTH_ROWS)]


if __name__ == "__main__":
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    write_cases(Path(sys.argv[1]), [case for case in all_cases() if wanted in case.name])
