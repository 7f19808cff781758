"""Builds and runs the programs of cuda_on_cpu/planted. A tool that is missing is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLANTED = ROOT / "tests" / "cuda_on_cpu" / "planted"
BUILDS = ROOT / "build" / "cuda_on_cpu"

SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
MISUSE = 86  # the emulator's exit status
RACE = 66


def tool(name: str) -> str:
    """The path of a program that these tests need; without it they fail."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if not found:
        pytest.fail(f"{name} is not installed, and the CUDA emulator's tests need it")
    return found


def build(name: str, *options: str) -> Path:
    """Configures and builds the planted programs; a second time only what has changed."""
    folder = BUILDS / name
    configure = [tool("cmake"), "-S", str(PLANTED), "-B", str(folder), "-G", "Ninja", *options]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, [tool("cmake"), "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
    return folder


@cache
def variant(name: str) -> Path:
    """The programs, instrumented by a sanitizer or plain."""
    compiler, nvcc = tool("g++"), tool("nvcc")
    return build(
        name,
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DCUDA_ON_CPU_NVCC={nvcc}",
        f"-DPLANTED_SANITIZE={SANITIZERS[name]}",
    )


def environment(order: str, seed: int = 1) -> dict[str, str]:
    return os.environ | {
        "CUDA_ON_CPU_ORDER": order,
        "CUDA_ON_CPU_SEED": str(seed),
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE}:atexit_sleep_ms=0",
        "ASAN_OPTIONS": "detect_leaks=0",
    }


def run(command: list[str | Path], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=120)
