"""Readers on generated files: layouts, labels, colours, unreadable files, where data is looked for."""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kizu.data import Augmentation, available, describe, locate, open_dataset
from kizu.data.locating import cache_folder
from kizu.data.magnetic_tile import Shot, group_tiles
from kizu.data.mvtec import CATEGORIES
from kizu.errors import DataError

FLIP = Augmentation(horizontal_flip=True)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the only place where data sets are looked for."""
    folder = tmp_path / "data"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    monkeypatch.setattr("kizu.data.locating.search_folders", lambda: (folder,))
    monkeypatch.chdir(elsewhere)
    return folder


def put(path: Path, *, mode: str = "L", size: tuple[int, int] = (4, 3), value: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P", "1") else (value,) * len(mode)).save(path)
    return path


def mvtec(root: Path, *, mode: str = "RGB", mask: str = "_mask") -> Path:
    for index in range(10):
        put(root / f"train/good/{index:03d}.png", mode=mode, value=index)
    for kind in ("good", "crack", "chip"):
        for index in range(4):
            put(root / f"test/{kind}/{index:03d}.png", mode=mode, value=index)
            if kind != "good":
                put(root / f"ground_truth/{kind}/{index:03d}{mask}.png", value=255)
    return root


# The paper's table, written out independently: categories by what is done to them.
PAPER = {
    "hv": "carpet grid leather tile",
    "h": "wood toothbrush transistor zipper",
    "hvr": "bottle hazelnut",
    "r": "metal_nut screw",
    "": "cable capsule pill",
}


def test_the_papers_augmentation_of_all_fifteen_categories() -> None:
    table = {name: letters for letters, line in PAPER.items() for name in line.split()}
    assert len(table) == 15
    assert set(table) == set(CATEGORIES)
    for name, a in CATEGORIES.items():
        got = "h" * a.horizontal_flip + "v" * a.vertical_flip + "r" * a.rotation
        assert got == table[name], name


@pytest.mark.parametrize("mask", ["_mask", ""])
def test_mvtec_layout(data: Path, mask: str) -> None:
    root = mvtec(data / "mvtec" / "bottle", mask=mask)
    found = open_dataset("mvtec:bottle")
    assert found.color == "rgb"
    assert found.name == "mvtec:bottle"
    assert Counter(s.kind for s in found.samples) == {"good": 14, "crack": 4, "chip": 4}
    by_name = {s.name: s for s in found.samples}
    crack = by_name["test/crack/002.png"]
    assert (crack.good, crack.path, crack.mask) == (
        False,
        root / "test/crack/002.png",
        root / f"ground_truth/crack/002{mask}.png",
    )
    assert crack.read().shape == (3, 4, 3)
    assert crack.read_mask() is not None
    assert by_name["test/good/001.png"].good
    assert by_name["test/good/001.png"].mask is None
    split = found.split()
    assert all(s.name.startswith("train/") for s in split.train + split.calibration)
    assert all(s.name.startswith("test/") for s in split.validation + split.test)
    assert len(split.validation) == len(split.test) == 6


def test_toothbrush_is_read_in_grey(data: Path) -> None:
    mvtec(data / "mvtec" / "toothbrush")
    found = open_dataset("mvtec:toothbrush")
    assert found.color == "mono"
    assert found.samples[0].read().shape == (3, 4)
    assert found.augmentation == FLIP


def test_mvtec_errors(data: Path) -> None:
    mvtec(data / "mvtec" / "bottle")
    with pytest.raises(DataError, match=r"name a category.*bottle, cable"):
        open_dataset("mvtec")
    with pytest.raises(DataError, match=r"mvtec \(screw\): the data set is not on this machine"):
        open_dataset("mvtec:screw")
    put(data / "mvtec/bottle/train/crack/0.png", mode="RGB")
    with pytest.raises(DataError, match="good parts only"):
        open_dataset("mvtec:bottle")


def test_a_folder_in_the_mvtec_layout_is_recognised(tmp_path: Path) -> None:
    found = open_dataset(mvtec(tmp_path / "mine"))
    assert found.fixed_test
    assert found.rules[0].name == "paper"
    assert found.augmentation == Augmentation()


def test_plain_folder_with_kinds_of_defect(tmp_path: Path) -> None:
    for index in range(10):
        put(tmp_path / f"good/{index}.png")
    put(tmp_path / "bad/one.png")
    put(tmp_path / "bad/dent/two.png")
    found = open_dataset(str(tmp_path), augmentation=FLIP)
    assert Counter(s.kind for s in found.samples) == {"good": 10, "bad": 1, "dent": 1}
    assert found.color == "mono"
    assert found.augmentation == FLIP
    put(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"neither in good/ nor in bad/.*stray\.png"):
        open_dataset(tmp_path)


def test_a_folder_of_good_images_alone(tmp_path: Path) -> None:
    for index in range(10):
        put(tmp_path / f"night/{index}.png")
    split = open_dataset(tmp_path).split()
    assert (len(split.train), len(split.validation), len(split.calibration), len(split.test)) == (5, 2, 1, 2)
    assert all(s.good for s in split.validation + split.test)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no images of good parts.*\.png"):
        open_dataset(tmp_path)
    put(tmp_path / "bad/1.png")
    with pytest.raises(DataError, match="has bad/ but no good/"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="limit 0"):
        open_dataset(tmp_path, limit=0)
    with pytest.raises(DataError, match="color 'gray'"):
        open_dataset(tmp_path, color="gray")  # type: ignore[arg-type]


def test_a_path_is_a_folder_even_if_it_is_called_like_a_data_set(data: Path) -> None:
    put(Path("mnist/a.png"))
    assert [s.name for s in open_dataset("./mnist").samples] == ["a.png"]
    assert [s.name for s in open_dataset(Path("mnist")).samples] == ["a.png"]


def test_unreadable_and_odd_files_are_named_and_skipped_only_on_demand(tmp_path: Path) -> None:
    for index in range(12):
        put(tmp_path / f"good/{index}.png", mode="RGB")
    put(tmp_path / "good/alpha.png", mode="RGBA")
    (tmp_path / "good/empty.png").touch()
    cut = put(tmp_path / "good/cut.jpg", mode="RGB", size=(64, 64))
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    for needed in (
        "alpha.png",
        "RGBA",
        "empty.png",
        "0 bytes",
        "cut.jpg",
        "--skip-unreadable",
        "--convert",
        "3 of 15",
    ):
        assert needed in str(caught.value)
    with pytest.raises(DataError, match="2 of 15"):
        open_dataset(tmp_path, convert=True)
    left = open_dataset(tmp_path, skip_unreadable=True)
    assert len(left.samples) == 12
    assert sorted(item.path.name for item in left.skipped) == ["alpha.png", "cut.jpg", "empty.png"]
    assert all(item.reason for item in left.skipped)
    both = open_dataset(tmp_path, skip_unreadable=True, convert=True)
    assert len(both.samples) == 13
    assert {s.read().shape for s in both.samples} == {(3, 4, 3)}

    info = describe(tmp_path)
    assert [(k.kind, k.images) for k in info.kinds] == [("good", 15)]
    assert sorted(item.path.name for item in info.unreadable) == ["cut.jpg", "empty.png"]
    assert [item.path.name for item in info.odd] == ["alpha.png"]
    assert dict(info.modes) == {"RGB": 12, "RGBA": 1}


def test_all_files_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png: .*0 bytes"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="no good images are left"):
        open_dataset(tmp_path, skip_unreadable=True)


def test_colours_must_agree(tmp_path: Path) -> None:
    for index in range(3):
        put(tmp_path / f"{index}.png", mode="RGB", value=100)
    put(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"1 are mono \(for example .*grey\.png\) and 3 are rgb"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, convert=True).color == "rgb"
    assert {s.read().ndim for s in open_dataset(tmp_path, color="mono", convert=True).samples} == {2}
    assert len(open_dataset(tmp_path, color="rgb", skip_unreadable=True).samples) == 3


def test_only_odd_files(tmp_path: Path) -> None:
    put(tmp_path / "a.png", mode="LA")
    with pytest.raises(DataError, match=r"a\.png \(LA\)"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, convert=True).color == "mono"


def test_limit_is_drawn_per_side_and_always_the_same(data: Path) -> None:
    mvtec(data / "mvtec" / "bottle")
    found = open_dataset("mvtec:bottle", limit=3)
    sides = Counter((s.name.split("/")[0], s.good) for s in found.samples)
    assert sides == {("train", True): 3, ("test", True): 3, ("test", False): 3}
    assert found.samples == open_dataset("mvtec:bottle", limit=3).samples
    assert found.fixed_test == {s.name for s in found.samples if s.name.startswith("test/")}


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.mark.parametrize("form", ["npz", "idx"])
def test_mnist_in_both_forms(data: Path, form: str) -> None:
    (data / "mnist").mkdir()
    arrays = {"train": digits(300), "test": digits(50)}
    for part, (x, y) in arrays.items():
        if form == "npz":
            np.savez(data / "mnist" / f"{part}.npz", x=x, y=y)
        else:
            stem = "t10k" if part == "test" else part
            write_idx(data / "mnist" / f"{stem}-images-idx3-ubyte.gz", x)
            write_idx(data / "mnist" / f"{stem}-labels-idx1-ubyte.gz", y)
    found = open_dataset("mnist:8")
    assert found.color == "mono"
    assert found.augmentation == Augmentation()
    by_name = {s.name: s for s in found.samples}
    frame = by_name["train/00018"].read()
    np.testing.assert_array_equal(frame, arrays["train"][0][18])
    frame[:] = 0
    np.testing.assert_array_equal(by_name["train/00018"].read(), arrays["train"][0][18])
    assert by_name["train/00018"].good
    assert by_name["train/00003"].kind == "digit 3"
    split = found.split()
    assert len(split.test) == 50
    assert all(s.name.startswith("test/") for s in split.test)
    assert all(s.name.startswith("train/") for s in split.train + split.calibration + split.validation)
    assert sum(s.good for s in split.validation) == 6
    # 30 others, as many as good ones, spread over the nine digits.
    others = Counter(s.kind for s in split.validation if not s.good)
    assert others.total() == 30
    assert set(others.values()) == {3, 4}
    with pytest.raises(DataError, match="cannot be had"):
        open_dataset("mnist:8", color="rgb")


def test_mnist_errors(data: Path) -> None:
    (data / "mnist").mkdir()
    np.savez(data / "mnist" / "train.npz", x=np.zeros((3, 8, 8), np.uint8), y=np.zeros(3, np.uint8))
    for spec in ("mnist", "mnist:10", "mnist:eight"):
        with pytest.raises(DataError, match="mnist:0 to mnist:9"):
            open_dataset(spec)
    with pytest.raises(DataError, match=r"expected uint8 images \[N, 28, 28\]"):
        open_dataset("mnist:1")
    (data / "mnist" / "train.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset("mnist:1")
    np.savez(data / "mnist" / "train.npz", x=digits(20)[0], y=digits(20)[1])
    with pytest.raises(DataError, match=r"no MNIST test file; expected test\.npz"):
        open_dataset("mnist:1")


def test_coil100(data: Path) -> None:
    for number in range(1, 16):
        for angle in range(0, 100, 5):
            put(data / f"coil-100/obj{number}__{angle}.png", mode="RGB", value=number)
    found = open_dataset("coil100")
    assert len({s.name.split("__")[0] for s in found.samples if s.good}) == 10
    assert found.augmentation == FLIP
    split = found.split(calibration=0)
    assert [sum(s.good for s in p) for p in (split.train, split.validation, split.test)] == [120, 40, 40]
    assert [sum(not s.good for s in p) for p in (split.train, split.validation, split.test)] == [0, 50, 50]
    other = open_dataset("coil100:seed1")
    assert {s.name for s in other.samples if s.good} != {s.name for s in found.samples if s.good}
    named = open_dataset("coil100:3,7")
    assert {s.name.split("__")[0] for s in named.samples if s.good} == {"obj3", "obj7"}
    for wrong, reason in (("coil100:99", "no views of object 99"), ("coil100:blue", "accepted")):
        with pytest.raises(DataError, match=reason):
            open_dataset(wrong)


def shots(*rows: tuple[int, int, int, int]) -> list[Shot]:
    return [Shot(f"exp{e}_num_{n}", e, n, w, h) for e, n, w, h in rows]


def tiles(found: dict[str, str]) -> set[frozenset[int]]:
    groups: dict[str, set[int]] = {}
    for name, tile in found.items():
        groups.setdefault(tile, set()).add(int(name.rsplit("_", 1)[1]))
    return {frozenset(numbers) for numbers in groups.values()}


def test_a_repeated_exposure_starts_the_next_tile() -> None:
    first = [(e, 100 + 20 * e, 240, 290) for e in range(1, 7)]
    second = [(e, 400 + 20 * e, 241, 291) for e in range(1, 7)]
    found = tiles(group_tiles(shots(*second, *first)))
    assert found == {frozenset(n for _, n, _, _ in first), frozenset(n for _, n, _, _ in second)}


def test_interleaved_tiles_are_told_apart_by_size() -> None:
    small = [(1, 10, 250, 295), (2, 30, 252, 296), (3, 50, 242, 293)]
    large = [(1, 20, 484, 358), (2, 40, 484, 362), (3, 60, 490, 360)]
    assert tiles(group_tiles(shots(*small, *large))) == {frozenset({10, 30, 50}), frozenset({20, 40, 60})}


def test_a_gap_in_the_counter_and_a_cracked_crop() -> None:
    assert len(tiles(group_tiles(shots((1, 10, 250, 295), (2, 5000, 250, 295))))) == 2
    # A crack can cut one side of the crop; the other one stays.
    assert len(tiles(group_tiles(shots((3, 10, 456, 377), (4, 30, 321, 381), (5, 50, 375, 376))))) == 1


def test_a_tile_photographed_again_with_the_same_crops_is_one_tile() -> None:
    rows = [(4, 85602, 596, 260), (5, 85642, 599, 244), (4, 85998, 596, 260), (5, 86031, 599, 244)]
    assert len(tiles(group_tiles(shots(*rows)))) == 1
    rows[3] = (5, 86031, 602, 244)
    assert len(tiles(group_tiles(shots(*rows)))) == 2


def test_magnetic_tile_reader(data: Path) -> None:
    root = data / "magnetic_tile"
    for name in ("Blowhole", "Break", "Crack", "Fray", "Free", "Uneven"):
        (root / f"MT_{name}" / "Imgs").mkdir(parents=True)
    for tile in range(8):
        for exposure in range(1, 7):
            put(
                root / f"MT_Free/Imgs/exp{exposure}_num_{tile * 9000 + exposure * 20}.jpg",
                size=(20 + tile, 30),
            )
    crack = put(root / "MT_Crack/Imgs/exp6_num_99000.jpg", size=(20, 30))
    put(crack.with_suffix(".png"), size=(20, 30), value=255)
    found = open_dataset("magnetic_tile")
    assert found.augmentation == FLIP
    assert [r.name for r in found.rules] == ["tile", "random"]
    assert len({s.group for s in found.samples}) == 9
    bad = [s for s in found.samples if not s.good]
    assert [(s.kind, s.mask) for s in bad] == [("MT_Crack", crack.with_suffix(".png"))]
    info = describe("magnetic_tile")
    assert [(k.kind, k.images, k.groups, k.masks) for k in info.kinds] == [
        ("good", 48, 8, 0),
        ("MT_Crack", 1, 1, 1),
    ]
    assert info.groups == 9
    assert info.width is not None
    assert (info.width.smallest, info.width.median, info.width.largest) == (20, 23, 27)
    (root / "MT_Free/Imgs/exp1_num_20.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"exp1_num_20\.jpg: .*0 bytes"):
        open_dataset("magnetic_tile")
    put(root / "MT_Free/Imgs/holiday.jpg")
    with pytest.raises(DataError, match=r"holiday\.jpg.*expected a name like"):
        open_dataset("magnetic_tile")
    with pytest.raises(DataError, match="takes no option"):
        open_dataset("magnetic_tile:3")


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The project's own neighbour folder is not part of this test.
    monkeypatch.setattr("kizu.data.locating.__file__", str(tmp_path / "a/b/c/d/locating.py"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KIZU_DATA", raising=False)
    assert cache_folder() == tmp_path / "cache" / "kizu" / "data"
    with pytest.raises(DataError) as caught:
        locate("coil100")
    for needed in ("kizu data fetch coil100", str(cache_folder() / "coil-100"), "KIZU_DATA", "columbia.edu"):
        assert needed in str(caught.value)
    with pytest.raises(DataError) as caught:
        locate("cookies")
    assert "kizu data fetch" not in str(caught.value)
    with pytest.raises(DataError, match=r"no data set 'nuts'; accepted: mvtec, magnetic_tile"):
        locate("nuts")
    for place in (cache_folder(), tmp_path / "shared" / "data", tmp_path / "mine"):
        put(place / "coil-100" / "obj1__0.png")
        if place == tmp_path / "mine":
            monkeypatch.setenv("KIZU_DATA", str(place))
        assert locate("coil100") == place / "coil-100"
    assert {item.name: item.path for item in available()} == {
        "mvtec": None,
        "magnetic_tile": None,
        "mnist": None,
        "coil100": tmp_path / "mine" / "coil-100",
        "cookies": None,
    }
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "kizu" / "data"
