"""What kizu does with TensorRT where neither it nor a GPU is: on the real Python bindings, with a stub below them.

How far the packages go without a device: ``tensorrt_rtx`` compiles (test_tensorrt_builds.py) and loads nothing.
``tensorrt`` does nothing: its bindings are a wheel, its libraries come with JetPack or CUDA. The bindings need only
eight functions of the library and call everything else through virtual functions, so tests/tensorrt_stub/stub.c can
stand in for it. Building, loading, binding and running in engines/tensorrt.py then go through the bindings of each
release that is supported, to the last argument: names, signatures and conversions are real, as is what they do with a
failure. What the library itself answers is made up.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import PYTHON, without
from kizu import _core
from kizu.engine import BuildOptions, engines
from rows import CUDA_ENGINES, EngineRow

FOLDER = Path(__file__).parent / "tensorrt_stub"
BUILD = Path(__file__).parents[1] / "build" / "tensorrt"
LIBRARIES = (
    *(f"lib{name}.so.{release}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser") for release in (10, 11)),
    "libtensorrt_rtx.so.1",
    "libtensorrt_onnxparser_rtx.so.1",
)


@dataclass(frozen=True)
class Bindings:
    """Python bindings of a release: their module and the wheel that holds them."""

    title: str
    module: str
    wheel: str


BINDINGS = (
    Bindings("TensorRT 10.3 of JetPack 6", "tensorrt_bindings", "tensorrt_cu12_bindings==10.3.0"),
    Bindings("TensorRT 11.4", "tensorrt_bindings", "tensorrt_cu13_bindings==11.4.0.106"),
    Bindings("TensorRT-RTX 1.4", "tensorrt_rtx_bindings", "tensorrt_rtx_cu13_bindings==1.4.0.76"),
    Bindings("TensorRT-RTX 1.7", "tensorrt_rtx_bindings", "tensorrt_rtx_cu13_bindings==1.7.1.116"),
)


@functools.cache
def library() -> Path | str:
    """The stub under all names that bindings ask for, or why there is none."""
    if platform.machine() != "x86_64":
        return "the stub of TensorRT's library is for x86-64"
    if shutil.which("gcc") is None:
        return "gcc is not installed: apt-get install gcc"
    folder = BUILD / "stub"
    folder.mkdir(parents=True, exist_ok=True)
    stub = folder / "libstub.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", str(FOLDER / "stub.c")]
    subprocess.run([*command, "-o", f"{stub}.{os.getpid()}"], check=True, timeout=120)
    Path(f"{stub}.{os.getpid()}").replace(stub)
    for name in LIBRARIES:
        if not (folder / name).exists():
            (folder / name).symlink_to(stub.name)
    return stub


@functools.cache
def wheel(requirement: str) -> Path | str:
    """The folder of an unpacked wheel, or why there is none."""
    folder = BUILD / f"{requirement.replace('==', '-')}-py{sys.version_info.major}{sys.version_info.minor}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", work, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        files = list(Path(work).glob("*.whl"))
        if done.returncode or not files:
            return f"{requirement} cannot be had: {done.stderr.strip()[-300:]}"
        with zipfile.ZipFile(files[0]) as archive:
            archive.extractall(Path(work, "unpacked"))
        Path(work, "unpacked").rename(folder)
    return folder


@pytest.mark.parametrize("bindings", BINDINGS, ids=lambda bindings: bindings.title)
def test_on_the_real_bindings(bindings: Bindings) -> None:
    stub, folder = library(), wheel(bindings.wheel)
    for found in (stub, folder):
        if isinstance(found, str):
            without(found)
    assert isinstance(stub, Path)
    environment = {
        **os.environ,
        "KIZU_BINDINGS": bindings.module,
        "KIZU_STUB": str(stub),
        "LD_LIBRARY_PATH": str(stub.parent),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), str(PYTHON), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(FOLDER / "cases.py")], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts["passed"] >= 45
    assert counts["skipped"] <= 6  # what only the other package has


# The driver is asked first


class Driver:
    """libcuda.so.1, or what there is of it."""

    def __init__(self, init: int = 0, devices: int = 1) -> None:
        self.init, self.devices, self.asked = init, devices, 0

    def __call__(self, name: str) -> Driver:
        assert name == "libcuda.so.1"
        return self

    def cuInit(self, flags: int) -> int:  # noqa: N802
        self.asked += 1
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both packages can be found; what is imported of them from now on."""
    imported: list[str] = []

    def find(name: str, package: str | None = None) -> object:
        return object()

    real = importlib.import_module

    def load(name: str, package: str | None = None) -> Any:
        if name not in {row.package for row in CUDA_ENGINES}:
            return real(name, package)
        imported.append(name)
        raise ImportError("it must not be imported")

    monkeypatch.setattr("importlib.util.find_spec", find)
    monkeypatch.setattr(importlib, "import_module", load)
    return imported


EACH = pytest.mark.parametrize("row", CUDA_ENGINES, ids=lambda row: row.name)


@EACH
@pytest.mark.parametrize(
    ("driver", "devices", "reason"),
    [
        (None, 0, "no CUDA driver: libcuda.so.1: cannot open"),
        (Driver(init=100), 0, "the CUDA driver offers no device (its error 100)"),
        (Driver(devices=0), 0, "the CUDA driver offers no device (its error 0)"),
        (Driver(), 0, "kizu was built without CUDA, or with a newer one than the driver's"),
    ],
    ids=["no driver", "no device", "none counted", "kizu without CUDA"],
)
def test_without_a_device_nothing_is_imported(
    row: EngineRow,
    driver: Driver | None,
    devices: int,
    reason: str,
    importable: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", driver or absent)
    monkeypatch.setattr(_core, "cuda_devices", lambda: devices)
    engine = engines()[row.name]
    assert str(engine.unavailable()).startswith(reason)
    assert importable == []


@EACH
def test_with_a_device_a_package_that_cannot_be_imported_says_so(
    row: EngineRow, importable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Driver())
    monkeypatch.setattr(_core, "cuda_devices", lambda: 1)
    engine = engines()[row.name]
    assert f"cannot be imported: it must not be imported ({engine.install})" in str(engine.unavailable())
    assert importable == [row.package]


@EACH
def test_batches_must_ascend(row: EngineRow) -> None:
    engine = engines()[row.name]
    for low, best, high in ((2, 1, 4), (1, 5, 4), (0, 1, 1)):
        reason = engine.cannot_build(BuildOptions("fp32", 1, high, low, best))
        assert f"the batches are {low}:{best}:{high}, but must ascend" in str(reason)


@EACH
def test_an_unknown_precision_is_unsupported_with_those_it_has(row: EngineRow) -> None:
    reason = engines()[row.name].unsupported("bf16")
    assert reason is not None
    for precision in row.precisions:
        assert precision in reason
        assert engines()[row.name].unsupported(precision) is None
