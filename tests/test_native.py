"""Every operation's row of cases in C++, in every build: sanitizers, instruction sets, another processor, CUDA.

The builds are the presets of CMakePresets.json; the cases come from native/cases.py. A cross-compiler, qemu or nvcc
that is missing is a skip, and under ``KIZU_REQUIRE_TOOLS=1`` or ``CI`` an error. A program has 5 minutes, all runs of
emulated CUDA 8 and those of another processor 4.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from native.cases import Case, all_cases, write_cases

ROOT = Path(__file__).resolve().parent.parent
NVCC = "install NVIDIA's CUDA toolkit 12.8 or newer"
TIMEOUT = 300.0  # seconds of one program
BUDGETS = {"emulated CUDA": 480.0, "another processor": 240.0}  # seconds of all runs of the kind, without the builds
spent = dict.fromkeys(BUDGETS, 0.0)
REQUIRED = os.environ.get("KIZU_REQUIRE_TOOLS") == "1" or bool(os.environ.get("CI"))
X86 = platform.machine() in ("x86_64", "AMD64")
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@dataclass(frozen=True)
class Build:
    """A preset of CMakePresets.json: the tools it needs beyond a C++ compiler, and what runs its programs."""

    preset: str
    levels: tuple[str, ...]  # "best": the best that the processor has
    orders: tuple[str, ...] = ("forward", "reverse", "random")  # of the threads of emulated CUDA
    tools: tuple[tuple[str, str], ...] = ()  # command, what gives it
    runner: tuple[str, ...] = ()


LEVELS = ("scalar", "sse4", "avx2", "avx512") if X86 else ("scalar", "neon")
BUILDS = {
    build.preset: build
    for build in (
        Build("plain", LEVELS),
        Build("asan", LEVELS),
        Build("tsan", ("best",)),  # threads are shared out alike at each level
        Build("ptx", (), ("random",), tools=(("nvcc", NVCC),)),
        Build(
            "aarch64",
            ("scalar", "neon"),
            ("random",),
            tools=(
                ("aarch64-linux-gnu-g++", "apt-get install g++-aarch64-linux-gnu"),
                ("qemu-aarch64", "apt-get install qemu-user"),
            ),
            runner=("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
        ),
    )
}
CUDA_HEADERS = [
    folder
    for folder in (
        *(Path(os.environ[name]) / "include" for name in ("CUDA_PATH", "CUDA_HOME") if name in os.environ),
        *sorted(Path("/usr/local").glob("cuda*/include")),
        Path("/usr/include"),
    )
    if (folder / "cuda_fp16.h").exists()
]
NO_CUDA_HEADERS = f"CUDA's headers are not installed: {NVCC}"
# The order that is random differs with the sources: each change is tested in another one, a failure can be repeated.
SOURCES = sorted(path for path in ROOT.glob("csrc/**/*") if path.is_file())
SEED = os.environ.get("CUDA_ON_CPU_SEED") or str(zlib.crc32(b"".join(path.read_bytes() for path in SOURCES)))


def missing(what: str) -> None:
    """A skip, or where all tools are required an error."""
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


def tool(name: str) -> str:
    """A build tool, of this Python's environment if it has it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found, f"{name} is not installed"
    return found


@functools.cache
def built(preset: str) -> Path | str:
    """The folder of a build's programs, or why there is none."""
    for command, hint in BUILDS[preset].tools:
        if not shutil.which(command):
            return f"{command} is not installed: {hint}"
    if preset == "ptx" and not CUDA_HEADERS:
        return NO_CUDA_HEADERS
    folder = ROOT / "build" / "native" / preset
    configure = [tool("cmake"), "--preset", preset, f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    if CUDA_HEADERS:
        configure.append(f"-DCUDA_ON_CPU_INCLUDE_DIR={CUDA_HEADERS[0]}")
    else:
        configure.append("-DKIZU_CUDA=OFF")
    for step in (configure, [tool("cmake"), "--build", str(folder)]):
        passed(subprocess.run(step, cwd=ROOT, capture_output=True, text=True))
    return folder / "tests" / "native"


def run(preset: str, program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a build; the time it takes is added to that of its kind."""
    folder = built(preset)
    if isinstance(folder, str):
        missing(folder)
    runner = BUILDS[preset].runner
    command = [*runner, f"{folder}/{program}", *map(str, arguments)]
    begin = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, **SANITIZERS, **environment}
    )
    if runner or "cuda" in arguments:
        spent["another processor" if runner else "emulated CUDA"] += time.monotonic() - begin
    done.args = [*(f"{name}={value}" for name, value in environment.items()), *command]  # as a failure shows it
    return done


def passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.args}: exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="session")
def cases() -> Sequence[Case]:
    """All operations' cases."""
    return list(all_cases())


@pytest.fixture(scope="session")
def case_file(cases: Sequence[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of all operations' cases."""
    path = tmp_path_factory.mktemp("native") / "all.cases"
    write_cases(path, cases)
    return path


@pytest.fixture(scope="session")
def cuda_cases(cases: Sequence[Case]) -> Sequence[Case]:
    """Those that CUDA takes."""
    return [case for case in cases if "cuda" in case.devices]


@pytest.fixture(scope="session")
def cuda_case_file(cuda_cases: Sequence[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of those."""
    path = tmp_path_factory.mktemp("native") / "cuda.cases"
    write_cases(path, cuda_cases)
    return path


@pytest.mark.parametrize("preset", BUILDS)
def test_checks_without_cases(preset: str) -> None:
    passed(run(preset, "unit_checks"))


@pytest.mark.parametrize("preset", BUILDS)
def test_checks_of_captured_graphs(preset: str) -> None:
    if not CUDA_HEADERS:
        missing(NO_CUDA_HEADERS)
    done = run(preset, "replay_checks", CUDA_ON_CPU_SEED=SEED)
    passed(done)
    assert re.fullmatch(r"\d{2,} checks, 0 failures\n", done.stdout)


@pytest.mark.parametrize(
    ("preset", "level"), [(build.preset, level) for build in BUILDS.values() for level in build.levels]
)
def test_cases_on_the_cpu(preset: str, level: str, case_file: Path, cases: Sequence[Case]) -> None:
    levels = run(preset, "run_cases", "--levels").stdout.split()
    assert levels[-1:] == ["scalar"]
    if level == "best":
        level = levels[0]
    if level not in levels:
        lacking = f"this processor has no {level}, but {', '.join(levels)}"
        if level in ("avx2", "avx512"):
            pytest.skip(lacking)
        missing(lacking)  # the least that a build is for
    done = run(preset, "run_cases", case_file, "--threads", 3, KIZU_SIMD=level)
    passed(done)
    assert done.stdout == f"{len(cases)} cases, 0 failures\n"


@pytest.mark.parametrize(
    ("preset", "order"), [(build.preset, order) for build in BUILDS.values() for order in build.orders]
)
def test_cases_on_emulated_cuda(preset: str, order: str, cuda_case_file: Path, cuda_cases: Sequence[Case]) -> None:
    if not CUDA_HEADERS:
        missing(NO_CUDA_HEADERS)
    seed = {"CUDA_ON_CPU_SEED": SEED}
    done = run(preset, "run_cases", cuda_case_file, "--device", "cuda", CUDA_ON_CPU_ORDER=order, **seed)
    passed(done)
    assert done.stdout == f"{len(cuda_cases)} cases, 0 failures\n"


# That a failure is seen, on cases that were tampered with.


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("output", [0, 1])
def test_a_wrong_bit_fails_each_case(device: str, output: int, cases: Sequence[Case], tmp_path: Path) -> None:
    if device == "cuda" and not CUDA_HEADERS:
        missing(NO_CUDA_HEADERS)
    wrong = [
        case.with_a_bit_flipped(list(case.expected)[output])
        for case in cases
        if device in case.devices and len(case.expected) > output
    ]
    assert len(wrong) > 10
    write_cases(tmp_path / "wrong.cases", wrong)
    done = run("plain", "run_cases", tmp_path / "wrong.cases", "--device", device)
    assert done.returncode == 1
    *lines, summary = done.stdout.splitlines()
    assert summary == f"{len(wrong)} cases, {len(wrong)} failures"
    assert len(lines) == 2 * len(wrong)  # each by both lanes
    for case in wrong:
        said = [line for line in lines if line.startswith(f"{case.name}: {device}")]
        assert len(said) == 2
        assert all(": 1 of " in line and ", expected " in line for line in said)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["prepare/identity", "prepare/Mono16", "score/pixels_129", "smooth_map/enlarged"])
def test_reading_beyond_an_input_is_found(device: str, name: str, cases: Sequence[Case], tmp_path: Path) -> None:
    if device == "cuda" and not CUDA_HEADERS:
        missing(NO_CUDA_HEADERS)
    case = next(case for case in cases if case.name == name)
    short = {key: array[..., :-1] for key, array in case.given.items() if key in ("frames", "x_hat", "map")}
    write_cases(tmp_path / "short.cases", [replace(case, given={**case.given, **short})])
    done = run("asan", "run_cases", tmp_path / "short.cases", "--device", device)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr


def test_a_file_that_is_cut_off_is_refused(case_file: Path, tmp_path: Path) -> None:
    content = case_file.read_bytes()
    for length in (0, 5, len(content) // 3, len(content) - 1):
        (tmp_path / "short.cases").write_bytes(content[:length])
        done = run("plain", "run_cases", tmp_path / "short.cases")
        assert done.returncode == 2, length
        assert "short.cases: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the file of cases is missing"),
        (("no-such-file",), "cannot be opened"),
        (("FILE", "--device", "tpu"), "'--device tpu' is not understood"),
        (("FILE", "--lanes", "3"), "'--lanes 3' is not understood"),
        (("FILE", "--threads", "x"), "--threads is 'x'"),
        (("FILE", "--threads", "0"), "threads is 0"),
        (("FILE", "--only", "nonsense"), "no case is named *nonsense*"),
        (("FILE", "--seed"), "--seed needs a value"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: tuple[str, ...], said: str, case_file: Path) -> None:
    done = run("plain", "run_cases", *(case_file if each == "FILE" else each for each in arguments))
    assert done.returncode == 2
    assert said in done.stderr


def test_an_instruction_set_that_is_not_there_is_refused(case_file: Path) -> None:
    done = run("plain", "run_cases", case_file, KIZU_SIMD="mmx")
    assert done.returncode == 2
    assert "KIZU_SIMD is 'mmx', but this processor and build have: " in done.stderr
    assert "scalar" in done.stderr


# That a processor runs nothing that was compiled for a newer one: of functions of one name the linker keeps any.


def objects(folder: str) -> list[Path]:
    """Objects of the plain build, without the emulator's."""
    programs = built("plain")
    assert isinstance(programs, Path)
    found = sorted((programs.parents[1] / "CMakeFiles" / folder / "csrc").rglob("*.o"))
    assert found
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_defines_nothing_but_its_kernels(level: str) -> None:
    for path in objects(f"kizu_{level}.dir"):
        done = subprocess.run([tool("nm"), "-C", "--defined-only", path], capture_output=True, text=True)
        passed(done)
        symbols = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()]
        kernels = path.name.removesuffix(".cpp.o")
        shared = [name for kind, name in symbols if not kind.islower() or kind in "uvw"]  # external, unique or weak
        assert shared == [f"kizu::cpu::{level}::{kernels}"]


@pytest.mark.skipif(not X86, reason="other families have no newer registers")
def test_what_is_of_no_level_is_compiled_for_the_oldest() -> None:
    newer = re.compile(r"%[yz]mm\d|\tv\w+ .*%xmm\d")  # AVX's, and SSE's in AVX's encoding

    def instructions(folder: str) -> list[str]:
        done = subprocess.run([tool("objdump"), "-d", *objects(folder)], capture_output=True, text=True)
        passed(done)
        return [line for line in done.stdout.splitlines() if newer.search(line)]

    assert instructions("kizu_avx2.dir")
    assert instructions("kizu_sse4.dir") == []
    assert instructions("kizu_native.dir") == []


@pytest.mark.parametrize("kind", BUDGETS)
def test_the_runs_keep_to_their_time(kind: str) -> None:
    assert spent[kind] <= BUDGETS[kind], f"{kind}: {spent[kind]:.0f} s, but at most {BUDGETS[kind]:.0f} s"
