"""The .kizu file: whole, as it was written, or refused with the fault by name."""

from __future__ import annotations

import io
import json
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import MANIFEST, digest, part, read_bundle, rewrite_bundle
from kizu import Bundle, BundleError, PrepareSpec, bundle
from kizu.bundle import Calibration, Golden, Manifest, MethodInfo, Threshold, encode_frame, set_threshold

Edit = Callable[[dict[str, Any]], object]
NEW = Threshold({"fp32": 0.25, "int8": 0.5}, "manual", None, 0)


def small(path: Path, **changes: Any) -> Manifest:
    """Write a bundle of a few kilobytes; what it holds is nonsense, its form is not."""
    rng = np.random.default_rng(3)
    pictures = {f"golden/{i:03}.png": encode_frame(part(rng, color=True)) for i in range(2)}
    members = {"graphs/fp32.onnx": rng.bytes(700), "graphs/int8.onnx": rng.bytes(300), **pictures}
    manifest = Manifest(
        method=MethodInfo("algan_image", "a paper", {"width": 8}),
        prepare=PrepareSpec(size=(32, 32), crop=(0, 0, 40, 50), mean=(0.4, 0.5, 0.6)),
        scoring="logit",
        graphs={"fp32": "graphs/fp32.onnx", "int8": "graphs/int8.onnx"},
        calibration=Calibration({"fp32": (-1.5, 0.1, 1 / 3), "int8": (-1.25, 0.0, 5e-324)}, 4),
        threshold=Threshold({"fp32": 1 / 3, "int8": 5e-324}, "conformal", 0.3, 3),
        golden=Golden(tuple(pictures), (0.1, -0.2), {"fp32": 1e-3, "int8": 0.25}),
        training={"settings": {"data": "Prüfteile/傷"}, "history": [{"epoch": 1, "loss_D": 2.5}], "none": None},
        seen=("0123456789abcdef",),
    )
    bundle.write(path, replace(manifest, **changes), members)
    return manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    small(tmp_path / "part.kizu")
    return tmp_path / "part.kizu"


def contents(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    opened = Bundle.open(path)
    return opened.manifest, {name: opened.read(name) for name in opened.manifest.members}


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        contents(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = small(tmp_path / "part.kizu")
    opened = Bundle.open(tmp_path / "part.kizu")
    assert replace(opened.manifest, members={}) == written
    rng = np.random.default_rng(3)
    frames = [part(rng, color=True) for _ in range(2)]
    for frame, golden in zip(frames, opened.golden_frames(), strict=True):
        np.testing.assert_array_equal(frame, golden)
    assert opened.graph("fp32") == rng.bytes(700)
    assert opened.graph("int8") == rng.bytes(300)
    for name, member in opened.manifest.members.items():
        assert (member.size, member.sha256) == (len(opened.read(name)), digest(opened.read(name)))


def test_an_exported_bundle_is_what_the_house_says(bundle_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    assert {"fp32", "fp16", "int8", "int8+fp16"} == set(manifest.graphs)
    assert len(manifest.golden.members) >= 32
    for precision, scores in manifest.calibration.scores.items():
        assert list(scores) == sorted(scores)
        assert manifest.threshold.values[precision] in scores
    assert {"fp32", "fp16", "bf16", "int8"} <= set(manifest.threshold.values)
    assert manifest.training["settings"]["seed"] == 1
    with zipfile.ZipFile(bundle_path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_there_is_no_pickle_inside(bundle_path: Path) -> None:
    with zipfile.ZipFile(bundle_path) as archive:
        for name in archive.namelist():
            assert re.fullmatch(r"manifest\.json|graphs/[\w+-]+\.onnx|golden/\d{3}\.png", name)
            data = archive.read(name)
            assert data[:1] != b"\x80"  # what every pickle since protocol 2 begins with
            with pytest.raises((ValueError, IndexError, KeyError)):
                list(pickletools.genops(data))
            if name.endswith(".json"):
                json.loads(data)
            elif name.endswith(".png"):
                assert Image.open(io.BytesIO(data)).format == "PNG"


def test_the_threshold_is_in_no_graph(bundle_path: Path) -> None:
    opened = Bundle.open(bundle_path)
    for precision, value in opened.manifest.threshold.values.items():
        for sign in (value, -value):
            if precision in opened.manifest.graphs:
                assert np.float32(sign).tobytes() not in opened.graph(precision)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path / "one.kizu")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    monkeypatch.setattr("time.localtime", lambda *a: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    small(tmp_path / "two.kizu")
    assert (tmp_path / "one.kizu").read_bytes() == (tmp_path / "two.kizu").read_bytes()


def test_a_file_mode_is_the_users(tmp_path: Path) -> None:
    small(tmp_path / "part.kizu")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "part.kizu").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_new_threshold_leaves_the_rest_as_it_was(path: Path) -> None:
    before, members = contents(path)
    returned = set_threshold(path, NEW)
    after, members_after = contents(path)
    assert after == returned == replace(before, threshold=NEW)
    assert members_after == members
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_a_threshold_set_back_gives_the_first_bytes(bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "part.kizu"
    copy.write_bytes(bundle_path.read_bytes())
    first = Bundle.open(copy).manifest.threshold
    set_threshold(copy, NEW)
    assert copy.read_bytes() != bundle_path.read_bytes()
    set_threshold(copy, first)
    assert copy.read_bytes() == bundle_path.read_bytes()


@pytest.mark.parametrize(
    "failing", ["os.fsync", "pathlib.Path.replace", "zipfile._ZipWriteFile.write", "pathlib.Path.chmod"]
)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"]
)
def test_a_failure_half_way_loses_nothing(
    path: Path, failing: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BundleError
        with pytest.raises(expected) as caught:
            set_threshold(path, NEW)
    if expected is BundleError:
        assert "cannot be written" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert path.read_bytes() == before
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_writing_into_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere.*cannot be written.*No such file"):
        small(tmp_path / "nowhere" / "part.kizu")


def test_a_score_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        small(tmp_path / "part.kizu", threshold=replace(NEW, values={"fp32": float("nan")}))
    assert not list(tmp_path.iterdir())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_truncated_file_is_refused(path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    keep = data.draw(st.one_of(st.integers(0, len(whole) - 1), st.integers(len(whole) - 200, len(whole) - 1)))
    cut = path.with_name("cut.kizu")
    cut.write_bytes(whole[:keep])
    assert "truncated" in refusal(cut) or "does not match its digest" in refusal(cut)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_changes_nothing_unnoticed(path: Path, data: st.DataObject) -> None:
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        payload = [(i.header_offset + 30 + len(i.filename), i.file_size) for i in archive.infolist()]
        directory = archive.start_dir
    at = data.draw(st.one_of(st.integers(0, len(whole) - 1), st.integers(directory, len(whole) - 1)))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    flipped = path.with_name("flipped.kizu")
    flipped.write_bytes(whole)
    in_payload = any(start <= at < start + size for start, size in payload)
    in_comment = at >= len(whole) - 64
    if in_payload or in_comment:
        refusal(flipped)
        return
    # The rest are zip headers. Dates and attributes there are read by nobody: refused, or it does not matter.
    try:
        found = contents(flipped)
    except BundleError as error:
        assert str(flipped) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert found == contents(path)


def test_an_edited_member_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    _, members = read_bundle(bundle_path)
    graph = bytearray(members["graphs/fp32.onnx"])
    graph[len(graph) // 2] ^= 1
    target = tmp_path / "edited.kizu"
    rewrite_bundle(bundle_path, target, members={"graphs/fp32.onnx": bytes(graph)}, seal_members=False)
    assert "member graphs/fp32.onnx does not match its digest" in refusal(target)


def test_an_edited_member_with_its_digest_needs_the_manifests_too(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "edited.kizu"
    rewrite_bundle(path, target, members={"graphs/fp32.onnx": b"another"}, seal_manifest=False)
    assert "manifest.json does not match its digest: it was edited" in refusal(target)
    # With both it is a bundle by all that a file can say of itself.
    rewrite_bundle(path, target, members={"graphs/fp32.onnx": b"another"})
    assert Bundle.open(target).graph("fp32") == b"another"


def test_an_edited_manifest_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "edited.kizu"

    def loosen(manifest: dict[str, Any]) -> None:
        manifest["threshold"]["values"]["fp32"] = 9.0

    rewrite_bundle(path, target, edit=loosen, seal_manifest=False)
    assert "it was edited; change a threshold with kizu threshold" in refusal(target)
    rewrite_bundle(path, target, edit=loosen)
    assert Bundle.open(target).manifest.threshold.values["fp32"] == 9.0


def put(value: Any, *keys: str | int) -> Edit:
    def edit(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit


def drop(*keys: str) -> Edit:
    def edit(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return edit


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (put(2, "version"), "bundle version 2, but this kizu reads version 1; update kizu"),
        (put(0, "version"), "bundle version 0, but this kizu reads version 1; export it anew"),
        (put("1", "version"), "bundle version 1"),
        (drop("version"), "bundle version None"),
        (put("zip", "format"), "does not say that this is a kizu-bundle"),
        (drop("format"), "does not say that this is a kizu-bundle"),
        (put(1, "lens"), "unknown fields lens.*update kizu"),
        (put(1, "threshold", "margin"), r"threshold has unknown fields margin"),
        (put(2.2, "prepare", "gamma"), r"unknown fields gamma"),
        (put(1, "members", "graphs/fp32.onnx", "crc"), r"unknown fields crc"),
        (drop("scoring"), "lacks scoring"),
        (drop("golden", "scores"), "golden lacks scores"),
        (drop("prepare", "crop"), "crop"),
        (drop("calibration", "scores", "fp32"), "no calibration scores in fp32"),
        (put(NAN, "threshold", "values", "fp32"), "NaN"),
        (put(INFINITY, "threshold", "values", "fp32"), "Infinity"),
        (put(-INFINITY, "calibration", "scores", "fp32", 0), "Infinity"),
        (put(NAN, "golden", "scores", 0), "NaN"),
        (put(NAN, "golden", "tolerances", "fp32"), "NaN"),
        (put(NAN, "training", "seed"), "NaN"),
        (put("high", "threshold", "values", "fp32"), r"threshold\.values\.fp32 is 'high', but must be float"),
        (put(True, "threshold", "values", "fp32"), "must be float"),
        (put(2.5, "threshold", "images"), "must be int"),
        (put([], "threshold"), "must be an object"),
        (put([], "graphs"), "graphs is not an object"),
        (put({}, "golden", "members"), "members is not a list"),
        (put(7, "scoring"), "must be str"),
        (put("graphs/int4.onnx", "graphs", "fp32"), "names graphs/int4.onnx, which is not in the bundle"),
        (put("golden/999.png", "golden", "members", 0), "names golden/999.png, which is not in the bundle"),
        (put([0.1], "golden", "scores"), "1 golden scores for 2 frames"),
        (lambda m: m["golden"].update(members=[], scores=[]), "0 golden scores"),
        (put([0, 32], "prepare", "size"), "size is"),
        (put("yuv", "prepare", "color"), "color is 'yuv'"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_valid_is_refused(path: Path, tmp_path: Path, edit: Edit, fault: str) -> None:
    target = rewrite_bundle(path, tmp_path / "edited.kizu", edit=edit)
    assert re.search(fault, refusal(target))


def test_a_number_too_large_for_a_float_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "edited.kizu"
    text = zipfile.ZipFile(path).read(MANIFEST).replace(b"0.3333333333333333", b"1e999", 1)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, text if name == MANIFEST else source.read(name))
        archive.comment = f"kizu bundle; SHA-256 of manifest.json: {digest(text)}".encode()
    assert "must be finite" in refusal(target)


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{", b"\xff\xfe", b'{"format": "kizu-bundle"'])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    target = tmp_path / "part.kizu"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(MANIFEST, text)
    assert "manifest.json is not valid JSON" in refusal(target)


@pytest.mark.parametrize(
    "name", ["../evil.onnx", "graphs/../../evil", "/etc/passwd", "graphs\\..\\evil", "C:evil", ".."]
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_member_that_points_outside_is_refused(path: Path, tmp_path: Path, name: str, listed: bool) -> None:
    edit = put({"size": 4, "sha256": digest(b"evil")}, "members", name) if listed else (lambda manifest: None)
    target = rewrite_bundle(path, tmp_path / "edited.kizu", extra={name: b"evil"}, edit=edit)
    message = refusal(target)
    assert repr(name) in message
    assert "points outside the bundle" in message
    assert sorted(f.name for f in tmp_path.iterdir()) == ["edited.kizu", "part.kizu"]  # nothing was unpacked


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_member_is_refused(path: Path, tmp_path: Path, compression: int) -> None:
    target = rewrite_bundle(path, tmp_path / "edited.kizu", compression=compression)
    assert "is compressed or encrypted" in refusal(target)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [MANIFEST, "graphs/fp32.onnx"])
def test_a_member_that_is_there_twice_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    message = refusal(rewrite_bundle(path, tmp_path / "edited.kizu", twice=name))
    assert f"do not agree on {name}" in message


def test_an_extra_member_is_refused(path: Path, tmp_path: Path) -> None:
    target = rewrite_bundle(path, tmp_path / "edited.kizu", extra={"graphs/extra.onnx": b"x"})
    assert "do not agree on graphs/extra.onnx" in refusal(target)


def test_a_missing_member_is_refused(path: Path, tmp_path: Path) -> None:
    edit = put({"size": 4, "sha256": digest(b"gone")}, "members", "graphs/gone.onnx")
    target = rewrite_bundle(path, tmp_path / "edited.kizu", edit=edit)
    assert "do not agree on graphs/gone.onnx" in refusal(target)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "photos.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("photo.png", b"png")
    assert "there is no manifest.json: this is not a kizu bundle" in refusal(target)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"kizu" * 1000, b"PK\x05\x06" + bytes(17)], ids=["empty", "PK", "text", "cut end"]
)
def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    target = tmp_path / "part.kizu"
    target.write_bytes(data)
    assert "not a whole bundle" in refusal(target)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "there is no such file" in refusal(tmp_path / "part.kizu")


def test_asking_for_what_is_not_inside_says_what_is(path: Path) -> None:
    opened = Bundle.open(path)
    with pytest.raises(BundleError, match="no int4 graph, only fp32, int8"):
        opened.graph("int4")
    with pytest.raises(BundleError, match=r"no member graphs/int4\.onnx"):
        opened.read("graphs/int4.onnx")


def test_every_refusal_is_a_bundle_error_through_load(path: Path, tmp_path: Path) -> None:
    import kizu

    target = tmp_path / "cut.kizu"
    target.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match=re.escape(str(target))):
        kizu.load(target, cache=tmp_path)


def test_a_threshold_is_set_behind_a_link_and_keeps_the_mode(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "current.kizu"
    link.symlink_to(path)
    bundle.set_threshold(link, NEW)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert Bundle.open(path).manifest.threshold == NEW


def test_a_member_that_changes_after_opening_is_refused(path: Path) -> None:
    opened = Bundle.open(path)
    data = path.read_bytes()
    graph = opened.graph("fp32")
    path.write_bytes(data.replace(graph, bytes(len(graph))))
    with pytest.raises(BundleError, match=r"graphs/fp32\.onnx"):
        opened.graph("fp32")


def test_a_tolerance_beyond_the_documented_one_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "loose.kizu", golden=Golden(("golden/000.png",), (0.1,), {"fp32": 0.5}))
    with pytest.raises(BundleError, match=r"allows fp32 to be off by 0\.5"):
        Bundle.open(tmp_path / "loose.kizu")
