"""Where data sets lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kizu.data.sources import SOURCES, Source
from kizu.errors import DataError
from kizu.user_cache import user_cache


def cache_folder() -> Path:
    """Where fetched data sets go: ``data`` in the user's cache of kizu."""
    return user_cache() / "data"


def search_folders() -> tuple[Path, ...]:
    """Folders that are searched, in this order.

    $KIZU_DATA if it is set; shared/data beside the current directory; the same beside the project's own
    folder where the package runs from a source tree; the user's cache.
    """
    folders = []
    if os.environ.get("KIZU_DATA"):
        folders.append(Path(os.environ["KIZU_DATA"]))
    folders.append(Path.cwd().parent / "shared" / "data")
    # An installed package has no pyproject.toml three folders up.
    project = Path(__file__).resolve().parents[3]
    if (project / "pyproject.toml").is_file():
        folders.append(project.parent / "shared" / "data")
    folders.append(cache_folder())
    return tuple(dict.fromkeys(folders))


def source(name: str) -> Source:
    """The public data set of that name. DataError lists the names."""
    for item in SOURCES:
        if item.name == name:
            return item
    raise DataError(f"no data set {name!r}; accepted: {', '.join(item.name for item in SOURCES)}")


def find(name: str, *, part: str = "") -> Path | None:
    """The folder of a data set that holds the entry `part` ("screw"), None if it is not here."""
    return next(_candidates(source(name), part), None)


def locate(name: str, *, part: str = "") -> Path:
    """The folder of a data set ("mvtec", "magnetic_tile", "mnist", "coil100", "cookies").

    With `part` the folder must hold that entry, such as a category of MVTec. Raises DataError that says
    where it was looked for, where to put the files and how to fetch them.
    """
    found = find(name, part=part)
    if found is not None:
        return found
    wanted = source(name)
    what = f"{name} ({part})" if part else name
    how = f"run `kizu data fetch {name}`, or " if wanted.downloads else ""
    looked = ", ".join(str(folder) for folder in search_folders())
    raise DataError(
        f"{what}: the data set is not on this machine. Looked in {looked} for a folder "
        f"{' or '.join(wanted.folders)}. To get it, {how}download it from {wanted.homepage} and put it at "
        f"{cache_folder() / wanted.folders[0]}, or set KIZU_DATA to the folder that holds "
        f"{wanted.folders[0]}"
    )


def _candidates(wanted: Source, part: str) -> Iterator[Path]:
    for folder in search_folders():
        for name in wanted.folders:
            root = folder / name
            inside = (part,) if part else wanted.contains
            if any((root / entry).exists() for entry in inside):
                yield root
