"""score against what a user would write with other libraries, and against reading the memory once.

A batch of 16: x and x_hat 3 x 256 x 256, f and f_hat 512 x 16 x 16, float32: 42 MB, more than most caches hold. One
thread on every side unless its name ends in 2. Each side's result is checked before it is timed, and the sides take
turns, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bundles import KEPT
from kizu.scoring import Scorer

TURNS = range(5)
ROUNDS = 30
IMAGES, WEIGHT = 16, 0.4
SIDES = (
    "score_kizu", "score_numpy", "score_torch", "score_kizu_map", "score_read", "score_kizu_2", "score_read_2",
)  # fmt: skip
Tensors = dict[str, NDArray[np.float32]]
Score = Callable[[Tensors], NDArray[Any]]  # one score an image, or the sum of all differences

# The least that any implementation has to do: read both sides once, into as many sums as the processor has registers.
READ = r"""
#include <thread>

typedef float Vector __attribute__((vector_size(64), aligned(4)));
typedef unsigned Bits __attribute__((vector_size(64)));

static double sum(const float* a, const float* b, long n) {
  Vector sums[8] = {};
  for (long i = 0; i < n; i += 128)
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const Vector d = *(const Vector*)(a + i + 16 * v) - *(const Vector*)(b + i + 16 * v);
      sums[v] += (Vector)((Bits)d & 0x7fffffff);
    }
  double total = 0;
  for (int v = 0; v < 8; ++v)
    for (int l = 0; l < 16; ++l) total += sums[v][l];
  return total;
}

static double part(const float* const* a, const float* const* b, const long* n, int which, int threads) {
  double total = 0;
  for (int pair = 0; pair < 2; ++pair) {
    const long size = n[pair] / threads, start = which * size;
    for (long i = 0; i < size; i += 65536)  // so that no sum grows large
      total += sum(a[pair] + start + i, b[pair] + start + i, i + 65536 < size ? 65536 : size - i);
  }
  return total;
}

// Of two pairs with n elements, a multiple of 256; each of two threads takes one half of each pair.
extern "C" double read_alone(const float* const* a, const float* const* b, const long* n) {
  return part(a, b, n, 0, 1);
}

extern "C" double read_with_a_new_thread(const float* const* a, const float* const* b, const long* n) {
  double second = 0;
  std::thread other([&] { second = part(a, b, n, 1, 2); });
  const double first = part(a, b, n, 0, 2);
  other.join();
  return first + second;
}

extern "C" double read_with_openmp(const float* const* a, const float* const* b, const long* n) {
  double total = 0;
#pragma omp parallel for num_threads(2) reduction(+ : total)
  for (int which = 0; which < 2; ++which) total += part(a, b, n, which, 2);
  return total;
}
"""


def by_kizu(*, threads: int = 1, map: bool = False) -> Score:
    scorer, scores = Scorer("residual_feature", weight=WEIGHT, threads=threads), np.empty(IMAGES, np.float32)
    maps = np.empty((IMAGES, 256, 256), np.float32) if map else None

    def score(tensors: Tensors) -> NDArray[np.float32]:
        scorer(tensors, scores, maps)
        return scores

    return score


def by_numpy() -> Score:
    def score(t: Tensors) -> NDArray[Any]:
        residual = np.abs(t["x"] - t["x_hat"]).mean((1, 2, 3))
        feature = np.abs(t["f"] - t["f_hat"]).mean((1, 2, 3))
        scores: NDArray[Any] = (1 - WEIGHT) * residual + WEIGHT * feature
        return scores

    return score


def by_torch() -> Score:
    import torch

    def score(tensors: Tensors) -> NDArray[Any]:
        with torch.inference_mode():
            x, x_hat, f, f_hat = (torch.from_numpy(tensors[name]) for name in ("x", "x_hat", "f", "f_hat"))
            residual, feature = (x - x_hat).abs().mean((1, 2, 3)), (f - f_hat).abs().mean((1, 2, 3))
            scores: NDArray[np.float32] = ((1 - WEIGHT) * residual + WEIGHT * feature).numpy()
        return scores

    return score


def by_reading(function: str) -> Callable[[Tensors], float]:
    KEPT.mkdir(parents=True, exist_ok=True)
    source, library = KEPT / "read.cpp", KEPT / "read.so"
    source.write_text(READ)
    options = ["-O3", "-march=native", "-pthread", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi"]
    subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
    read = getattr(ctypes.CDLL(str(library)), function)
    read.restype = ctypes.c_double

    def total(t: Tensors) -> float:
        a = (ctypes.c_void_p * 2)(t["x"].ctypes.data, t["f"].ctypes.data)
        b = (ctypes.c_void_p * 2)(t["x_hat"].ctypes.data, t["f_hat"].ctypes.data)
        return float(read(a, b, (ctypes.c_long * 2)(t["x"].size, t["f"].size)))

    return total


def by_opencv() -> Callable[[Tensors], float]:
    import cv2

    def total(t: Tensors) -> float:
        pairs = ((t["x"], t["x_hat"]), (t["f"], t["f_hat"]))
        return sum(float(cv2.norm(a.reshape(1, -1), b.reshape(1, -1), cv2.NORM_L1)) for a, b in pairs)

    return total


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    x, f = (IMAGES, 3, 256, 256), (IMAGES, 512, 16, 16)
    shapes = {"x": x, "x_hat": x, "f": f, "f_hat": f}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def fastest(readers: list[Callable[[Tensors], float]], tensors: Tensors) -> Callable[[Tensors], float]:
    seconds: list[list[float]] = [[] for _ in readers]
    for _ in range(20):
        for reader, measured in zip(readers, seconds, strict=True):
            start = perf_counter()
            reader(tensors)
            measured.append(perf_counter() - start)
    return readers[int(np.argmin(np.median(seconds, axis=1)))]


@pytest.fixture(scope="module")
def sides(tensors: Tensors) -> dict[str, Callable[[Tensors], Any]]:
    return {
        "score_kizu": by_kizu(),
        "score_kizu_2": by_kizu(threads=2),
        "score_kizu_map": by_kizu(map=True),
        "score_numpy": by_numpy(),
        "score_torch": by_torch(),
        "score_read": fastest([by_reading("read_alone"), by_opencv()], tensors),
        "score_read_2": fastest([by_reading("read_with_openmp"), by_reading("read_with_a_new_thread")], tensors),
    }


@pytest.mark.parametrize(("turn", "side"), [(turn, side) for turn in TURNS for side in SIDES])
def test_score(
    benchmark: Any, turn: int, side: str, sides: dict[str, Callable[[Tensors], Any]], tensors: Tensors
) -> None:
    difference = {a: np.abs(tensors[a].astype(np.float64) - tensors[b]) for a, b in (("x", "x_hat"), ("f", "f_hat"))}
    expected: Any = (1 - WEIGHT) * difference["x"].mean((1, 2, 3)) + WEIGHT * difference["f"].mean((1, 2, 3))
    if side.startswith("score_read"):
        expected = difference["x"].sum() + difference["f"].sum()
    del difference
    np.testing.assert_allclose(sides[side](tensors), expected, rtol=1e-5)
    benchmark.extra_info["side"] = side
    benchmark.pedantic(lambda: sides[side](tensors), rounds=ROUNDS, warmup_rounds=5)
