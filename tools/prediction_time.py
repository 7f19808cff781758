"""Shows the prediction times: docs/prediction-time.json, its figure, and README.md's part about them.

``pytest benchmarks --benchmark-json build/prediction-time.json`` measures. With that file this command replaces the
record; without one it writes figure and README anew, from the record and from the AUROCs of docs/reproduction.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from comparisons import sides  # noqa: E402
from prediction import Area, Row, areas, condensed, markdown, measured_system, runtime_label  # noqa: E402
from systems import SYSTEMS  # noqa: E402

RECORD, FIGURE = "docs/prediction-time.json", "docs/prediction-time.png"
BEGIN = "<!-- Written by tools/prediction_time.py from docs/prediction-time.json: do not edit. -->"
END = "<!-- The end of what tools/prediction_time.py writes. -->"
# ALGAN's published rows are of the preset "line"; the other systems' are of the 2020 paper's experiment.
RESULTS = (("mnist.csv", "test_labelled", ("line",)), ("komoto-mnist.csv", "test_chosen", None))
LATENCY = ("openvino_by_hand", "overhead_share")  # sides of test_latency.py


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="tools/prediction_time.py", description=__doc__)
    parser.add_argument("measured", nargs="?", type=Path, metavar="FILE", help="what --benchmark-json wrote")
    parser.add_argument("--note", default="", help="a sentence for README, such as what else the machine did meanwhile")
    options = parser.parse_args()
    if options.measured:
        held = record(json.loads(options.measured.read_text(encoding="utf-8")), options.note)
        write(ROOT / RECORD, json.dumps(held, indent=1) + "\n")
    held = json.loads((ROOT / RECORD).read_text(encoding="utf-8"))
    found = committed_areas()
    draw(rows_of(held), found, ROOT / FIGURE)
    readme = ROOT / "README.md"
    write(readme, replaced(readme.read_text(encoding="utf-8"), block(held, found)))
    return 0


def write(path: Path, text: str) -> None:
    """Write a text file, and say so."""
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(ROOT))


def record(measured: Mapping[str, Any], note: str = "") -> dict[str, Any]:
    """What is kept of a run of the benchmarks; raises SystemExit if it measured no prediction time."""
    benchmarks, machine = measured["benchmarks"], measured["machine_info"].get("kizu")
    rows = condensed(each["extra_info"] for each in benchmarks if "runtime" in each["extra_info"])
    if not rows or machine is None:
        raise SystemExit("tools/prediction_time.py: the file holds no prediction times; measure with pytest benchmarks")
    values, commit = sides(benchmarks), measured["commit_info"]
    return {
        "date": measured["datetime"][:10],
        "revision": str(commit.get("id", "unknown"))[:12] + ("+" if commit.get("dirty") else ""),
        "note": note,
        "machine": machine,
        "latency": {name: float(f"{values[name]:.4g}") for name in LATENCY if name in values},
        "rows": [{name: value for name, value in asdict(row).items() if value is not None} for row in rows],
    }


def rows_of(held: Mapping[str, Any]) -> list[Row]:
    """The rows of a record."""
    return [Row(**row) for row in held["rows"]]


def committed_areas() -> list[Area]:
    """The AUROCs of docs/reproduction."""
    return areas([(ROOT / "docs" / "reproduction" / name, column, variants) for name, column, variants in RESULTS])


def block(held: Mapping[str, Any], found: Sequence[Area]) -> str:
    """README's part about the prediction times."""
    rows, machine = rows_of(held), held["machine"]
    versions = machine["versions"]
    engines = ", ".join(
        f"{label} {versions[name]}"
        for name, label in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime"), ("torch", "torch"))
        if name in versions
    )
    rounds = {row.rounds for row in rows}
    parts = [
        f"One 900×900 RGB frame in, a score out, batch 1, {machine['threads']} threads on every side, networks for "
        "256×256 at their published widths: p50 / p90 / p99 in milliseconds, and how many times ALGAN-image's p50 on "
        f"the same runtime that is. Measured on {held['date']} at revision {held['revision']}, on {machine['cores']} "
        f"cores of {machine['processor']} ({', '.join(machine['instructions'])}), {machine['system']}, Python "
        f"{versions['python']}, {engines}. PyTorch resizes with Pillow and computes in fp32; " + _rounds(rounds),
        markdown(rows),
    ]
    if held["note"]:
        parts.insert(0, f"**{held['note']}**")
    if any("±" in system.label for system in SYSTEMS if any(row.system == system.name for row in rows)):
        parts.append(
            "The consistency loss is one of training: with and without it a bi-directional GAN is the same network, "
            "and takes as long."
        )
    parts += _latency(held["latency"])
    drawn = points(rows, found)
    if drawn:
        named = ", ".join(
            f"{label} {area.auroc:.3f} ({area.digits} digits, {area.runs} runs)" for label, area, _ in drawn
        )
        parts += [
            f"![AUROC against prediction time]({FIGURE})",
            "Detection against time. The AUROCs are those of MNIST, one digit good, 32×32, mean over digits, at what "
            "labelled validation images picked: the epoch, and lambda where the score has one "
            f"([docs/reproduction](docs/reproduction)); the times are those of 256×256 above: {named}.",
        ]
    return "\n\n".join([BEGIN, *parts, END])


def _rounds(rounds: set[int]) -> str:
    if len(rounds) == 1:
        return f"{min(rounds)} frames a figure."
    return f"{min(rounds)} to {max(rounds)} frames a figure, and no p90 of fewer than 10, no p99 of fewer than 100."


def _latency(values: Mapping[str, float]) -> list[str]:
    said = []
    if "openvino_by_hand" in values:
        by_hand = values["openvino_by_hand"] * 1e3
        said.append(f"OpenCV's resize, NumPy and OpenVINO with its defaults take {by_hand:.3g} ms for ALGAN-image.")
    if "overhead_share" in values:
        said.append(f"Of its time in int8, {values['overhead_share']:.0%} is not the engine's.")
    return [" ".join(said)] if said else []


def replaced(text: str, new: str) -> str:
    """The text with its part between the markers replaced; raises SystemExit if it has not one of each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"README.md must have these two lines once, in this order:\n{BEGIN}\n{END}")
    return text[: text.index(BEGIN)] + new + text[text.index(END) + len(END) :]


Point = tuple[str, Area, dict[str, Row]]


def points(rows: Sequence[Row], found: Sequence[Area]) -> list[Point]:
    """Label, AUROC and rows by "torch" and "kizu" (its fastest runtime), of systems that have both numbers."""
    made: list[Point] = []
    for area in found:
        system = measured_system(area)
        times = [row for row in rows if system is not None and row.system == system.name]
        by_engine = [row for row in times if row.runtime != "torch"]
        held = {row.runtime: row for row in times if row.runtime == "torch"}
        if by_engine:
            held["kizu"] = min(by_engine, key=lambda row: row.p50)
        if held and system is not None:
            made.append((system.alike[area.system], area, held))
    return made


def draw(rows: Sequence[Row], found: Sequence[Area], path: Path) -> None:
    """AUROC against prediction time (ALGAN 2022, figure 6): each system by PyTorch eager and by its fastest engine."""
    from reproduction.figures import COLORS, legend, panels, save

    figure, (panel,) = panels(1, width=7.2, height=4.2)
    for i, (label, area, held) in enumerate(points(rows, found)):
        color, y = COLORS[i % len(COLORS)], area.auroc
        panel.plot([row.p50 for row in held.values()], [y] * len(held), "-", color=color, linewidth=0.8, alpha=0.6)
        if "torch" in held:
            panel.plot(held["torch"].p50, y, "o", color=color, markerfacecolor="white", label="PyTorch eager")
        if "kizu" in held:
            panel.plot(held["kizu"].p50, y, "o", color=color, label="kizu, its fastest engine and precision")
            label = f"{label}: {runtime_label(held['kizu'].runtime)}"
        at = geometric_mean([row.p50 for row in held.values()])
        panel.annotate(label, (at, y), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7)
    panel.set_xscale("log")
    panel.set_xlabel("prediction time of a frame, ms (p50, 256×256)", fontsize=8)
    panel.set_ylim(top=min(1.0, panel.get_ylim()[1]))
    panel.set_ylabel("AUROC, MNIST 32×32, mean over digits", fontsize=8)
    panel.margins(x=0.2, y=0.2)
    if panel.get_legend_handles_labels()[1]:
        legend(figure, [panel])
    save(figure, path)
    print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    sys.exit(main())
