"""The result of bringing kizu up: result.json for machines, result.md for people.

Only the standard library, and syntax that Python 3.8 reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def made_up(precisions: Sequence[str]) -> dict[str, Any]:
    """Measurements that nobody made, in the form of those that bench leaves; for the dry run."""
    spread = {"p50": 1.0, "p90": 1.1, "p99": 1.2, "calls": 500}
    measured = {
        "date": "2000-01-01T00:00:00+00:00", "kizu": "0", "engine": "tensorrt", "engine_version": "0", "contexts": 2,
        "machine": "made up", "bundle": "made-up.kizu", "method": "algan_image", "input": [5, 256, 256],
        "frame": [900, 900], "golden": {"off_by": 0.01, "allowed": 0.02}, "memory_ms": spread,
        "frame_buffer_ms": spread, "stream_frames_per_second": 1000.0,
        "cold_start_s": {"import": 0.1, "load": 0.2, "first_score": 0.01},
    }  # fmt: skip
    return {
        "device": {"model": "MADE UP, NOT MEASURED", "driver": None, "gpu_mhz": None},
        "temperature": {"before": {"gpu-thermal": 40.0}, "after": {"gpu-thermal": 50.0}},
        "comparisons": [{"name": "gpu_fp16_p50", "value": 1.0, "limit": 1.5, "verdict": "PASS"}],
        "measurements": [{**measured, "precision": precision} for precision in precisions],
    }


def write_result(found: dict[str, Any], folder: Path) -> None:
    """result.json, and result.md for people."""
    record = {"format": "kizu-jetson-result", "version": 1, "written": datetime.now(timezone.utc).isoformat(), **found}
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "result.md").write_text(markdown(record), encoding="utf-8")


def markdown(record: dict[str, Any]) -> str:
    """The result as a page."""

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]

    def ms(spread: dict[str, float]) -> list[str]:
        return [*(f"{spread[name]:.3f}" for name in ("p50", "p90", "p99")), str(spread["calls"])]

    device, before, after = record["device"], record["temperature"]["before"], record["temperature"]["after"]
    gpu, clock, measurements = device.get("driver") or {}, device.get("gpu_mhz"), record["measurements"]
    first = measurements[0]
    changed = " with changes" if device.get("changed") else ""
    about = {
        "device": device.get("model"),
        "GPU": gpu.get("name") and f"{gpu['name']}, compute capability {gpu['compute_capability']}",
        "power mode": device.get("power_mode"),
        "GPU clock": clock and f"{clock['cur']} MHz ({clock['min']} to {clock['max']})",
        "Jetson Linux": device.get("l4t"),
        "JetPack": device.get("jetpack"),
        "CUDA, driver": f"{device.get('cuda')}, {gpu.get('cuda')}",
        "engine": f"{first['engine']} {first['engine_version']}",
        "Python": device.get("python"),
        "kizu": f"{first['kizu']}, commit {device.get('commit')}{changed}",
        "bundle": f"{first['bundle']}: {first['method']}, frame {first['frame']} to input {first['input']}",
        "measured": first["date"],
    }
    lines = ["# kizu on a Jetson", ""]
    lines += table(("", ""), [(name, str(text or "not known")) for name, text in about.items()])
    lines += ["Milliseconds of one frame, from host memory to its score.", ""]
    head: tuple[str, ...] = ("precision", "frame in", "p50", "p90", "p99", "calls")
    rows: list[tuple[str, ...]] = []
    for one in measurements:
        for where, spread in (("ordinary memory", one["memory_ms"]), ("the frame buffer", one["frame_buffer_ms"])):
            rows.append((one["precision"], where, *ms(spread)))
    lines += table(head, rows)
    head = ("precision", "stream, frames/s", "import, s", "load, s", "first score, s", "off golden by", "allowed")
    rows = []
    for one in measurements:
        frames, cold, golden = one["stream_frames_per_second"], one["cold_start_s"], one["golden"]
        starts = (f"{cold[name]:.3f}" for name in ("import", "load", "first_score"))
        deviations = (f"{golden['off_by']:.3g} sd", f"{golden['allowed']:g} sd")
        rows.append((one["precision"], f"{frames:.0f}", *starts, *deviations))
    lines += table(head, rows)
    if record["comparisons"]:
        head = ("benchmark", "value", "limit", "")
        cell = "{:.3g}".format
        lines += table(head, [
            (c["name"], *("–" if c[k] is None else cell(c[k]) for k in ("value", "limit")), c["verdict"])
            for c in record["comparisons"]
        ])  # fmt: skip
    if before:
        rows = [(zone, f"{degrees:.1f}", f"{after.get(zone, float('nan')):.1f}") for zone, degrees in before.items()]
        lines += table(("temperature, °C", "before", "after"), rows)
    return "\n".join(lines)
