"""What several test files use: synthetic parts, edited bundles, Python in a process of its own."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kizu.engine import CpuEngine, engines
from rows import ENGINES, EngineRow

PYTHON = Path(__file__).resolve().parents[1] / "python"
MANIFEST = "manifest.json"
COMMENT = "kizu bundle; SHA-256 of manifest.json: "


@dataclass(frozen=True)
class Trained:
    """A data set folder, the run trained on it and the bundle exported from the run."""

    data: Path
    run: Path
    bundle: Path


def part(rng: np.random.Generator, *, color: bool, scratched: bool = False) -> NDArray[np.uint8]:
    """A picture (60, 72[, 3]) of a textured disc, its place and brightness slightly different each time."""
    y, x = np.mgrid[:60, :72].astype(np.float64)
    cy, cx = 30 + rng.normal(0, 1), 36 + rng.normal(0, 1)
    radius = np.hypot(y - cy, x - cx)
    disc = 150 + 25 * np.sin(radius / 2) + rng.normal(0, 15)
    image = np.where(radius < 20 + rng.normal(0, 2), disc, 60 + rng.normal(0, 8)) + rng.normal(0, 5, radius.shape)
    if scratched:
        angle = rng.uniform(0, np.pi)
        across = (y - cy - rng.normal(0, 5)) * np.cos(angle) - (x - cx - rng.normal(0, 5)) * np.sin(angle)
        image = np.where((np.abs(across) < 2.5) & (radius < 26), 250 - image, image)
    if color:
        image = image[:, :, None] * np.array([1.0, 0.85, 0.6]) + rng.normal(0, 3, (60, 72, 3))
    picture: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return picture


def make_parts(folder: Path, *, color: bool, good: int, bad: int, seed: int = 0) -> Path:
    """A folder data set of synthetic parts: ``good/`` and ``bad/scratch/``."""
    rng = np.random.default_rng(seed)
    for name, count, scratched in (("good", good, False), ("bad/scratch", bad, True)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(part(rng, color=color, scratched=scratched)).save(folder / name / f"{i:03}.png")
    return folder


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_bundle(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the members of a bundle, without kizu's checks."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}
        return json.loads(archive.read(MANIFEST)), members


def rewrite_bundle(
    source: Path,
    target: Path,
    *,
    edit: Callable[[dict[str, Any]], object] = lambda manifest: None,
    members: Mapping[str, bytes | None] | None = None,
    extra: Mapping[str, bytes] | None = None,
    seal_members: bool = True,
    seal_manifest: bool = True,
    compression: int = zipfile.ZIP_STORED,
    twice: str | None = None,
) -> Path:
    """Write an edited copy of a bundle.

    Args:
        source, target: the bundle and its copy.
        edit: changes the manifest's JSON object in place.
        members: bytes to replace a member by, or None to drop it from the file and from the manifest.
        extra: members to add to the file; the manifest does not list them.
        seal_members: write the digests of the new members into the manifest.
        seal_manifest: write the new manifest's digest into the zip's comment.
        compression: of all members.
        twice: a member to write a second time.
    """
    manifest, held = read_bundle(source)
    with zipfile.ZipFile(source) as archive:
        comment = archive.comment
    manifest = copy.deepcopy(manifest)
    for name, data in (members or {}).items():
        if data is None:
            del held[name], manifest["members"][name]
            continue
        held[name] = data
        if seal_members:
            manifest["members"][name] = {"size": len(data), "sha256": digest(data)}
    edit(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr(MANIFEST, text)
        for name, data in {**held, **(extra or {})}.items():
            archive.writestr(name, data)
        if twice is not None:
            archive.writestr(twice, {MANIFEST: text, **held}[twice])
        archive.comment = (COMMENT + digest(text)).encode() if seal_manifest else comment
    return target


def python(
    script: str, *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that finds this kizu."""
    path = os.pathsep.join(filter(None, [str(PYTHON), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def python_output(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Like ``python``, for a script that must succeed: what it printed."""
    done = python(script, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Put before a script: the packages that its first argument lists are not to be found, as if not installed.
BLOCK_IMPORTS = """
import importlib.machinery, sys

_names = set(sys.argv[1].split(","))
_find = importlib.machinery.PathFinder.find_spec

class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in _names else _find(name, path, target)

sys.meta_path[:] = [_Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def without(reason: str) -> NoReturn:
    """Leave a test out for lack of a tool; an error where the tools must be there, as in continuous integration."""
    if os.environ.get("KIZU_REQUIRE_TOOLS") == "1" or os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


EACH_PRECISION = [(row, precision) for row in ENGINES for precision in row.precisions]


def installed(row: EngineRow) -> type[CpuEngine]:
    engine = engines()[row.name]
    assert issubclass(engine, CpuEngine)
    assert engine.unavailable() is None, "the development environment has every engine of the rows"
    return engine


def supported(row: EngineRow, precision: str) -> type[CpuEngine]:
    engine = installed(row)
    reason = engine.unsupported(precision)
    if reason is not None:
        assert precision not in ("fp32", "int8")  # every processor has these
        pytest.skip(reason)
    return engine
