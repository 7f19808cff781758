"""What can be known of the CUDA kernels without a GPU: that nvcc needs no spills for them, and what memory they move.

cmake/cuda.cmake refuses spills and local memory for every architecture; here one is compiled. A missing nvcc is a skip,
and under ``KIZU_REQUIRE_TOOLS=1`` or ``CI`` an error.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native.cases import Case, ScoreRow
from test_native import CUDA_HEADERS, NO_CUDA_HEADERS, ROOT, missing, tool

sys.path.insert(0, str(ROOT / "tools"))

import profile_kernels
from profile_kernels import DEVICES, DOCUMENT, WORKLOADS, Compiled, Counts, Device, Workload

ORIN = DEVICES[0]
KERNELS = {
    "prepare": {"tile_kernel", "pixel_kernel", "rotate_kernel"},
    "score": {"score_kernel"},
    "smooth_map": {"smooth_kernel"},
}


def need_nvcc() -> None:
    if not shutil.which("nvcc"):
        missing("nvcc is not installed: apt-get install nvidia-cuda-toolkit")


@functools.cache
def compiled(name: str) -> tuple[Compiled, ...]:
    source = ROOT / "csrc" / "ops" / f"{name}.cu"
    return tuple(profile_kernels.compile_source(source, [ORIN.architecture]))


@functools.cache
def counted(name: str) -> Counts:
    return profile_kernels.count(profile_kernels.build(), WORKLOADS[name])


def test_every_source_is_known() -> None:
    assert {source.stem for source in profile_kernels.sources()} == set(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_warnings_spills_and_local_memory(name: str) -> None:
    need_nvcc()
    found = compiled(name)
    assert {kernel.name.split("<")[0] for kernel in found} == KERNELS[name]
    assert len({kernel.name for kernel in found}) == len(found)
    for kernel in found:
        assert kernel.architecture == ORIN.architecture
        assert (kernel.spilled, kernel.stack) == (0, 0), kernel
        assert 16 <= kernel.registers <= 255


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "int a[64]; for (int k = 0; k < 64; ++k) a[k] = p[k];"
            "for (int k = 0; k < 64; ++k) a[(a[k] + i) & 63] += k; p[i] = a[i & 63];",
            "Local memory used",
        ),
        ("int unused; p[i] = 0;", "never referenced"),
    ],
)
def test_local_memory_and_warnings_are_errors(source: str, says: str, tmp_path: Path) -> None:
    need_nvcc()
    (tmp_path / "bad.cu").write_text(f"__global__ void kernel(int* p, int i) {{ {source} }}\n")
    with pytest.raises(RuntimeError, match=says):
        profile_kernels.compile_source(tmp_path / "bad.cu", [ORIN.architecture])


@pytest.mark.parametrize(("name", "most"), [("score", 1.3), ("prepare_rgb", 1.5)])
def test_bytes_moved(name: str, most: float) -> None:
    need_nvcc()
    counts = counted(name)
    ratio = counts.bytes_moved / counts.least_bytes
    assert 1 <= ratio <= most
    # The document's tables are those of these kernels.
    row = next(line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if counts.workload.title in line)
    assert f" {counts.bytes_moved:,} " in row, f"{DOCUMENT.name} is out of date: tools/profile --markdown"
    # What is counted and what ptxas says are brought together by name.
    of_name = {kernel.name: kernel for kernel in compiled(name.split("_")[0])}
    for kernel in counts.kernels:
        assert kernel.shared >= of_name[kernel.name].shared


def test_the_document_has_every_workload() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    tables = text[text.index(profile_kernels.BEGIN) : text.index(profile_kernels.END)]
    assert all(f"| {workload.title} |" in tables for workload in WORKLOADS.values())


def test_counts_of_a_known_kernel() -> None:
    need_nvcc()
    counts = counted("score")
    (kernel,) = counts.kernels
    pairs = 16 * (3 * 256 * 256 + 512 * 16 * 16)
    assert counts.units == pairs
    assert counts.least_bytes == 2 * 4 * pairs + 16 * 4
    # A warp sums 2048 pairs, four warps are a block; a request of 32 lanes takes 16 bytes each.
    assert (kernel.blocks, kernel.threads) == (pairs // 2048 // 4, 128)
    assert kernel.load_sectors == pytest.approx(16, rel=0.01)


def test_a_workload_with_wrong_bits_is_not_counted() -> None:
    need_nvcc()

    class Wrong(Workload):
        def case(self) -> Case:
            return super().case().with_a_bit_flipped("scores")

    row = ScoreRow("small", pixels=300)
    with pytest.raises(RuntimeError, match="1 of 1 values differ"):
        profile_kernels.count(profile_kernels.build(), Wrong("wrong", row))


OCCUPANCY = """
#include <climits>
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int architecture, warps, shared_of_all, threads, registers, shared;
  while (std::scanf("%d %d %d %d %d %d", &architecture, &warps, &shared_of_all, &threads, &registers, &shared) == 6) {
    cudaOccDeviceProp device;
    device.computeMajor = architecture / 10;
    device.computeMinor = architecture % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 32 * warps;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_of_all;
    device.sharedMemPerBlockOptin = shared_of_all - 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_DEFAULT;
    kernel.maxDynamicSharedSizeBytes = 0;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return 1;
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_is_that_of_cudas_own_calculator(tmp_path: Path) -> None:
    if not CUDA_HEADERS or not (CUDA_HEADERS[0] / "cuda_occupancy.h").exists():
        missing(NO_CUDA_HEADERS)
    (tmp_path / "occupancy.cpp").write_text(OCCUPANCY)
    program = tmp_path / "occupancy"
    include = f"-I{CUDA_HEADERS[0]}"
    subprocess.run([tool("g++"), "-w", include, f"{program}.cpp", "-o", program], check=True)
    threads, registers, shared = (
        (32, 96, 128, 256, 512),
        (16, 40, 41, 64, 80, 85, 128),
        (0, 1, 4128, 10528, 36896, 49152),
    )
    asked = list(itertools.product(DEVICES, threads, registers, shared))
    lines = [f"{d.architecture} {d.warps} {d.shared} {t} {r} {s}" for d, t, r, s in asked]
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    blocks = list(map(int, done.stdout.split()))
    assert len(blocks) == len(asked)
    for expected, (device, *block) in zip(blocks, asked, strict=True):
        assert device.occupancy(*block) == expected * -(-block[0] // 32) / device.warps, (device.name, *block)


def test_the_roofline_is_the_slower_of_memory_and_issue() -> None:
    device = Device("round", 90, bandwidth=1e12, processors=10, clock=1e9, warps=64, blocks=32, shared=228 << 10)
    assert device.seconds(1e6, 0) == pytest.approx(1e-6)
    assert device.seconds(0, 32 * 4 * 10 * 1e3) == pytest.approx(1e-6)
    assert device.seconds(1e6, 32 * 4 * 10 * 3e3) == pytest.approx(3e-6)
