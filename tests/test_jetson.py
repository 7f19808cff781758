"""tools/jetson against a made-up Jetson: its commands and files are fakes, the measurements are real ones of a CPU."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from kizu import _core
from test_native import ROOT, tool

sys.path.insert(0, str(ROOT / "tools" / "jetson"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import bring_up
from result import made_up, write_result

import jetson
from comparisons import COMPARISONS, Comparison, gpu

FOLDER = ROOT / "tools" / "jetson"
DRIVER = """
#include <string.h>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int) { return *device = 0, 0; }
int cuDeviceGetName(char* name, int, int) { return strcpy(name, "Orin"), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 75 ? 8 : 7, 0; }
int cuDriverGetVersion(int* version) { return *version = 12060, 0; }
}
"""
# The environment's Python: what needs a GPU or the network is only written down, with the exit code that is asked for.
PYTHON = """#!/bin/bash
echo "python $*" >> "$LOG"
case "$*" in
  "-m pip"*) exit "${PIP_EXITS:-0}" ;;
  "-c import sys; from kizu"*) exit "${DEVICES_EXITS:-0}" ;;
  "-m pytest"*) echo "KIZU_REQUIRE_GPU=$KIZU_REQUIRE_GPU" >> "$LOG"; exit "${PYTEST_EXITS:-0}" ;;
  */bench.py*)
    [ -n "$BENCH_EXITS" ] && exit "$BENCH_EXITS"
    echo '{"comparisons": [{"name": "gpu_fp16_p50", "value": 0.5, "limit": 1.5, "verdict": "PASS"}]}' > "${@: -1}" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
KIZU = """#!/bin/bash
echo "kizu $*" >> "$LOG"
if [ "$1" = build ]; then exit "${BUILD_EXITS:-0}"; fi
"""
COMMANDS = {
    "nvpmodel": "echo 'NV Power Mode: MAXN'; echo 0",
    "jetson_clocks": "echo 'GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000'",
    "sudo": 'shift; exec "$@"',
    "nvcc": "echo 'Cuda compilation tools, release 12.6, V12.6.68'",
    "dpkg-query": "echo 6.2+b77",
    "g++": "echo 11.4.0",
}
SYSTEM = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/meminfo": "MemTotal: 64349720 kB\nMemAvailable: 58123456 kB",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000",
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000",
    "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "45250",
}


@dataclass
class Fake:
    """A made-up Jetson in a folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, path: str, text: str, *, mode: int = 0o644) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)
        return file

    def command(self, name: str, script: str) -> None:
        self.write(f"bin/{name}", f"#!/bin/bash\n{script}\n", mode=0o755)

    def bring_up(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        places = {"--root": "root", "--venv": "venv", "--output": "output"}
        options = [str(text) for name, place in places.items() for text in (name, self.folder / place)]
        return subprocess.run(
            [FOLDER / "bring-up", *arguments, *options],
            env={**os.environ, **self.environment, **environment},
            capture_output=True,
            text=True,
        )

    def log(self) -> list[str]:
        return (self.folder / "log").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    made = Fake(tmp_path)
    for name, text in SYSTEM.items():
        made.write(f"root/{name}", text)
    for name, script in COMMANDS.items():
        made.command(name, script)
    made.write("packages/tensorrt.py", "__version__ = '10.3.0'\n")
    source = made.write("lib/driver.cpp", DRIVER)
    subprocess.run([tool("g++"), "-shared", "-fPIC", source, "-o", tmp_path / "lib/libcuda.so.1"], check=True)
    made.environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(tmp_path / "lib"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path / "packages"), os.environ.get("PYTHONPATH")])),
        "PYTHON": sys.executable,
        "REAL_PYTHON": sys.executable,
        "LOG": str(tmp_path / "log"),
    }
    return made


@pytest.fixture
def installed(fake: Fake) -> Fake:
    """With an environment, so that none is made."""
    fake.write("venv/bin/python", PYTHON, mode=0o755)
    fake.write("venv/bin/kizu", KIZU, mode=0o755)
    return fake


def test_a_jetson_as_it_should_be(fake: Fake) -> None:
    done = fake.bring_up("check")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("ok", "note", "FAULT"))]
    assert [kind for kind, _ in lines] == ["ok"] * 12
    for text in (
        "NVIDIA Jetson AGX Orin Developer Kit",
        "Jetson Linux: 36.4.3 (JetPack 6)",
        "Orin, compute capability 8.7",
        "CUDA toolkit: 12.6",
        "TensorRT for Python: 10.3.0",
        "power mode: MAXN",
        "GPU clock: 1300 MHz (1300 to 1300)",
        "free memory: 58.1 GB",
    ):
        assert text in done.stdout


FAULTS = {
    "no Jetson": ("root/etc/nv_tegra_release", None, "this is no Jetson"),
    "JetPack 5": (
        "root/etc/nv_tegra_release",
        "# R35 (release), REVISION: 4.1, GCID: 33958178",
        "this is Jetson Linux 35.4.1; flash JetPack 6 or JetPack 7",
    ),
    "no driver": ("lib/libcuda.so.1", "", "the CUDA driver offers no device: sudo apt install nvidia-jetpack"),
    "no TensorRT": (
        "packages/tensorrt.py",
        "raise ImportError",
        "sudo apt install nvidia-jetpack python3-libnvinfer",
    ),
    "old TensorRT": ("packages/tensorrt.py", "__version__ = '8.6.2'", "8.6.2; 10.3 or newer is needed"),
    "no memory": ("root/proc/meminfo", "MemAvailable: 1000000 kB", "1.0 GB; 2 GB are needed: close other programs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_with_what_to_do(fake: Fake, fault: str) -> None:
    path, text, says = FAULTS[fault]
    if text is None:
        (fake.folder / path).unlink()
    else:
        fake.write(path, text)
    done = fake.bring_up()  # all steps: none runs after the first
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert says in line
    assert "bring-up stopped at check: not all is as kizu needs it" in done.stderr
    assert "== install ==" not in done.stdout


@pytest.mark.parametrize(
    ("command", "script", "says"),
    [
        ("nvcc", "echo 'Cuda compilation tools, release 11.4, V11.4.315'", "11.4; 12.6 or newer is needed"),
        ("nvcc", "exit 1", "CUDA toolkit: not found; it is missing: sudo apt install nvidia-jetpack"),
        ("g++", "echo 9.4.0", "9.4.0; 11 or newer is needed: sudo apt install build-essential"),
    ],
)
def test_compilers(fake: Fake, command: str, script: str, says: str) -> None:
    fake.command(command, script)
    done = fake.bring_up("check")
    assert done.returncode == 1
    assert says in done.stdout


def test_power_and_clocks_are_noted_only(fake: Fake) -> None:
    fake.command("nvpmodel", "echo 'NV Power Mode: MODE_15W'; echo 2")
    fake.write("root/sys/class/devfreq/17000000.gpu/min_freq", "306000000")
    done = fake.bring_up("check")
    assert done.returncode == 0
    assert "note  power mode: MODE_15W; measure at full power: sudo nvpmodel -m 0" in done.stdout
    assert "note  GPU clock: 1300 MHz (306 to 1300); hold the clocks" in done.stdout


def test_all_steps(installed: Fake, bundle_path: Path) -> None:
    options = ("--bundle", str(bundle_path), "--precision", "fp32", "int8", "--engine", "openvino")
    done = installed.bring_up(*options, KIZU_CACHE=str(installed.folder / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    log = installed.log()
    pip = [line for line in log if " -m pip install" in line]
    assert "hypothesis" in pip[0]
    assert "KIZU_CUDA=ON" in pip[1]
    assert "CMAKE_CUDA_ARCHITECTURES=87-real" in pip[1]
    assert f"CMAKE_CUDA_COMPILER={installed.folder / 'bin' / 'nvcc'}" in pip[1]
    assert not re.search("torch|openvino|onnx", " ".join(pip))
    builds = [line for line in log if line.startswith("kizu build")]
    assert builds == [f"kizu build {bundle_path} --engine openvino --precision {p}" for p in ("fp32", "int8")]
    assert "KIZU_REQUIRE_GPU=1" in log

    result = json.loads((installed.folder / "output/result.json").read_text())
    assert result["device"]["model"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert result["device"]["l4t"] == "36.4.3"
    assert result["device"]["driver"] == {"name": "Orin", "compute_capability": "8.7", "cuda": "12.6"}
    assert result["device"]["power_mode"] == "MAXN"
    assert "MaxFreq=1300500000" in result["device"]["jetson_clocks"]
    assert result["temperature"] == {"before": {"gpu-thermal": 45.25}, "after": {"gpu-thermal": 45.25}}
    assert result["comparisons"][0]["verdict"] == "PASS"
    assert [one["precision"] for one in result["measurements"]] == ["fp32", "int8"]
    page = (installed.folder / "output/result.md").read_text()
    for one in result["measurements"]:
        for spread in (one["memory_ms"], one["frame_buffer_ms"]):
            assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"] < 1000
            assert spread["calls"] == 500
        assert 1 < one["stream_frames_per_second"] < 1e6
        assert one["golden"]["off_by"] <= one["golden"]["allowed"]
        assert 0.01 < sum(one["cold_start_s"].values()) < 60
        assert f"| {one['precision']} | the frame buffer | {spread['p50']:.3f} | {spread['p90']:.3f} |" in page
    assert "| gpu_fp16_p50 | 0.5 | 1.5 | PASS |" in page
    assert "Jetson Linux | 36.4.3 |" in page


def test_measuring_refuses_what_is_off(bundle_path: Path, tmp_path: Path) -> None:
    """An engine whose scores no longer are the golden ones, although it was proved once, is not measured."""
    script = (
        "import sys, measure\n"
        "import kizu\n"
        "with kizu.load(sys.argv[1], engine='openvino', precision='fp32', cache=sys.argv[2]) as detector:\n"
        "    frames = [255 - frame for frame in detector.bundle.golden_frames()]\n"
        "    try:\n"
        "        measure.check_golden(detector, frames)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", script, str(bundle_path), str(tmp_path)]
    paths = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert re.match(r"openvino fp32 is off by [\d.]+ standard deviations .* nothing was measured", done.stdout), done


STOPS = {
    "install": ({"PIP_EXITS": "1"}, "this failed with exit code 1", "If pip could not download: connect the Jetson"),
    "test": ({"PYTEST_EXITS": "1"}, "-m pytest -m gpu -q tests/", "A test failed on this device. Please report"),
    "build": ({"BUILD_EXITS": "1"}, "kizu build", "leave the precision out with --precision"),
}


@pytest.mark.parametrize("step", STOPS)
def test_a_step_that_fails_says_what_to_do(installed: Fake, bundle_path: Path, step: str) -> None:
    environment, *says = STOPS[step]
    done = installed.bring_up(step, "--bundle", str(bundle_path), **environment)
    assert done.returncode == 1
    assert f"bring-up stopped at {step}: " in done.stderr
    for text in says:
        assert text in done.stderr


def test_an_extension_without_a_device_is_not_installed(installed: Fake) -> None:
    done = installed.bring_up("install", DEVICES_EXITS="1")
    assert done.returncode == 1
    assert "kizu is installed but finds no CUDA device: run tools/jetson/bring-up check" in done.stderr


def test_benchmarks_that_fail_leave_no_result(installed: Fake, bundle_path: Path) -> None:
    installed.write("output/bench.json", "{}")  # of an earlier run
    options = ("--bundle", str(bundle_path), "--engine", "openvino", "--precision", "fp32")
    done = installed.bring_up("bench", *options, BENCH_EXITS="1", KIZU_CACHE=str(installed.folder / "cache"))
    assert done.returncode == 1
    assert "bring-up stopped at bench: a benchmark failed." in done.stderr
    assert installed.bring_up("result", *options).returncode == 1


def test_steps_out_of_turn(fake: Fake, bundle_path: Path, tmp_path: Path) -> None:
    done = fake.bring_up("build", "--bundle", str(bundle_path))
    assert "kizu is not installed in" in done.stderr
    assert "run tools/jetson/bring-up install first" in done.stderr
    done = fake.bring_up("result")
    assert "nothing is measured yet" in done.stderr
    fake.write("venv/bin/python", PYTHON, mode=0o755)
    assert "name the bundle with --bundle part.kizu" in fake.bring_up("build").stderr
    cut = tmp_path / "cut.kizu"
    cut.write_bytes(bundle_path.read_bytes()[:-5000])
    assert "is not a whole bundle: copy it again" in fake.bring_up("build", "--bundle", str(cut)).stderr
    done = fake.bring_up("measure")
    assert done.returncode == 2
    assert "no step is called measure; there are: check, install, build, test, bench, result" in done.stderr


def test_dry_run(fake: Fake) -> None:
    """Every command in order, nothing run or written; what the commands name is there and takes its options."""
    done = fake.bring_up("--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    parts = ["-m venv --system-site-packages", "pip install", "pip install", "import _core", "kizu engines"]
    parts += ["--precision fp16", "--precision int8", "-m pytest -m gpu", "measure.py", "measure.py", "bench.py gpu_"]
    assert len(commands) == len(parts)
    for line, part in zip(commands, parts, strict=True):
        assert part in line
    assert "MADE UP, NOT MEASURED" in done.stdout
    assert "not checked" not in done.stdout
    assert not {"venv", "output", "log"} & {path.name for path in fake.folder.iterdir()}


def test_a_dry_run_finds_what_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bring_up, "COMPARISONS", ("gpu_fp16_p50", "gpu_unknown"))
    monkeypatch.setattr(bring_up, "MEASURE", tmp_path / "measure.py")
    made = bring_up.BringUp(bring_up.parser().parse_args(["--dry-run"]))
    made.examine()
    made.try_options("kizu.cli", "_parser", ["score", "part.kizu", "x.png", "--unheard-of"])
    found = "\n".join(made.wrong)
    assert "tools/bench.py has no comparison gpu_unknown" in found
    assert f"{tmp_path / 'measure.py'} is missing" in found
    assert "kizu.cli does not take score part.kizu x.png --unheard-of" in found


def test_a_result_of_what_is_not_known(tmp_path: Path) -> None:
    found = made_up(["fp16"])
    found["device"] = {}
    found["temperature"] = {"before": {}, "after": {}}
    found["comparisons"] = [{"name": "gpu_overhead", "value": None, "limit": None, "verdict": "FAIL"}]
    write_result(found, tmp_path)
    page = (tmp_path / "result.md").read_text()
    assert "| device | not known |" in page
    assert "| gpu_overhead | – | – | FAIL |" in page


@pytest.mark.parametrize("file", ["bring_up.py", "jetson.py", "result.py"])
def test_an_older_python_can_read_it(file: str) -> None:
    """So that it can say that a newer one is needed; nothing but the standard library."""
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"), feature_version=(3, 8))
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "jetson", "result"}, name


def test_versions() -> None:
    assert jetson.version("10.3.0.30-1+cuda12.5") == (10, 3, 0, 30)
    assert jetson.version("release 13") == (13,)
    assert jetson.version(None) == ()


# What a Jetson collects: no torch, no ONNX, no other engine


def closure(names: set[str]) -> set[str]:
    """These distributions and what they need, without extras."""
    found: set[str] = set()
    left = set(names)
    while left:
        name = left.pop()
        found.add(name)
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # needed elsewhere only
            continue
        left |= {r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})} - found
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this environment what bring-up installs, and nothing else."""
    folder: Path = tmp_path_factory.mktemp("site")
    for name in closure({"numpy", "Pillow", "rich", "pytest", "pytest-benchmark", "hypothesis"}):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for file in found.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    # The extension of an installation in place lies elsewhere than the package's sources.
    (folder / "kizu").mkdir()
    for source in (ROOT / "python" / "kizu").glob("[!_]*"):
        (folder / "kizu" / source.name).symlink_to(source)
    for source in (ROOT / "python" / "kizu" / "__init__.py", Path(str(_core.__file__))):
        (folder / "kizu" / source.name).symlink_to(source)
    return folder


def on_a_jetson(site: Path, *arguments: str, **environment: str) -> str:
    base: str = getattr(sys, "_base_executable", sys.executable)
    paths = str(site)
    command = [base, "-S", "-m", "pytest", "-p", "no:cacheprovider", *arguments]  # without site-packages of its own
    settings = {**os.environ, "PYTHONPATH": paths, "KIZU_REQUIRE_GPU": "0", **environment}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode in (0, 5), done.stdout + done.stderr
    return done.stdout


def test_the_gpu_tests_need_nothing_that_a_jetson_lacks(site: Path) -> None:
    planned = on_a_jetson(site, "--setup-plan", "-m", "gpu", *bring_up.GPU_TESTS)
    assert "test_several_threads_have_a_stream_each" in planned
    assert not re.search(r"SETUP +\w (trained|bundle_path)", planned), "a test for devices trains: torch is not there"


def test_all_that_a_jetson_can_run_is_run(site: Path) -> None:
    """Other files with tests for a GPU import what is not there, an engine that stands in for TensorRT."""
    marked = [file for file in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in file.read_text(encoding="utf-8")]
    for name in {str(file.relative_to(ROOT)) for file in marked} - {*bring_up.GPU_TESTS, "tests/test_jetson.py"}:
        with pytest.raises(AssertionError, match="ModuleNotFoundError"):
            on_a_jetson(site, "--collect-only", "-q", name)


def test_the_gpu_benchmarks_need_nothing_that_a_jetson_lacks(site: Path) -> None:
    collected = on_a_jetson(site, "--collect-only", "-q", "benchmarks")
    assert "test_frame_in_memory[gpu_fp16_p50]" in collected
    assert "test_latency" not in collected
    skipped = on_a_jetson(site, "-rs", "benchmarks/test_gpu.py", CUDA_VISIBLE_DEVICES="")
    assert "5 skipped" in skipped
    assert re.search("there is no CUDA device|tensorrt: not installed", skipped)  # with the emulator there is a device


# The limits of the GPU's benchmarks


def verdict(name: str, value: float | None, device: str | None) -> str:
    comparison = next(c for c in COMPARISONS if c.name == name)
    return comparison.verdict(value, instructions="avx2", device=device)


@pytest.mark.parametrize(
    ("device", "value", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 0.25, "PASS"),
        ("NVIDIA H100 80GB HBM3", 0.26, "FAIL"),
        ("NVIDIA Jetson AGX Orin Developer Kit Orin", 1.4, "PASS"),
        ("NVIDIA Jetson AGX Orin Developer Kit Orin", 1.6, "FAIL"),
        ("NVIDIA Jetson AGX Orin Developer Kit Orin", None, "FAIL"),
        ("NVIDIA Jetson Orin NX Orin", 9.0, "UNBOUND NVIDIA Jetson Orin NX Orin"),
        (None, None, "UNBOUND nothing ran on a GPU"),
    ],
)
def test_limits_by_device(device: str | None, value: float | None, expected: str) -> None:
    assert verdict("gpu_fp16_p50", value, device) == expected


def test_limits_of_processors_are_as_before() -> None:
    assert verdict("overhead_share", 0.2, None) == "PASS"
    assert verdict("overhead_share", 0.3, None) == "FAIL"
    assert verdict("overhead_share", None, None) == "FAIL"
    assert verdict("algan_int8_vs_torch", 1.0, None) == "UNBOUND avx2"
    floor = Comparison("floor", "floor", 2, ("x",))
    assert [floor.verdict(v, instructions="", device=None) for v in (2.0, 1.9)] == ["PASS", "FAIL"]


def test_the_device_is_taken_from_the_records() -> None:
    records: list[dict[str, Any]] = [{"extra_info": {"side": "x"}}, {"extra_info": {"device": "NVIDIA H100"}}]
    assert gpu(records) == "NVIDIA H100"
    assert gpu(records[:1]) is None


@pytest.mark.parametrize(("required", "code"), [("0", 0), ("1", 1)])
def test_bench_without_a_gpu(tmp_path: Path, required: str, code: int) -> None:
    """What could not be measured binds nothing, unless a GPU is required."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "KIZU_REQUIRE_GPU": required}
    command = [sys.executable, str(ROOT / "tools/bench.py"), "gpu_int8_p50", "--json", str(tmp_path / "bench.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        assert done.stdout == "gpu_int8_p50 unmeasured - UNBOUND nothing ran on a GPU\n"
        assert json.loads((tmp_path / "bench.json").read_text())["device"] is None
    else:
        assert "the benchmarks failed" in done.stderr
