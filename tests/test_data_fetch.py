"""Downloads from a server on this machine that breaks off, ignores ranges, and sends the wrong thing."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from kizu.data import fetch
from kizu.data.fetching import fetch_source, tree_sha256
from kizu.data.sources import SOURCES, Download, Source
from kizu.errors import DataError


@dataclass
class Server:
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    break_after: int | None = None  # bytes a connection lives
    requests: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""

    def download(self, name: str, content: bytes, *, sha256: str | None = None) -> Download:
        self.files[f"/{name}"] = content
        digest = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
        return Download(name, (f"{self.address}/{name}",), digest)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.requests.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if wanted and state.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            body = content[start:]
            if state.lengths:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if state.break_after is None else body[: state.break_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(entries: dict[str, bytes], *, mode: str = "w:xz", link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o000  # as in archives that were packed with odd permissions
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).bytes(300_000)
ENTRIES = {"top/MT/a.bin": NOISE, "top/MT/deep/b.txt": b"b", "top/readme.md": b"hello"}


def made(*downloads: Download, **options: object) -> Source:
    settings: dict[str, object] = {"folders": ("made",), "contains": ("MT",), "strip": True, **options}
    return Source("made", "", "", "", "http://example.org", downloads=downloads, **settings)  # type: ignore[arg-type]


def check(folder: Path) -> None:
    assert (folder / "MT/a.bin").read_bytes() == NOISE
    assert (folder / "MT/deep/b.txt").read_bytes() == b"b"
    assert (folder / "readme.md").exists()


def leftovers(cache: Path) -> list[str]:
    return sorted(
        p.name for p in cache.rglob("*") if p.name not in ("downloads",) and not p.is_relative_to(cache / "made")
    )


def test_zip_and_tar_are_fetched_checked_and_unpacked(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    for name, content in (
        ("a.zip", zipped(ENTRIES)),
        ("a.tar.xz", tarred(ENTRIES)),
        ("a.tgz", tarred(ENTRIES, mode="w:gz")),
    ):
        cache = tmp_path / name
        seen.clear()
        folder = fetch_source(
            made(server.download(name, content)), cache=cache, progress=lambda *step: seen.append(step)
        )
        assert folder == cache / "made"
        check(folder)
        assert leftovers(cache) == []
        assert seen[-1] == (name, len(content), len(content))
        before = len(server.requests)
        assert fetch_source(made(server.download(name, content)), cache=cache) == folder
        assert len(server.requests) == before


def test_a_broken_connection_is_resumed_within_one_call(server: Server, tmp_path: Path) -> None:
    content = zipped(ENTRIES)
    server.break_after = len(content) // 3
    check(fetch_source(made(server.download("a.zip", content)), cache=tmp_path))
    ranges = [wanted for _, wanted in server.requests]
    assert ranges[0] == ""
    assert ranges[1] == f"bytes={len(content) // 3}-"
    assert len(ranges) == 4


def test_what_is_there_is_kept_for_the_next_call(server: Server, tmp_path: Path) -> None:
    content = zipped(ENTRIES)
    source = made(server.download("a.zip", content))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.zip.part").write_bytes(content[:1000])
    server.break_after = 0
    with pytest.raises(DataError, match=r"1,000 bytes are kept.*run the command again"):
        fetch_source(source, cache=tmp_path)
    assert not (tmp_path / "made").exists()
    server.break_after = None
    server.requests.clear()
    check(fetch_source(source, cache=tmp_path))
    assert server.requests == [("/a.zip", "bytes=1000-")]


def test_a_server_that_ignores_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    content = zipped(ENTRIES)
    server.ranges = False
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.zip.part").write_bytes(b"x" * 5000)
    check(fetch_source(made(server.download("a.zip", content)), cache=tmp_path))
    assert server.requests == [("/a.zip", "bytes=5000-")]


def test_no_content_length(server: Server, tmp_path: Path) -> None:
    server.lengths = False
    check(fetch_source(made(server.download("a.zip", zipped(ENTRIES))), cache=tmp_path))


@pytest.mark.parametrize("extra", [0, 77])
def test_a_part_that_is_complete_or_too_long(server: Server, tmp_path: Path, extra: int) -> None:
    content = zipped(ENTRIES)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.zip.part").write_bytes(content + b"x" * extra)
    check(fetch_source(made(server.download("a.zip", content)), cache=tmp_path))
    assert len(server.requests) == (1 if extra == 0 else 2)


def test_a_wrong_checksum_deletes_the_file_and_says_so(server: Server, tmp_path: Path) -> None:
    good = zipped(ENTRIES)
    download = server.download("a.zip", good)
    server.files["/a.zip"] = good[:-1] + b"?"
    with pytest.raises(DataError, match=r"a\.zip has SHA-256 .* expected is .*deleted"):
        fetch_source(made(download), cache=tmp_path)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "made").exists()
    server.files["/a.zip"] = good
    check(fetch_source(made(download), cache=tmp_path))


def test_a_file_downloaded_by_hand_is_checked_and_used(server: Server, tmp_path: Path) -> None:
    content = zipped(ENTRIES)
    download = server.download("a.zip", content)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.zip").write_bytes(content)
    check(fetch_source(made(download), cache=tmp_path))
    assert server.requests == []


def test_the_second_address_is_tried(server: Server, tmp_path: Path) -> None:
    good = server.download("a.zip", zipped(ENTRIES))
    moved = Download("a.zip", (f"{server.address}/gone.zip", *good.urls), good.sha256)
    check(fetch_source(made(moved), cache=tmp_path))
    assert [path for path, _ in server.requests] == ["/gone.zip", "/a.zip"]


def test_no_server(server: Server, tmp_path: Path) -> None:
    gone = Download("a.zip", (f"{server.address}/gone.zip", "http://127.0.0.1:9/a.zip"), "0" * 64)
    with pytest.raises(DataError) as caught:
        fetch_source(made(gone), cache=tmp_path)
    for needed in ("404", "127.0.0.1:9", "by hand", str(tmp_path / "downloads/a.zip")):
        assert needed in str(caught.value)


def test_tree_digest_stands_in_for_an_archive_checksum(server: Server, tmp_path: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256(ENTRIES[f'top/{name}']).hexdigest()}  {name}\n" for name in ("MT/a.bin", "MT/deep/b.txt")
    )
    tree = hashlib.sha256(lines.encode()).hexdigest()
    source = made(server.download("a.zip", zipped(ENTRIES), sha256=""), tree=tree, tree_files="MT/*")
    folder = fetch_source(source, cache=tmp_path / "one")
    check(folder)
    assert tree_sha256(folder, "MT/*") == tree
    server.files["/a.zip"] = zipped({**ENTRIES, "top/MT/deep/b.txt": b"B"})
    with pytest.raises(DataError, match="digest"):
        fetch_source(source, cache=tmp_path / "two")
    assert leftovers(tmp_path / "two") == []


@pytest.mark.parametrize("name", ["../out", "top/../../out", "/abs/out", "top\\..\\out", "c:/out"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_paths_that_lead_out_are_refused(server: Server, tmp_path: Path, name: str, pack: object) -> None:
    content = pack({**ENTRIES, name: b"evil"})  # type: ignore[operator]
    with pytest.raises(DataError, match="leads out"):
        fetch_source(made(server.download("a", content)), cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("*out*"))
    assert leftovers(tmp_path / "cache") == []


def test_links_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="link"):
        fetch_source(made(server.download("a", tarred(ENTRIES, link="/etc/passwd"))), cache=tmp_path)
    buffer = io.BytesIO(zipped(ENTRIES))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("top/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link"):
        fetch_source(made(server.download("b", buffer.getvalue())), cache=tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("content", [b"<html>sorry</html>", zipped(ENTRIES)[:9000], tarred(ENTRIES)[:9000]])
def test_damaged_archives_and_error_pages(server: Server, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="damaged archive"):
        fetch_source(made(server.download("a", content)), cache=tmp_path)
    assert leftovers(tmp_path) == []


def test_an_archive_of_something_else(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the data set: none of MT"):
        fetch_source(made(server.download("a", zipped({"top/cat.jpg": b""}))), cache=tmp_path)
    (tmp_path / "made").mkdir()
    with pytest.raises(DataError, match="in the way"):
        fetch_source(made(server.download("a", zipped(ENTRIES))), cache=tmp_path)


def test_files_that_are_not_unpacked(server: Server, tmp_path: Path) -> None:
    packed = gzip.compress(b"123")
    source = made(server.download("x.gz", packed), server.download("y.gz", packed), extract=False, contains=("x.gz",))
    folder = fetch_source(source, cache=tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"x.gz": packed, "y.gz": packed}
    assert leftovers(tmp_path) == []


def test_what_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="accepted: mvtec"):
        fetch("nuts", cache=tmp_path)
    with pytest.raises(DataError, match=r"no public download.*train/good"):
        fetch("cookies", cache=tmp_path)


def test_the_listed_sources_can_all_be_checked() -> None:
    for source in SOURCES:
        for item in source.downloads:
            assert item.urls
            assert len(item.sha256 or source.tree) == 64, source.name
            assert all(url.startswith(("https://", "http://www.cs.columbia.edu/")) for url in item.urls)
