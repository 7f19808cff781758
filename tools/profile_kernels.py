"""Counts what the CUDA kernels do in named workloads, without a GPU, and what time that predicts on two devices.

    tools/profile [WORKLOAD ...] [--architecture N ...] [--json FILE] [--markdown]

nvcc tells each kernel's registers, shared memory and spills. The counts come from nvcc's PTX, run on this CPU by
tests/cuda_on_cpu: a workload is counted only after the CPU's operation and the kernels have both given the bits of the
NumPy twin. Times are predictions of a roofline, not measurements: the longer of moving the bytes at full bandwidth and
issuing the instructions at full rate. --markdown writes the tables into docs/kernels.md, which explains them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from native.cases import (  # noqa: E402
    Case,
    Row,
    ScoreRow,
    SmoothRow,
    prepare_cases,
    score_cases,
    smooth_map_cases,
    write_cases,
)

PRESET = "ptx-profile"
DOCUMENT = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- tables: written by tools/profile --markdown -->", "<!-- end of the tables -->"


# Devices


@dataclass(frozen=True)
class Device:
    """A GPU's limits and rates. Limits a multiprocessor: CUDA's programming guide, table of compute capabilities."""

    name: str
    architecture: int  # 87: compute capability 8.7
    bandwidth: float  # bytes a second, from the data sheet
    processors: int  # multiprocessors, from the data sheet
    clock: float  # Hz
    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """Resident warps over the most there can be, for blocks with these registers a thread and bytes of shared
        memory. Registers are given out to warps, 256 at a time, from four equal parts; shared memory 128 bytes at a
        time, with 1 KiB a block for the system."""
        warps = -(-threads // 32)
        of_a_part = self.registers // 4 // (-(-registers * 32 // 256) * 256)
        of_shared = self.shared // (-(-(shared + 1024) // 128) * 128)
        blocks = min(self.blocks, self.warps // warps, 4 * of_a_part // warps, of_shared)
        return blocks * warps / self.warps

    def seconds(self, bytes_moved: float, thread_instructions: float) -> float:
        """The roofline: four warp instructions a cycle and multiprocessor, or the bandwidth."""
        issue = thread_instructions / 32 / (4 * self.processors * self.clock)
        return max(bytes_moved / self.bandwidth, issue)


DEVICES = (
    # Jetson AGX Orin 64 GB: 2048 cores are 16 multiprocessors, at most 1.3 GHz, LPDDR5.
    Device("Orin", 87, 204.8e9, 16, 1.3e9, warps=48, blocks=16, shared=164 << 10),
    # H100 SXM5 80 GB, HBM3. The clock is an assumption: the data sheet's peak rates are those of 1.98 GHz.
    Device("H100", 90, 3.35e12, 132, 1.755e9, warps=64, blocks=32, shared=228 << 10),
)


# Workloads


@dataclass(frozen=True)
class Workload:
    """A call of an operation."""

    title: str
    of: Row | ScoreRow | SmoothRow

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.of.name

    def case(self) -> Case:
        """Its arguments, and the bits that the NumPy twin gives."""
        match self.of:
            case Row() as row:
                cases = list(prepare_cases([row]))
            case ScoreRow() as score:
                cases = list(score_cases([score]))
            case SmoothRow() as smooth:
                cases = list(smooth_map_cases([smooth]))
        return cases[0]


def _score(name: str, images: int, *, half: bool = False, map: bool = False) -> ScoreRow:
    sizes = (images, 3, 256 * 256, 512 * 16 * 16)  # images, channels, pixels, features
    return ScoreRow(name, "residual_feature", *sizes, half=half, map=map)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("prepare: RGB 900×900 → 5×256×256 float32", Row("prepare_rgb", (900, 900), (256, 256))),
        Workload("the same → float16", Row("prepare_rgb_half", (900, 900), (256, 256), types=(np.float16,))),
        Workload(
            "prepare: mono 2448×2048 → 1×256×256 float32",
            Row("prepare_mono", (2048, 2448), (256, 256), format="Mono8"),
        ),
        Workload(
            "prepare: Bayer RG 900×900 → 5×256×256 float32",
            Row("prepare_bayer", (900, 900), (256, 256), format="BayerRG8"),
        ),
        Workload(
            "prepare: RGB 900×900, 4 rotations → 4×5×256×256 float32",
            Row("prepare_rotations", (900, 900), (256, 256), spec={"rotations": 4}),
        ),
        Workload("score: residual_feature, batch 16, float32", _score("score", 16)),
        Workload("the same with the map", _score("score_map", 16, map=True)),
        Workload("the same, float16, no map", _score("score_half", 16, half=True)),
        Workload("the same, float32, batch 1", _score("score_one", 1)),
        Workload("smooth_map: 256×256 → 900×900", SmoothRow("smooth_map", (256, 256), (900, 900), (4.0, 4.0))),
    )
}


# Counts


@dataclass(frozen=True)
class Kernel:
    """What the launches of one kernel did, all together."""

    name: str
    launches: int
    blocks: int
    threads: int  # of a block
    shared: int  # bytes of a block, the launch's included
    instructions: int  # of threads
    bytes_moved: int  # sectors read, once a block, and written, once a launch
    bytes_read_once: int  # sectors read, once a launch
    load_sectors: float | None  # a request of a warp; None: there is none
    store_sectors: float | None
    bank_passes: float | None  # of shared memory, a request


@dataclass(frozen=True)
class Counts:
    """What a workload did."""

    workload: Workload
    units: int  # output pixels of an image's plane, or pairs of elements that score reads
    least_bytes: int  # every input read once, every output written once
    kernels: tuple[Kernel, ...]

    @property
    def bytes_moved(self) -> int:
        """Of all kernels."""
        return sum(kernel.bytes_moved for kernel in self.kernels)

    @property
    def instructions(self) -> int:
        """Of all kernels' threads."""
        return sum(kernel.instructions for kernel in self.kernels)

    def seconds(self, device: Device) -> float:
        """The kernels' predicted times, one after the other."""
        return sum(device.seconds(kernel.bytes_moved, kernel.instructions) for kernel in self.kernels)


def short_name(name: str) -> str:
    """A demangled kernel's name as it stands in its source: without namespaces, result and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|kizu::cuda::|kizu::|^void ", "", name)
    name = re.sub(r"\bunsigned char\b", "uint8_t", re.sub(r"\bunsigned short\b", "uint16_t", name))
    name = re.sub(r"\((?:bool|int)\)", "", name).replace("__half", "half").replace("> >", ">>")
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        raise SystemExit(f"{name} is not installed")
    return found


def _run(command: Sequence[str | Path], **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        )
    return done.stdout + done.stderr


def build() -> Path:
    """Build run_cases with kernels that count; returns the program."""
    _run([_tool("cmake"), "--preset", PRESET, f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"])
    folder = ROOT / "build" / "native" / PRESET
    _run([_tool("cmake"), "--build", folder, "--target", "run_cases"])
    return folder / "tests" / "native" / "run_cases"


def count(program: Path, workload: Workload) -> Counts:
    """Run a workload. Raises RuntimeError if the CPU or the kernels give other bits than the NumPy twin."""
    case = workload.case()
    with tempfile.TemporaryDirectory() as folder:
        file, profile = Path(folder, "one.cases"), Path(folder, "profile.json")
        write_cases(file, [case])
        _run([program, file, "--device", "cpu"])
        _run([program, file, "--device", "cuda", "--lanes", "1"], CUDA_ON_CPU_PROFILE=str(profile))
        kernels = json.loads(profile.read_text())["kernels"]
    given = [array for name, array in case.given.items() if name.removeprefix("table") == name and name != "affine"]
    least = sum(array.nbytes for array in (*given, *case.expected.values()))
    if "expected" in case.expected:
        out = case.expected["expected"]
        units = out.size // (out.shape[1] if out.ndim == 4 else 1)
    else:
        units = sum(case.given[name].size for name in ("x", "f"))
    return Counts(workload, units, least, tuple(_kernel(each) for each in kernels))


def _kernel(counted: dict[str, Any]) -> Kernel:
    def per_request(space: str, kinds: tuple[str, ...], what: str) -> float | None:
        accesses = [a for a in counted["accesses"] if a["space"] == space and a["kind"] in kinds]
        requests = sum(a["requests"] for a in accesses)
        return sum(a[what] for a in accesses) / requests if requests else None

    return Kernel(
        name=short_name(counted["name"]),
        launches=counted["launches"],
        blocks=counted["blocks"],
        threads=counted["threads"] // counted["blocks"],
        shared=counted["shared_bytes"],
        instructions=counted["thread_instructions"],
        bytes_moved=counted["bytes_moved"],
        bytes_read_once=counted["bytes_read_once"],
        load_sectors=per_request("global", ("read",), "sectors"),
        store_sectors=per_request("global", ("write",), "sectors"),
        bank_passes=per_request("shared", ("read", "write"), "bank_passes"),
    )


# What ptxas says


@dataclass(frozen=True)
class Compiled:
    """A kernel in an architecture's machine code."""

    name: str
    architecture: int
    registers: int
    shared: int  # bytes; a launch may add others
    stack: int  # bytes of local memory
    spilled: int  # bytes stored and loaded


PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)a?'\n.*\n"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def compile_source(source: Path, architectures: Iterable[int]) -> list[Compiled]:
    """Compile with nvcc as cmake/cuda.cmake does, all warnings being errors. Raises RuntimeError if there is one."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as folder:
        options = ["-std=c++20", "-O3", "-fmad=false", "--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
        ptxas = "-Xptxas=-v,-warn-spills,-warn-lmem-usage"
        command = [_tool("nvcc"), *options, ptxas, *targets, f"-I{ROOT / 'csrc'}", "-c", source]
        said = _run([*map(str, command), "-o", f"{folder}/out.o"])
    found = list(PTXAS.finditer(said))
    names = _run([_tool("c++filt"), *(match["name"] for match in found)]).splitlines() if found else []
    compiled = []
    for match, name in zip(found, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        compiled.append(
            Compiled(
                name=short_name(name),
                architecture=int(match["architecture"]),
                registers=int(match["registers"]),
                shared=int(shared[1]) if shared else 0,
                stack=int(match["stack"]),
                spilled=int(match["stores"]) + int(match["loads"]),
            )
        )
    return compiled


def sources() -> list[Path]:
    """All kernels' sources."""
    return sorted((ROOT / "csrc" / "ops").glob("*.cu"))


def compile_all(architectures: Sequence[int]) -> list[Compiled]:
    """Every source, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [each for found in pool.map(lambda s: compile_source(s, architectures), sources()) for each in found]


# Tables


@dataclass(frozen=True)
class Sheet:
    """A table's head and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """As GitHub's Markdown."""
        lines = [self.head, ("---", *("---:" for _ in self.head[1:])), *self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def show(self, console: Console) -> None:
        """In the terminal."""
        table = Table(*self.head[:1], title=self.title, title_justify="left")
        for column in self.head[1:]:
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(*(each.replace("`", "") for each in row))
        console.print(table)


def _mean(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def workload_sheet(all_counts: Sequence[Counts]) -> Sheet:
    """A row a workload."""
    devices = [f"{device.name}, µs" for device in DEVICES]
    head = ("Workload", "instructions a unit", "bytes moved", "least", "ratio", *devices)
    rows = [
        (
            counts.workload.title,
            f"{counts.instructions / counts.units:.1f}",
            f"{counts.bytes_moved:,}",
            f"{counts.least_bytes:,}",
            f"{counts.bytes_moved / counts.least_bytes:.2f}",
            *(f"{counts.seconds(device) * 1e6:.1f}" for device in DEVICES),
        )
        for counts in all_counts
    ]
    return Sheet(
        "Workloads. A unit is an output pixel, or a pair of elements of score; times are predictions.", head, rows
    )


def kernel_sheet(all_counts: Sequence[Counts]) -> Sheet:
    """A row a kernel of a workload."""
    head = (
        "Workload, kernel", "blocks × threads", "instructions a unit", "bytes moved", "load sectors", "store sectors",
        "bank passes", *(f"{device.name}, µs" for device in DEVICES),
    )  # fmt: skip
    rows = [
        (
            f"{counts.workload.name} `{kernel.name}`",
            f"{kernel.blocks:,} × {kernel.threads}",
            f"{kernel.instructions / counts.units:.1f}",
            f"{kernel.bytes_moved:,}",
            _mean(kernel.load_sectors),
            _mean(kernel.store_sectors),
            _mean(kernel.bank_passes),
            *(f"{device.seconds(kernel.bytes_moved, kernel.instructions) * 1e6:.1f}" for device in DEVICES),
        )
        for counts in all_counts
        for kernel in counts.kernels
    ]
    return Sheet("Kernels of each workload; sectors and passes are those of a warp's request.", head, rows)


def resource_sheet(all_counts: Sequence[Counts], compiled: Sequence[Compiled]) -> Sheet:
    """A row a kernel, architecture and amount of shared memory."""
    launched = {(k.name, k.threads, k.shared) for counts in all_counts for k in counts.kernels}
    of_architecture = {device.architecture: device for device in DEVICES}
    rows = []
    for name, threads, shared in sorted(launched):
        for each in compiled:
            if each.name != name:
                continue
            device = of_architecture.get(each.architecture)
            occupancy = f"{device.occupancy(threads, each.registers, shared):.0%}" if device else "–"
            figures = (f"sm_{each.architecture}", each.registers, f"{shared:,}", each.spilled, each.stack, occupancy)
            rows.append((f"`{name}`", *map(str, figures)))
    head = ("Kernel", "architecture", "registers", "shared, bytes", "spilled", "local", "occupancy")
    return Sheet("Resources, and resident warps over the most that a multiprocessor holds.", head, rows)


def write_document(sheets: Sequence[Sheet]) -> None:
    """Put the tables between the document's two marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    tables = "\n".join(sheet.markdown() for sheet in sheets)
    DOCUMENT.write_text(f"{text[:before]}\n\n{tables}\n{text[after:]}", encoding="utf-8")


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"(all): {', '.join(WORKLOADS)}")
    parser.add_argument("--architecture", nargs="+", type=int, default=[device.architecture for device in DEVICES])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--markdown", action="store_true", help=f"write the tables into {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"no workload is called {', '.join(sorted(unknown))}; there are: {', '.join(WORKLOADS)}")
    if options.markdown and options.workloads:
        parser.error("--markdown writes the tables of all workloads; name none")

    compiled = compile_all(options.architecture)
    program = build()
    all_counts = [count(program, WORKLOADS[name]) for name in options.workloads or WORKLOADS]
    sheets = [workload_sheet(all_counts), kernel_sheet(all_counts), resource_sheet(all_counts, compiled)]
    console = Console(width=None if sys.stdout.isatty() else 190)
    for sheet in sheets:
        sheet.show(console)
    if options.json:
        options.json.write_text(json.dumps(record(all_counts, compiled), indent=1), encoding="utf-8")
    if options.markdown:
        write_document(sheets)
    return 0


def record(all_counts: Sequence[Counts], compiled: Sequence[Compiled]) -> dict[str, Any]:
    """All figures, for --json."""
    return {
        "devices": [asdict(device) for device in DEVICES],
        "workloads": [
            {
                "name": counts.workload.name,
                "title": counts.workload.title,
                "units": counts.units,
                "least_bytes": counts.least_bytes,
                "bytes_moved": counts.bytes_moved,
                "instructions": counts.instructions,
                "predicted_seconds": {device.name: counts.seconds(device) for device in DEVICES},
                "kernels": [asdict(kernel) for kernel in counts.kernels],
            }
            for counts in all_counts
        ],
        "compiled": [asdict(each) for each in compiled],
    }


if __name__ == "__main__":
    sys.exit(main())
