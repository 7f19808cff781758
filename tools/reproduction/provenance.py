"""Where a result comes from: versions, the sources' revision, the processor."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import kizu

ROOT = Path(__file__).resolve().parents[2]


def stamp() -> dict[str, Any]:
    """Revision (and whether the package or the tools differ from it), versions, processor."""
    revision, dirty = _sources()
    versions = {"kizu": kizu.__version__, "torch": str(torch.__version__)}
    return {"revision": revision, "dirty": dirty, **versions, "processor": _processor()}


def now() -> str:
    """The present time."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _sources() -> tuple[str, bool]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "python", "csrc", "tools")
        return git("rev-parse", "--short=12", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    except OSError:
        pass
    return platform.processor() or platform.machine()
