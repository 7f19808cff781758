"""The comparisons that ``tools/bench`` prints: a name, a value made of measured medians, a floor or ceiling.

A benchmark says which side of which comparisons it measures in its ``extra_info``; the ratio is made from one run.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

from systems import ALGAN, FEW_STEPS, System, systems

Sides = Mapping[str, float]  # a benchmark's side -> its value in this run


@dataclass(frozen=True)
class Comparison:
    """One line of ``tools/bench``.

    Attributes:
        name: as printed and as given to ``tools/bench``.
        bound: "floor" (the value must be at least the limit) or "ceiling" (at most).
        limit: the floor or ceiling; None: those of ``devices`` alone.
        sides: the sides it is made of: one, whose value it is, or two, of which it is second / first.
        instead: sides that may stand for the first; the least of those that were measured does.
        amx_only: the limit binds on processors with AMX; elsewhere the value is printed with the instruction set.
        slow: takes minutes; left out of continuous integration.
        gpu: needs a CUDA device; milliseconds.
        devices: its limits by a part of the GPU's name; on others, and without one, nothing binds.
    """

    name: str
    bound: Literal["floor", "ceiling"]
    limit: float | None
    sides: tuple[str, ...]
    instead: tuple[str, ...] = ()
    amx_only: bool = False
    slow: bool = False
    gpu: bool = False
    devices: Mapping[str, float] = field(default_factory=dict)

    def value(self, sides: Sides) -> float | None:
        """The value from the sides of one run; None if they were not measured."""
        first = [sides[side] for side in (self.sides[0], *self.instead) if side in sides]
        if not first or not all(side in sides for side in self.sides[1:]):
            return None
        return min(first) if len(self.sides) == 1 else sides[self.sides[1]] / min(first)

    def limit_on(self, device: str | None) -> float | None:
        """The limit that binds with this GPU (None: there is none)."""
        found = [limit for part, limit in self.devices.items() if part in (device or "")]
        return found[0] if found else self.limit

    def verdict(self, value: float | None, *, instructions: str, device: str | None) -> str:
        """PASS, FAIL, or UNBOUND with what the machine has instead of what the limit is for."""
        limit = self.limit_on(device)
        if self.gpu and (device is None or (limit is None and value is not None)):
            return f"UNBOUND {device or 'nothing ran on a GPU'}"
        if self.amx_only and not instructions.startswith("amx"):
            return f"UNBOUND {instructions}"
        if value is None or limit is None:
            return "FAIL"
        return "PASS" if (value >= limit if self.bound == "floor" else value <= limit) else "FAIL"


GPU_TARGETS = {"H100": 0.25, "AGX Orin": 1.5}  # ms, a frame in host memory to its score


def against_torch(system: System) -> tuple[Comparison, ...]:
    """A system on OpenVINO against PyTorch eager, frame to score; bf16 or fp16 is what the processor is faster in."""
    name, torch = system.name, f"{system.name}_torch"
    bf16, fp16 = f"{name}_openvino_bf16", f"{name}_openvino_fp16"
    if system is ALGAN:  # its have older names
        return ()
    if system.steps not in (0, FEW_STEPS):
        return ()
    if system.steps:
        return (
            Comparison(f"{system.method}_fp32_vs_torch", "floor", 1.3, (f"{name}_openvino_fp32", torch), amx_only=True),
            Comparison(f"{system.method}_f16_vs_torch", "floor", 4, (fp16, torch), amx_only=True),
        )
    return (
        Comparison(f"{name}_int8_vs_torch", "floor", 10, (f"{name}_openvino_int8", torch), amx_only=True),
        Comparison(f"{name}_bf16_vs_torch", "floor", 5, (bf16, torch), instead=(fp16,), amx_only=True),
    )


COMPARISONS = (
    Comparison("algan_int8_vs_torch", "floor", 12, ("kizu_int8", "torch_eager"), amx_only=True),
    Comparison("algan_bf16_vs_torch", "floor", 6, ("kizu_bf16", "torch_eager"), amx_only=True),
    Comparison("algan_int8_vs_openvino", "floor", 2.5, ("kizu_int8", "openvino_by_hand"), amx_only=True),
    *(comparison for system in systems() for comparison in against_torch(system)),
    Comparison("overhead_share", "ceiling", 0.25, ("overhead_share",)),
    Comparison("prepare_vs_torch", "floor", 2, ("prepare_kizu", "prepare_torch")),
    Comparison("prepare_vs_pillow", "floor", 12, ("prepare_kizu", "prepare_pillow")),
    Comparison("prepare_vs_opencv", "floor", 0.8, ("prepare_kizu", "prepare_opencv")),
    Comparison("prepare_5mp_vs_read", "ceiling", 4, ("frame_read", "prepare_5mp")),
    Comparison("score_vs_numpy", "floor", 4, ("score_kizu", "score_numpy")),
    Comparison("score_vs_torch", "floor", 2.5, ("score_kizu", "score_torch")),
    Comparison("score_vs_bandwidth", "floor", 0.8, ("score_kizu", "score_read")),
    Comparison("score_vs_bandwidth_2", "floor", 0.8, ("score_kizu_2", "score_read_2")),
    Comparison("score_map_cost", "ceiling", 1.3, ("score_kizu", "score_kizu_map")),
    Comparison("cold_start", "ceiling", 0.5, ("cold_start",)),
    Comparison("train_vs_eager", "floor", 3, ("train_kizu", "train_eager")),
    Comparison("detection_worst_auroc", "floor", 0.9, ("detection_worst_auroc",), slow=True),
    *(
        Comparison(side, "ceiling", None, (side,), gpu=True, devices=GPU_TARGETS)
        for side in ("gpu_fp16_p50", "gpu_int8_p50", "gpu_fp16_buffer_p50", "gpu_int8_buffer_p50")
    ),
    Comparison("gpu_overhead", "ceiling", None, ("gpu_overhead",), gpu=True),
)


def gpu(benchmarks: Sequence[Mapping[str, Any]]) -> str | None:
    """The GPU's name in pytest-benchmark's records; None if nothing ran on one."""
    return next((r["extra_info"]["device"] for r in benchmarks if "device" in r["extra_info"]), None)


def sides(benchmarks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The value of each side from pytest-benchmark's records: its own ``value``, or the median of its medians."""
    found: dict[str, list[float]] = {}
    for record in benchmarks:
        info = record["extra_info"]
        if "side" in info:
            found.setdefault(info["side"], []).append(info.get("value", record["stats"]["median"]))
    return {side: median(values) for side, values in found.items()}


def instruction_set() -> str:
    """The processor's widest instructions for int8 and bf16 products."""
    flags = _cpu("flags", "Features").split()
    for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "asimddp", "asimd"):
        if name in flags:
            return name
    return "unknown"


# Instructions that decide how fast an engine computes in a precision.
_ARITHMETIC = (
    *("amx_int8", "amx_bf16", "amx_fp16", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx2"),
    *("asimddp", "i8mm", "bf16", "asimdhp"),
)


def machine() -> dict[str, Any]:
    """What figures of this machine depend on: processor, processors at hand, instructions, versions."""
    flags = _cpu("flags", "Features").split()
    versions = {"python": platform.python_version()}
    for package in ("kizu", "openvino", "onnxruntime", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "processor": _cpu("model name", "CPU part") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in _ARITHMETIC if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _cpu(*names: str) -> str:
    """The first of these fields of /proc/cpuinfo, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() in names)
    return next(found, "")
