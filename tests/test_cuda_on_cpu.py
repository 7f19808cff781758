"""The CUDA emulator: sample kernels give known results through every route, and planted bugs are found."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planted import MISUSE, PLANTED, RACE, ROOT, SANITIZERS, build, environment, run, tool, variant

TRANSLATOR = ROOT / "tests" / "cuda_on_cpu" / "ptx" / "translate.py"

ROUTES = ("emulated", "translated")
ORDERS = ("forward", "reverse", "random")
WORDS = 1 << 15


# What the samples must give


@pytest.fixture(scope="module")
def words() -> NDArray[np.uint32]:
    return np.random.default_rng(5).integers(0, 2**32, WORDS, dtype=np.uint32)


@pytest.fixture(scope="module")
def words_file(words: NDArray[np.uint32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.bin"
    words.tofile(path)
    return path


def unit_floats(words: NDArray[np.uint32], count: int) -> NDArray[np.float64]:
    return (words[:count] >> 8).astype(np.float64) * 2.0**-24


def axpy(words: NDArray[np.uint32]) -> NDArray[Any]:
    values = unit_floats(words, 2 * 5003)
    # The sum fits a double, so one rounding is left: the fused one.
    return (float(np.float32(0.7)) * values[:5003] + values[5003:]).astype(np.float32)


def shuffles(words: NDArray[np.uint32]) -> NDArray[Any]:
    values = words[:192].astype(np.uint64)
    lane = np.arange(192) % 32
    base = np.arange(192) - lane

    def lanes(source: NDArray[np.int64], inside: NDArray[np.bool_]) -> NDArray[np.uint64]:
        taken: NDArray[np.uint64] = values[base + np.where(inside, source, lane)]
        return taken

    segment = lane // 8 * 8
    up, down, xor = lane - 3, lane + 5, lane ^ 9
    total = lanes(segment + (lane + 3) % 8, lane >= 0)
    total += 3 * lanes(up, up >= segment) + 5 * lanes(down, down < segment + 8)
    total += 7 * lanes(xor, xor < lane // 16 * 16 + 16)
    return (total + lanes(lane ^ 31, lane >= 0) // 2).astype(np.uint32)


def half_difference(words: NDArray[np.uint32]) -> NDArray[Any]:
    values = (words[: 4 * 777] >> 21) * 2.0**-8 - 4
    distance = np.abs((values[: 2 * 777] - values[2 * 777 :]).astype(np.float16)).astype(np.float64)
    return (distance * 0.5 + 0.25).astype(np.float16)


def normalize_pixels(words: NDArray[np.uint32]) -> NDArray[Any]:
    pixels = words[:1111].view(np.uint8).astype(np.float64)
    scale = np.float32(1) / np.float32(58.4)
    return (pixels * float(scale) + float(np.float32(-2.1))).astype(np.float32)


def transpose(words: NDArray[np.uint32]) -> NDArray[Any]:
    image = unit_floats(words, 70 * 45).astype(np.float32).reshape(70, 45)
    return np.ravel(image.T)


def last_block_sum(words: NDArray[np.uint32]) -> NDArray[Any]:
    values = unit_floats(words, 20011)  # their sums are exact in any order
    return np.array([values[:20010].sum(), values[1:].sum()])


def votes(words: NDArray[np.uint32]) -> NDArray[Any]:
    above = np.zeros(1024, np.bool_)
    above[:1000] = words[:1000] > 0x60000000
    warps = above.reshape(32, 32)
    ballots = (warps * (1 << np.arange(32, dtype=np.uint64))).sum(1)
    each = ballots + warps.any(1) + 2 * warps.all(1)
    return np.concatenate([[above.sum(), above.sum(), words[:1000].max()], each]).astype(np.uint32)


def numbers(words: NDArray[np.uint32]) -> dict[int, NDArray[Any]]:
    """By column; some columns are left to the comparison of the routes."""
    a = words[:2000].astype(np.int64)
    b = np.roll(a, -1) | 1
    s, t = a.astype(np.int32).astype(np.int64), b.astype(np.int32).astype(np.int64)
    f = s.astype(np.float32) * np.float32(2**-20)
    g = t.astype(np.float32) * np.float32(2**-24)
    toward_zero = np.sign(s) * np.sign(t) * (np.abs(s) // np.abs(t))
    wide = s * t
    bits = ((a[:, None] >> np.arange(32)) & 1).astype(np.int64)
    leading = 32 - np.array([int(v).bit_length() for v in a])
    first = np.array([(int(v) & -int(v)).bit_length() for v in a])

    def byte(value: NDArray[np.int64], i: int) -> NDArray[np.int64]:
        return value >> 8 * i & 0xFF

    def signed_byte(value: NDArray[np.int64], i: int) -> NDArray[np.int64]:
        return byte(value, i).astype(np.uint8).astype(np.int8).astype(np.int64)

    def half(value: NDArray[np.float32]) -> NDArray[np.int64]:
        return value.astype(np.float16).view(np.uint16).astype(np.int64)

    with np.errstate(over="ignore"):
        halves = half(f) | half(g) << 16
    remainder = np.sign(wide) * (np.abs(wide) % 1000003)
    exact = {
        0: bits.sum(1) + 100 * leading + 10000 * first,
        1: byte(a, 0) | byte(b, 0) << 8 | byte(a, 1) << 16 | byte(b, 1) << 24,
        2: (a.astype(np.uint64) * b.astype(np.uint64) >> np.uint64(32)).astype(np.int64),
        3: wide >> 32,
        4: a // b + a % b,
        5: toward_zero + (s - toward_zero * t),
        6: np.sign(np.minimum(s, t)) * (np.abs(np.minimum(s, t)) // 2) - np.maximum(s >> 3, t >> 5),
        7: np.minimum(a, b) ^ np.maximum(a << (b & 31) & 0xFFFFFFFF, b >> (a & 31)),
        8: wide >> 17,
        9: remainder,
        15: byte(a, 0) * (b >> 7 & 0xFFFF),
        19: halves,
        21: (17 + sum(signed_byte(a, i) * signed_byte(b, i) for i in range(4))) ^ ((b << 13 | a >> 19) & 0xFFFFFFFF),
    }
    columns = {i: (values & 0xFFFFFFFF).astype(np.uint32) for i, values in exact.items()}
    columns[10] = (f / g).view(np.uint32)
    columns[11] = (f * g + np.float32(0.1)).view(np.uint32)
    columns[12] = np.sqrt(np.abs(f)).view(np.uint32)
    columns[20] = (a & 0x7BFF).astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    return columns


# Of graphs: 333 words of the input, from where each sample begins.


def window(words: NDArray[np.uint32], start: int) -> NDArray[np.uint32]:
    return words[start : start + 333]


def replay(words: NDArray[np.uint32]) -> NDArray[Any]:
    frames = np.concatenate([window(words, 11 * frame) for frame in range(20)])
    staged = (frames * np.uint32(3) + np.uint32(1)) ^ np.uint32(0x5A5A5A5A)
    return np.asarray(staged * np.uint32(5) + np.uint32(7))


def fork_join(words: NDArray[np.uint32]) -> NDArray[Any]:
    x = window(words, 400)
    right = (x * np.uint32(17) + np.uint32(2)) * np.uint32(19) + np.uint32(3)
    return np.asarray(x * np.uint32(13) + np.uint32(1) + right)


def update(words: NDArray[np.uint32]) -> NDArray[Any]:
    x = window(words, 800)
    after = np.where(np.arange(333) < 2 * 128, x * np.uint32(9) + np.uint32(5), np.uint32(0))
    return np.concatenate([x * np.uint32(2) + np.uint32(5), after])


def two_graphs(words: NDArray[np.uint32]) -> NDArray[Any]:
    a, b = window(words, 1200), window(words, 1600)
    for _ in range(4):
        a = (a * np.uint32(3) + np.uint32(1)) * np.uint32(5) + np.uint32(2)
        b = (b * np.uint32(7) + np.uint32(3)) * np.uint32(9) + np.uint32(4)
    return np.concatenate([a, b])


def check_samples(results: dict[str, bytes], words: NDArray[np.uint32]) -> None:
    exact: tuple[Callable[[NDArray[np.uint32]], NDArray[Any]], ...] = (
        axpy,
        shuffles,
        half_difference,
        normalize_pixels,
        transpose,
        last_block_sum,
        votes,
        replay,
        fork_join,
        update,
        two_graphs,
    )
    for reference in exact:
        expected = reference(words)
        np.testing.assert_array_equal(np.frombuffer(results[reference.__name__], expected.dtype), expected)

    sums = np.frombuffer(results["block_sum"], np.float32)
    values = np.pad(unit_floats(words, 10007), (0, 8 * 1280 - 10007)).reshape(8, 5, 256)
    np.testing.assert_allclose(sums, values.sum((0, 2)), rtol=1e-6)

    table = np.frombuffer(results["numbers"], np.uint32).reshape(2000, 24)
    for column, expected in numbers(words).items():
        np.testing.assert_array_equal(table[:, column], expected, err_msg=f"column {column}")


def run_samples(program: list[str | Path], words_file: Path, folder: Path, order: str) -> dict[str, bytes]:
    out = folder / f"{order}.bin"
    done = run([*program, "samples", words_file, out], environment(order))
    assert done.returncode == 0, done.stderr
    data, results = out.read_bytes(), dict[str, bytes]()
    while data:
        name, size, data = data.split(b"\n", 2)
        results[name.decode()], data = data[: int(size)], data[int(size) :]
    return results


@dataclass
class Reference:
    """The bits of the first run, which all others must give."""

    results: dict[str, bytes] | None = None


@pytest.fixture(scope="module")
def first_results() -> Reference:
    return Reference()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_samples_give_the_same_bits(
    sanitizer: str,
    route: str,
    order: str,
    words: NDArray[np.uint32],
    words_file: Path,
    first_results: Reference,
    tmp_path: Path,
) -> None:
    results = run_samples([variant(sanitizer) / route], words_file, tmp_path, order)
    check_samples(results, words)
    first_results.results = first_results.results or results
    assert results == first_results.results


def test_samples_on_aarch64(words: NDArray[np.uint32], words_file: Path, tmp_path: Path) -> None:
    compiler, qemu = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64")
    folder = build(
        "aarch64",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DPLANTED_PTX=OFF",
    )
    program: list[str | Path] = [qemu, "-L", "/usr/aarch64-linux-gnu", folder / "emulated"]
    for order in ORDERS:
        check_samples(run_samples(program, words_file, tmp_path, order), words)


def test_calls_from_several_threads(words: NDArray[np.uint32]) -> None:
    library = ctypes.CDLL(str(variant("plain") / "libplanted_module.so"))
    library.planted_digest.restype = ctypes.c_uint64
    pointer = words.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
    alone = library.planted_digest(pointer)
    assert alone != 0
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: library.planted_digest(pointer), range(8))) == [alone] * 8


# What finds what


@dataclass(frozen=True)
class Finding:
    """How a run must end: its status, and what it must say."""

    status: int
    says: str


NOTHING = Finding(0, "")
MEMORY = r"AddressSanitizer: use-after-poison[\s\S]*bugs\.cu:\d+|runtime error: index"
RACES = Finding(RACE, r"data race[\s\S]*bugs\.cu:\d+")
WRONG = Finding(1, "the result is wrong|the result is not finite")


def misuse(says: str) -> Finding:
    return Finding(MISUSE, f"cuda_on_cpu: ERROR .*({says})")


def refusal(call: str, error: str) -> Finding:
    return Finding(1, rf"{call}\(.*\): .* \(cudaError{error}\)")


@dataclass(frozen=True)
class Bug:
    """What the plain emulator finds, and where a sanitizer or the PTX route finds something else."""

    name: str
    plain: Finding
    asan: Finding | None = None
    tsan: Finding | None = None
    translated: Finding | None = None

    def finding(self, route: str, sanitizer: str) -> Finding:
        by_sanitizer = {"asan": self.asan, "tsan": self.tsan}.get(sanitizer)
        if route == "translated":
            return self.translated or (by_sanitizer if sanitizer == "tsan" else None) or self.plain
        return by_sanitizer or self.plain


POISON = Finding(1, MEMORY)
FREED = misuse("memory that was freed")
OUTSIDE = misuse(r"out-of-bounds (write|read)( of shared memory)? at .*bugs\.cu:\d+")
BUGS = [
    Bug("global_write", misuse("somebody wrote out of bounds: 0 bytes past the end"), POISON, translated=OUTSIDE),
    Bug("global_read", WRONG, POISON, translated=OUTSIDE),
    # In PTX the dynamic part lies next to the variable: the store hits it, and the next variable's reader sees that.
    Bug("shared_write", misuse("out-of-bounds write next to a variable of shared memory"), POISON, translated=WRONG),
    Bug("dynamic_shared_write", misuse("out-of-bounds write next to the end"), POISON, translated=OUTSIDE),
    Bug("shared_read", WRONG, POISON, translated=WRONG),
    Bug("unset_shared", WRONG),
    Bug("no_barrier", WRONG, tsan=RACES),
    Bug("no_second_barrier", WRONG, tsan=RACES),
    Bug("barrier_for_some", misuse(r"divergent barrier: thread \d+ waits at .*bugs\.cu:\d+, thread \d+ has exited")),
    Bug("two_barriers", misuse(r"divergent barrier: thread \d+ waits at .*bugs\.cu:\d+, thread \d+ (at|has exited)")),
    Bug("shuffle_outside_mask", misuse(r"lane \d+ at .*bugs\.cu:\d+ calls a warp operation whose mask 0000ffff lacks")),
    Bug("shuffle_without_half", misuse(r"divergent barrier: .* in a warp operation")),
    Bug("ballot_after_exit", misuse(r"which names this lane; but it exits|names lane \d+, which has exited")),
    Bug("block_race", NOTHING, tsan=RACES),
    Bug("missing_fence", NOTHING, tsan=RACES),
    Bug("host_dereference", misuse("host code touches device memory")),
    Bug("host_argument", misuse("argument 0 of the kernel, .*, points to host memory")),
    # Of a struct the emulator does not know the members. The PTX tells what the kernel takes for an address.
    Bug("host_argument_in_struct", NOTHING, translated=misuse("argument 0 of the kernel, .*, points to host memory")),
    Bug("freed_argument", misuse("argument 0 of the kernel points to device memory that was freed")),
    Bug("freed_in_struct", FREED, POISON, translated=FREED),
    Bug("copy_past_end", misuse("copy of 404 bytes at offset 0 of an allocation of 400 bytes")),
    Bug("wrong_direction", Finding(1, r"bugs\.cu:\d+: cudaMemcpy\(.*\): invalid argument \(cudaErrorInvalidValue\)")),
    Bug("no_synchronization", WRONG),
    Bug("too_many_threads", Finding(1, r"bugs\.cu:\d+: kernel launch: .* \(cudaErrorInvalidConfiguration\)")),
    Bug("too_much_shared", Finding(1, r"bugs\.cu:\d+: kernel launch: .* \(cudaErrorInvalidValue\)")),
    Bug("granted_shared", NOTHING),
]


GRAPH_BUGS = [
    Bug("allocate_in_capture", refusal("cudaMalloc", "StreamCaptureUnsupported")),
    Bug("synchronize_in_capture", refusal("cudaStreamSynchronize", "StreamCaptureUnsupported")),
    Bug("synchronize_device_in_capture", refusal("cudaDeviceSynchronize", "StreamCaptureUnsupported")),
    Bug("ignore_error_in_capture", refusal("cudaStreamEndCapture", "StreamCaptureInvalidated")),
    Bug("use_default_stream_in_capture", refusal("cudaMemset", "StreamCaptureImplicit")),
    Bug("wait_for_captured_event", refusal("cudaEventSynchronize", "CapturedEvent")),
    Bug("copy_pageable_in_capture", refusal("cudaMemcpyAsync", "StreamCaptureUnsupported")),
    Bug("leave_fork_unjoined", refusal("cudaStreamEndCapture", "StreamCaptureUnjoined")),
    Bug("wait_for_uncaptured_event", refusal("cudaStreamWaitEvent", "StreamCaptureIsolation")),
    Bug("never_end_capture", misuse("a stream was destroyed before the capture that began on it had ended")),
    Bug("launch_copy_after_free", misuse("copy of memory that was freed")),
    Bug("launch_kernel_after_free", misuse("argument 0 of the kernel points to device memory that was freed")),
    Bug("launch_struct_after_free", FREED, POISON, translated=FREED),
    Bug("read_before_graph_is_done", WRONG),
    Bug("call_cuda_in_host_function", Finding(1, r"\(cudaErrorNotPermitted\)")),
    Bug("touch_device_in_host_function", misuse("host code touches device memory")),
    Bug("update_to_other_kernel", refusal("cudaGraphExecKernelNodeSetParams", "InvalidValue")),
    Bug("update_to_many_threads", refusal("cudaGraphExecKernelNodeSetParams", "InvalidConfiguration")),
    Bug("update_to_host_pointer", misuse("argument 0 of the kernel, .*, points to host memory")),
    Bug("update_after_graph_is_destroyed", refusal("cudaGraphExecKernelNodeSetParams", "InvalidValue")),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("bug", BUGS + GRAPH_BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_found(bug: Bug, sanitizer: str, route: str) -> None:
    expected = bug.finding(route, sanitizer)
    for order in ORDERS:
        done = run([variant(sanitizer) / route, "bug", bug.name], environment(order))
        assert (done.returncode, bool(re.search(expected.says, done.stderr))) == (expected.status, True), (
            f"{order}: status {done.returncode}, expected {expected.status} and {expected.says!r}\n{done.stderr[:3000]}"
        )


def test_a_seed_repeats_a_schedule() -> None:
    def message(seed: int) -> str:
        return run([variant("plain") / "emulated", "bug", "shuffle_without_half"], environment("random", seed)).stderr

    assert message(3) == message(3)
    assert len({message(seed) for seed in range(8)}) > 1


def test_settings_that_are_not_understood_are_refused() -> None:
    program = variant("plain") / "emulated"
    done = run([program, "bug", "unset_shared"], os.environ | {"CUDA_ON_CPU_ORDER": "sideways"})
    assert done.returncode == MISUSE
    assert 'CUDA_ON_CPU_ORDER is "sideways", but must be forward, reverse or random' in done.stderr


# The PTX route's own


def kernel_profile(path: Path, name: str) -> dict[str, Any]:
    kernels = json.loads(path.read_text())["kernels"]
    (found,) = [kernel for kernel in kernels if f"::{name}(" in kernel["name"]]
    assert isinstance(found, dict)
    return found


def test_profile(words_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    env = environment("random") | {"CUDA_ON_CPU_PROFILE": str(path)}
    done = run([variant("plain") / "profiled", "samples", words_file, tmp_path / "out.bin"], env)
    assert done.returncode == 0, done.stderr

    axpy = kernel_profile(path, "axpy")
    # 5003 floats are 157 warps and 626 sectors; two arrays are read and one is written, each sector once.
    assert (axpy["launches"], axpy["blocks"], axpy["threads"]) == (1, 20, 5120)
    assert axpy["bytes_read_requested"] == 2 * 5003 * 4
    assert axpy["bytes_moved"] == 3 * 626 * 32
    assert [(a["kind"], a["requests"], a["sectors"]) for a in axpy["accesses"]] == [
        ("read", 157, 626),
        ("read", 157, 626),
        ("write", 157, 626),
    ]
    assert axpy["thread_instructions"] == sum(line["thread_instructions"] for line in axpy["lines"])
    source = PLANTED / "samples.cu"
    line = axpy["accesses"][0]["line"]
    assert Path(axpy["accesses"][0]["file"]) == source
    assert "out[i] = __fmaf_rn" in source.read_text().splitlines()[line - 1]

    # A tile whose rows are 33 words apart is free of bank conflicts.
    transpose = kernel_profile(path, "transpose")
    assert (axpy["shared_bytes"], transpose["shared_bytes"]) == (0, 32 * 33 * 4)
    shared = [a for a in transpose["accesses"] if a["space"] == "shared"]
    assert len(shared) == 2
    assert all(a["bank_passes"] == a["requests"] for a in shared)

    # Each thread stores 24 words of its own: every store is a request of 32 sectors.
    stores = [a for a in kernel_profile(path, "numbers")["accesses"] if a["kind"] == "write"]
    assert len(stores) == 24
    assert all(a["sectors"] == a["thread_accesses"] for a in stores)


PTX = """
.version 9.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 kernel_param_0)
{{
  .reg .b32 %r<4>;
  .loc 1 7 3
  {instruction};
  ret;
}}
.file 1 "kernel.cu"
"""


@pytest.mark.parametrize(
    ("instruction", "says"),
    [
        ("mma.sync.m16n8k8 %r1, %r2, %r3", 'kernel.cu:7: the instruction "mma.sync.m16n8k8 %r1, %r2, %r3" is not'),
        ("add.u8 %r1, %r2, %r3", 'the instruction "add.u8 %r1, %r2, %r3" is not covered'),
        ("mov.u32 %r1, %clock", "the special register %clock is not covered"),
        ("bar.sync 1, 64", 'the instruction "bar.sync 1, 64" is not covered'),
    ],
)
def test_unknown_ptx_is_an_error_that_names_it(instruction: str, says: str, tmp_path: Path) -> None:
    source = tmp_path / "kernel.ptx"
    source.write_text(PTX.format(instruction=instruction))
    done = run([sys.executable, TRANSLATOR, source, tmp_path / "kernel.cpp", "anchor"], dict(os.environ))
    assert done.returncode == 1
    assert says in done.stderr
