"""What a Jetson is, and what on it is not as kizu needs it.

Only the standard library, and syntax that Python 3.8 reads, so that an older one gets a sentence too.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
JETPACKS = {36: "JetPack 6", 38: "JetPack 7"}
# JetPack 6.1 has these; 6.0 has CUDA 12.2 and TensorRT 8.6.
LEAST_CUDA, LEAST_TENSORRT, LEAST_GCC = (12, 6), (10, 3), (11,)
LEAST_MEMORY_GB, LEAST_DISK_GB = 2, 4


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do if that will not do."""

    what: str
    found: str | None
    fault: str | None = None
    note: str | None = None


def said(*command: str) -> str | None:
    """What a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read(path: Path) -> str | None:
    """A small system file's text; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def version(text: str | None) -> tuple[int, ...]:
    """The first version number in a text; () if there is none."""
    found = re.search(r"\d+(\.\d+)+|\d+", text or "")
    return tuple(map(int, found.group().split("."))) if found else ()


def l4t(root: Path) -> tuple[int, str] | None:
    """Release and revision of Jetson Linux, e.g. (36, "36.4.3")."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read(root / "etc/nv_tegra_release") or "")
    return (int(found[1]), f"{found[1]}.{found[2]}") if found else None


def nvcc(root: Path) -> str | None:
    """The CUDA compiler: on the PATH, or where JetPack puts it."""
    return shutil.which("nvcc") or shutil.which(str(root / "usr/local/cuda/bin/nvcc"))


def driver() -> dict[str, str] | None:
    """The first GPU as the CUDA driver names it."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, number, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (75, 76):  # compute capability: major, minor
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return {
        "name": name.value.decode(),
        "compute_capability": ".".join(capability),
        "cuda": f"{number.value // 1000}.{number.value % 1000 // 10}",
    }


def gpu_clock(root: Path) -> dict[str, int] | None:
    """MHz of the GPU: now, least and most; equal where the clocks are held."""
    for folder in sorted((root / "sys/class/devfreq").glob("*gpu*")):
        found = {name: read(folder / f"{name}_freq") for name in ("cur", "min", "max")}
        if all(found.values()):
            return {name: int(text or 0) // 1000000 for name, text in found.items()}
    return None


def temperatures(root: Path) -> dict[str, float]:
    """Degrees Celsius, by the zone's name."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        degrees = read(zone / "temp")
        if degrees and re.fullmatch(r"-?\d+", degrees):
            found[read(zone / "type") or zone.name] = int(degrees) / 1000
    return found


def facts(root: Path, python: str) -> dict[str, Any]:
    """All that a result must say of the device."""
    release = l4t(root)
    compiler = nvcc(root)
    cuda = re.search(r"release ([\d.]+)", (said(compiler, "--version") if compiler else None) or "")
    mode = re.search(r"NV Power Mode: *(\S+)", said("nvpmodel", "-q") or said("sudo", "-n", "nvpmodel", "-q") or "")
    memory = re.search(r"MemAvailable: *(\d+) kB", read(root / "proc/meminfo") or "")
    return {
        "model": read(root / "proc/device-tree/model"),
        "l4t": release[1] if release else None,
        "jetpack": said("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"),
        "driver": driver(),
        "cuda": cuda[1] if cuda else None,
        "nvcc": compiler,
        "tensorrt": said(python, "-c", "import tensorrt; print(tensorrt.__version__)"),
        "python": platform.python_version(),
        "gcc": said("g++", "-dumpfullversion"),
        "kernel": platform.release(),
        "power_mode": mode[1] if mode else None,
        "gpu_mhz": gpu_clock(root),
        "jetson_clocks": said("sudo", "-n", "jetson_clocks", "--show"),
        "memory_gb": round(int(memory[1]) / 1e6, 1) if memory else None,
        "disk_gb": round(shutil.disk_usage(ROOT).free / 1e9, 1),
        "commit": said("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "changed": bool(said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
    }


def findings(known: dict[str, Any]) -> list[Finding]:
    """What is right and what is not."""
    release = version(known["l4t"])
    jetpack = JETPACKS.get(release[0]) if release else None
    accepted = " or ".join(JETPACKS.values())
    if not release:
        system = f"/etc/nv_tegra_release is missing: this is no Jetson, or its system is not NVIDIA's; flash {accepted}"
    elif not jetpack:
        system = f"this is Jetson Linux {known['l4t']}; flash {accepted} with NVIDIA SDK Manager"
    else:
        system = None
    gpu, clock, mode = known["driver"], known["gpu_mhz"], known["power_mode"]
    held = bool(clock) and clock["min"] == clock["max"]

    def least(what: str, found: str | None, bound: tuple[int, ...], fix: str) -> Finding:
        wanted = ".".join(map(str, bound))
        fault = f"{wanted} or newer is needed: {fix}" if found else f"it is missing: {fix}"
        return Finding(what, found, None if version(found) >= bound else fault)

    def room(what: str, found: float | None, bound: float, fix: str) -> Finding:
        fault = None if found is None or found >= bound else f"{bound} GB are needed: {fix}"
        return Finding(what, None if found is None else f"{found} GB", fault)

    return [
        Finding("device", known["model"]),
        Finding("Jetson Linux", f"{known['l4t']} ({jetpack or 'not known'})" if release else None, system),
        Finding(
            "GPU",
            f"{gpu['name']}, compute capability {gpu['compute_capability']}" if gpu else None,
            None if gpu else "the CUDA driver offers no device: sudo apt install nvidia-jetpack, and add yourself to "
            "the groups video and render, then log in again",
        ),
        least("CUDA toolkit", known["cuda"], LEAST_CUDA, "sudo apt install nvidia-jetpack, of JetPack 6.1 or newer"),
        least(
            "TensorRT for Python",
            known["tensorrt"],
            LEAST_TENSORRT,
            "sudo apt install nvidia-jetpack python3-libnvinfer, of JetPack 6.1 or newer, and use the system's Python "
            "(PYTHON=/usr/bin/python3)",
        ),
        least("Python", known["python"], (3, 10), "name a newer one: PYTHON=python3.10"),
        Finding(
            "Python's headers and venv",
            "found" if python_can_build() else None,
            None if python_can_build() else "sudo apt install python3-dev python3-venv",
        ),
        least("g++", known["gcc"], LEAST_GCC, "sudo apt install build-essential"),
        room("free memory", known["memory_gb"], LEAST_MEMORY_GB, "close other programs, or stop the desktop: "
             "sudo systemctl isolate multi-user.target"),
        room("free disk", known["disk_gb"], LEAST_DISK_GB, "delete something, or work on an NVMe disk"),
        Finding(
            "power mode",
            mode,
            note=None if mode and "MAXN" in mode else "measure at full power: sudo nvpmodel -m 0, or the number that "
            "/etc/nvpmodel.conf gives MAXN",
        ),
        Finding(
            "GPU clock",
            f"{clock['cur']} MHz ({clock['min']} to {clock['max']})" if clock else None,
            note=None if held else "hold the clocks while you measure: sudo jetson_clocks",
        ),
    ]  # fmt: skip


def python_can_build() -> bool:
    """Whether extensions can be compiled for this Python, and virtual environments made of it."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return headers.exists() and importlib.util.find_spec("ensurepip") is not None
