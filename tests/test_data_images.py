"""Image files: decoded as they are, odd and damaged ones refused by path."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kizu.data import find_images, read_image
from kizu.data.images import check_image, read_mask
from kizu.errors import DataError

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (13, 17, 3), np.uint8)
GREY = RNG.integers(0, 256, (13, 17), np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_rgb_files_are_read_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    frame = read_image(save(tmp_path / f"a.{suffix}", RGB), "rgb")
    np.testing.assert_array_equal(frame, RGB)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert frame.flags.writeable
    assert frame.flags.owndata or frame.base is not None


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_grey_files_are_read_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{suffix}", GREY), "mono"), GREY)


def test_jpeg_and_webp_are_what_pillow_decodes(tmp_path: Path) -> None:
    for name, color, pixels in (("a.jpg", "rgb", RGB), ("b.jpeg", "mono", GREY), ("c.webp", "rgb", RGB)):
        path = save(tmp_path / name, pixels)
        with Image.open(path) as image:
            expected = np.asarray(image)
        np.testing.assert_array_equal(read_image(path, color), expected)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_png_round_trip_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path = save(tmp_path_factory.getbasetemp() / "any.png", pixels)
    np.testing.assert_array_equal(read_image(path, "rgb"), pixels)


def test_bilevel_is_0_and_255(tmp_path: Path) -> None:
    bits = GREY > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "mono"), np.where(bits, 255, 0))


def test_palettes_count_by_their_colours(tmp_path: Path) -> None:
    for palette, color in (
        ([(i * 13, i * 13, i * 13) for i in range(16)], "mono"),
        ([(i * 13, 9, 250 - i) for i in range(16)], "rgb"),
    ):
        indices = RNG.integers(0, 16, (8, 9), np.uint8)
        image = Image.fromarray(indices).convert("P")
        image.putdata([int(i) for i in indices.ravel()])
        image.putpalette([value for entry in palette for value in entry])
        image.save(tmp_path / "p.png")
        expected = np.array(palette, np.uint8)[indices]
        frame = read_image(tmp_path / "p.png", color)  # type: ignore[arg-type]
        np.testing.assert_array_equal(frame, expected if color == "rgb" else expected[..., 0])
        other = "mono" if color == "rgb" else "rgb"
        with pytest.raises(DataError, match="mode is P"):
            read_image(tmp_path / "p.png", other)  # type: ignore[arg-type]


ODD = {
    "rgba.png": ("RGBA", Image.fromarray(np.dstack([RGB, GREY]))),
    "la.png": ("LA", Image.fromarray(GREY).convert("LA")),
    "cmyk.jpg": ("CMYK", Image.fromarray(RGB).convert("CMYK")),
    "sixteen.png": ("I;16", Image.fromarray(GREY.astype(np.uint16) * 257)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_odd_modes_are_refused_with_advice_and_converted_on_demand(tmp_path: Path, name: str, color: str) -> None:
    mode, image = ODD[name]
    path = tmp_path / name
    image.save(path)
    with pytest.raises(DataError) as caught:
        read_image(path, color)  # type: ignore[arg-type]
    for needed in (str(path), mode, "accepts", "--convert"):
        assert needed in str(caught.value)
    assert check_image(path).color is None
    frame = read_image(path, color, convert=True)  # type: ignore[arg-type]
    assert frame.shape == ((13, 17, 3) if color == "rgb" else (13, 17))
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous


def test_conversion_drops_alpha_and_takes_the_upper_byte(tmp_path: Path) -> None:
    ODD["rgba.png"][1].save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "rgb", convert=True), RGB)
    wide = RNG.integers(0, 65536, (5, 6), np.uint16)
    Image.fromarray(wide).save(tmp_path / "w.png")
    np.testing.assert_array_equal(read_image(tmp_path / "w.png", "mono", convert=True), wide >> 8)
    luma = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.png", RGB), "mono", convert=True), luma)


@pytest.mark.parametrize(("pixels", "color"), [(GREY, "rgb"), (RGB, "mono")])
def test_grey_and_colour_are_never_swapped_silently(tmp_path: Path, pixels: np.ndarray, color: str) -> None:
    path = save(tmp_path / "a.png", pixels)
    with pytest.raises(DataError, match="--convert"):
        read_image(path, color)  # type: ignore[arg-type]
    grey3 = read_image(path, color, convert=True)  # type: ignore[arg-type]
    if color == "rgb":
        np.testing.assert_array_equal(grey3, np.dstack([GREY] * 3))


def test_what_pillow_hides_is_odd(tmp_path: Path) -> None:
    # 16 bits a channel: Pillow calls it RGB and drops the lower byte.
    wide = RNG.integers(0, 65536, (3, 4, 3)).astype(">u2")
    (tmp_path / "wide.ppm").write_bytes(b"P6 4 3 65535\n" + wide.tobytes())
    Image.fromarray(GREY).save(tmp_path / "clear.png", transparency=9)
    Image.fromarray(GREY).save(tmp_path / "two.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    for name, remark in (("wide.ppm", "16 bits"), ("clear.png", "transparency"), ("two.tif", "2 pictures")):
        assert check_image(tmp_path / name).color is None
        color = "rgb" if name == "wide.ppm" else "mono"
        with pytest.raises(DataError, match=remark):
            read_image(tmp_path / name, color)  # type: ignore[arg-type]
        assert read_image(tmp_path / name, "mono", convert=True).ndim == 2


def test_floating_point_pixels_are_refused_even_with_convert(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif.*floating-point"):
        read_image(tmp_path / "f.tif", "mono", convert=True)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_truncated_files_are_found_by_reading_and_by_checking(tmp_path: Path, suffix: str) -> None:
    big = RNG.integers(0, 256, (90, 120, 3), np.uint8)
    path = save(tmp_path / f"cut.{suffix}", big)
    check_image(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=rf"cut\.{suffix}"):
        read_image(path, "rgb")
    with pytest.raises(DataError, match=rf"cut\.{suffix}"):
        check_image(path)


def test_a_flipped_bit_in_a_png_is_found_by_checking(tmp_path: Path) -> None:
    path = save(tmp_path / "flip.png", RGB)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"flip\.png"):
        check_image(path)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    for path, reason in (
        (tmp_path / "none.png", "no such file"),
        (tmp_path / "empty.png", "0 bytes"),
        (tmp_path / "text.jpg", "not an image"),
        (tmp_path, "folder"),
    ):
        for read in (lambda p: read_image(p, "rgb"), check_image, read_mask):
            with pytest.raises(DataError, match=reason) as caught:
                read(path)
            assert str(path) in str(caught.value)


def test_no_file_stays_open(tmp_path: Path) -> None:
    good, odd = save(tmp_path / "a.png", RGB), save(tmp_path / "b.png", GREY)
    cut = tmp_path / "c.png"
    cut.write_bytes(good.read_bytes()[:60])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(3):
            read_image(good, "rgb")
            check_image(good)
            for path in (odd, cut):
                with pytest.raises(DataError):
                    read_image(path, "rgb")
        gc.collect()
    held = [link.resolve() for link in Path("/proc/self/fd").iterdir()] if Path("/proc").exists() else []
    assert not [path for path in held if path.is_relative_to(tmp_path)]


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    plain, turned = tmp_path / "a.jpg", tmp_path / "b.jpg"
    Image.fromarray(RGB).save(plain)
    Image.fromarray(RGB).save(turned, exif=exif)
    np.testing.assert_array_equal(read_image(turned, "rgb"), read_image(plain, "rgb"))


def test_masks_of_every_kind(tmp_path: Path) -> None:
    truth = np.zeros((6, 8), bool)
    truth[2:4, 3:7] = True
    rgba = np.zeros((6, 8, 4), np.uint8)
    rgba[..., 1] = 164  # the colour is everywhere, only opacity tells
    rgba[..., 3] = np.where(truth, 255, 20)
    variants = [truth.astype(np.uint8), truth * np.uint8(255), np.where(truth, 250, 3).astype(np.uint8), rgba]
    for index, pixels in enumerate(variants):
        found = read_mask(save(tmp_path / f"{index}.png", pixels))
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, truth)
    assert not read_mask(save(tmp_path / "none.png", np.zeros((3, 3), np.uint8))).any()


def test_find_images_order_and_choice(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a.tiff", "notes.txt", ".hidden.png", ".git/x.png", "c/d/e.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        "a.tiff",
        "b/10.jpg",
        "b/2.PNG",
        "c/d/e.webp",
    ]
    assert find_images([tmp_path / "b", tmp_path]) == (found[1], found[2], found[0], found[3])
    assert find_images([tmp_path / "notes.txt", str(tmp_path / "notes.txt")]) == (tmp_path / "notes.txt",)


def test_find_images_refuses_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images.*\.png"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        find_images(tmp_path / "nowhere")
