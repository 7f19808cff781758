"""The folder in which kizu keeps what it can make or fetch again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """``kizu`` in $XDG_CACHE_HOME or ~/.cache; where a user has no home, in the system's temporary folder."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "kizu"
    try:
        return Path.home() / ".cache" / "kizu"
    except RuntimeError:  # a container's user without a passwd entry
        return Path(tempfile.gettempdir()) / f"kizu-{os.getuid()}"
