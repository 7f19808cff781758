"""Downloads of the public data sets: resumed where they broke off, checked, moved into place in one step."""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from kizu.data.locating import cache_folder, source
from kizu.data.sources import Download, Source
from kizu.errors import DataError

Progress = Callable[[str, int, "int | None"], None]
"""Called with a file's name, the bytes that are here, and all of its bytes (None where unknown)."""

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    FileExistsError,  # an entry twice
    NotImplementedError,  # a compression zipfile does not know
    RuntimeError,  # an encrypted entry
)
_FRUITLESS = 3  # connections in a row that bring nothing


def fetch(name: str, *, cache: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Download a public data set into the cache and return its folder; at once if it is there already.

    A broken download goes on where it stopped, in this call or a later one. An archive that was downloaded
    by hand is taken from `<cache>/downloads` and checked like any other.

    Args:
        name: "mvtec" (all categories, 4.9 GiB), "magnetic_tile", "mnist" or "coil100".
        cache: the folder for data sets; None is the user's cache, where `locate` looks.
        progress: told about every piece that arrives.

    Raises:
        DataError: unknown name, no public download, the network or the disk failed, a checksum differs, or an archive
            holds something that does not belong there. What is kept and what to do is in the message.
    """
    return fetch_source(source(name), cache=Path(cache) if cache is not None else cache_folder(), progress=progress)


def fetch_source(wanted: Source, *, cache: Path, progress: Progress | None = None) -> Path:
    """`fetch` for a source that need not be a listed one."""
    target = cache / wanted.folders[0]
    if any((target / entry).exists() for entry in wanted.contains):
        return target
    if not wanted.downloads:
        raise DataError(
            f"{wanted.name}: there is no public download in the layout kizu reads. It comes from "
            f"{wanted.homepage}; put train/good, test/good, test/<defect> and ground_truth/<defect> into "
            f"{target}"
        )
    if target.exists():
        raise DataError(
            f"{target}: this folder is in the way; it does not hold {wanted.name}. Move it away and fetch again"
        )
    try:
        downloads = cache / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        files = [_download(item, downloads, wanted, progress) for item in wanted.downloads]
        with tempfile.TemporaryDirectory(prefix=f".{wanted.name}-", dir=cache) as folder:
            made = Path(folder) / "data"
            made.mkdir()
            for file in files:
                if wanted.extract:
                    _unpack(file, made, strip=wanted.strip)
                else:
                    shutil.copyfile(file, made / file.name)
            _check_tree(wanted, made, files)
            # The folder appears whole or not at all.
            made.replace(target)
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{wanted.name}: writing to {cache} failed ({error}); free space or name another cache"
        ) from error
    return target


def _download(item: Download, folder: Path, wanted: Source, progress: Progress | None) -> Path:
    done, part = folder / item.file, folder / f"{item.file}.part"
    if not done.exists():
        failures = []
        for url in item.urls:
            try:
                _transfer(url, part, item, progress)
                break
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error}")
        else:
            kept = part.stat().st_size if part.exists() else 0
            raise DataError(
                f"{wanted.name}: {item.file} could not be downloaded ({'; '.join(failures)}). {kept:,} "
                f"bytes are kept in {part}; run the command again to go on from there. Or download the file "
                f"by hand from {wanted.homepage} and put it at {done}"
            )
        part.replace(done)
    if item.sha256 and (found := file_sha256(done)) != item.sha256:
        done.unlink()
        raise DataError(
            f"{wanted.name}: {item.file} has SHA-256 {found}, expected is {item.sha256}. The file was "
            "deleted; fetch again. If it happens again, the publisher changed the file or something on the "
            "way alters it"
        )
    return done


def _transfer(url: str, part: Path, item: Download, progress: Progress | None) -> None:
    """Bring `part` to its full length, over as many connections as it takes while each brings something."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _connection(url, part, item, progress):
                return
            problem = "the connection was closed early"
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        fruitless = 0 if after > before else fruitless + 1
        if fruitless == _FRUITLESS:
            raise ConnectionError(problem)


def _connection(url: str, part: Path, item: Download, progress: Progress | None) -> bool:
    """One request for what is missing; True when the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "kizu", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not have:
                raise
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return True  # nothing is missing
        part.unlink()  # longer than the file on the server: begin again
        return False
    with response:
        if response.status != 206:
            have = 0  # the server sends the file from its first byte
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            part.unlink()
            return False
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(item.file, have, total if total is not None else item.size)
    expected = total if total is not None else item.size
    return expected is None or have >= expected


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tree_sha256(root: Path, pattern: str) -> str:
    """SHA-256 of the lines "<sha256>  <path>" of files below `root` that match `pattern`, sorted by path."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    lines = [f"{file_sha256(root / name)}  {name}\n" for name in names if fnmatch.fnmatchcase(name, pattern)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_tree(wanted: Source, made: Path, files: list[Path]) -> None:
    problem = ""
    if not any((made / entry).exists() for entry in wanted.contains):
        problem = f"none of {', '.join(wanted.contains[:3])} is in it"
    elif wanted.tree and (found := tree_sha256(made, wanted.tree_files)) != wanted.tree:
        problem = f"the files {wanted.tree_files} have the digest {found}, expected is {wanted.tree}"
    if problem:
        for file in files:
            file.unlink(missing_ok=True)
        raise DataError(f"{wanted.name}: the download is not the data set: {problem}. It was deleted; fetch again")


def _unpack(archive: Path, into: Path, *, strip: bool) -> None:
    """Write an archive's files below `into`. Links, devices and paths that lead out are refused."""
    try:
        for name, file in _members(archive):
            with file:
                parts = _safe_parts(archive, name)[1 if strip else 0 :]
                if not parts:
                    continue
                path = into.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as out:
                    shutil.copyfileobj(file, out, _CHUNK)
    except DataError:
        archive.unlink()
        raise
    except _DAMAGED as error:
        archive.unlink()
        raise DataError(f"{archive.name}: a damaged archive ({error}). It was deleted; fetch again") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise DataError(f"{archive.name}: entry {entry.filename!r} is a link; nothing was unpacked from it")
                if not entry.is_dir():
                    yield entry.filename, packed.open(entry)
        return
    with tarfile.open(archive) as tape:
        for member in tape:
            if member.isdir():
                _safe_parts(archive, member.name)
                continue
            content = tape.extractfile(member) if member.isreg() else None
            if content is None:
                raise DataError(f"{archive.name}: entry {member.name!r} is a link or a device; refused")
            yield member.name, content


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise DataError(f"{archive.name}: entry {name!r} leads out of the folder; refused")
    return path.parts
