"""README's prediction times are what the command makes of the committed record, and it makes it as it should."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_native import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "tools"))

import prediction_time
from comparisons import COMPARISONS, Comparison
from prediction import Area, Row, areas, condensed, markdown, measured_system, shown, system_of, text
from systems import SYSTEMS, systems

ALGAN, EGBAD = "algan_image", "bigan_concat_consistency"


def committed() -> dict[str, Any]:
    held: dict[str, Any] = json.loads((ROOT / prediction_time.RECORD).read_text(encoding="utf-8"))
    return held


def test_readme_is_what_the_command_writes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = prediction_time.block(committed(), prediction_time.committed_areas())
    assert prediction_time.replaced(readme, block) == readme, "run python tools/prediction_time.py"
    assert (ROOT / prediction_time.FIGURE).exists()


def test_readme_says_what_the_record_holds() -> None:
    """The check above would not notice a command that writes nothing of it."""
    held = committed()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for said in (held["note"], held["date"], held["machine"]["processor"], *held["machine"]["instructions"]):
        assert said in readme
    for name in ("openvino", "onnxruntime", "torch", "python"):
        assert held["machine"]["versions"][name] in readme
    for row in held["rows"]:
        assert shown(row["p50"]) in readme


@pytest.mark.parametrize("text", ["", prediction_time.BEGIN, f"{prediction_time.END} {prediction_time.BEGIN}"])
def test_a_readme_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="must have these two lines"):
        prediction_time.replaced(text, "new")


def test_what_stands_around_the_markers_stays() -> None:
    new = f"{prediction_time.BEGIN}\nnew\n{prediction_time.END}"
    old = f"before\n{prediction_time.BEGIN}\nold\n{prediction_time.END}\nafter"
    assert prediction_time.replaced(old, new) == f"before\n{new}\nafter"


def timed(system: str, runtime: str, milliseconds: list[float]) -> dict[str, Any]:
    return {"system": system, "runtime": runtime, "seconds": [value / 1e3 for value in milliseconds], "side": "x"}


def test_quantiles_over_all_turns() -> None:
    first, second = list(np.arange(1.0, 61)), list(np.arange(61.0, 121))
    (row,) = condensed([timed(ALGAN, "torch", first), timed(ALGAN, "torch", second)])
    assert row.rounds == 120
    expected = np.percentile(np.arange(1.0, 121), [50, 90, 99])
    assert [row.p50, row.p90, row.p99] == pytest.approx(list(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("rounds", "p90", "p99"), [(9, False, False), (10, True, False), (99, True, False), (100, True, True)]
)
def test_no_quantile_that_so_few_frames_do_not_show(rounds: int, p90: bool, p99: bool) -> None:
    (row,) = condensed([timed(ALGAN, "torch", [2.0] * rounds)])
    assert ((row.p90 is not None), (row.p99 is not None)) == (p90, p99)


ROWS = (
    Row(ALGAN, "torch", 100, 20.0, 21.0, 22.0),
    Row(EGBAD, "torch", 100, 50.0, 51.0, 52.0),
    Row(ALGAN, "openvino_int8", 100, 4.0, 4.1, 4.2),
    Row(EGBAD, "openvino_int8", 100, 5.0, 5.1, 5.2),
    Row(EGBAD, "onnxruntime_fp16", 1, 70.0),
)


@pytest.mark.parametrize(
    ("milliseconds", "said"), [(4.234, "4.23"), (22.78, "22.8"), (100.0, "100"), (51234.5, "51200")]
)
def test_times_are_written_with_three_digits(milliseconds: float, said: str) -> None:
    assert shown(milliseconds) == said


def test_ratios_are_to_algan_on_the_same_runtime() -> None:
    lines = markdown(ROWS).splitlines()
    assert lines[2] == "| PyTorch eager | 20 / 21 / 22 | 50 / 51 / 52 (2.5×) |"
    assert lines[3] == "| OpenVINO int8 | 4 / 4.1 / 4.2 | 5 / 5.1 / 5.2 (1.2×) |"
    assert lines[4] == "| ONNX Runtime fp16 |  | 70 |"
    plain = text(ROWS).splitlines()
    assert plain[2].split()[-5:] == ["50", "51", "52", "100", "2.50"]
    assert plain[-1].split()[-5:] == ["70", "-", "-", "1", "-"]


def test_a_record_of_a_run() -> None:
    run: dict[str, Any] = {
        "benchmarks": [
            {"extra_info": timed(ALGAN, "torch", [20.0] * 10), "stats": {"median": 0.02}},
            {"extra_info": {"side": "overhead_share", "value": 0.16}, "stats": {"median": 1.0}},
        ],
        "machine_info": {"kizu": {"processor": "A"}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-11-22T10:00:00+00:00",
    }
    held = prediction_time.record(run)
    assert held["rows"] == [{"system": ALGAN, "runtime": "torch", "rounds": 10, "p50": 20.0, "p90": 20.0}]
    assert (held["date"], held["revision"], held["latency"]) == (
        "2026-11-22",
        "0123456789ab+",
        {"overhead_share": 0.16},
    )
    assert prediction_time.record(run, "On a busy machine.")["note"] == "On a busy machine."
    with pytest.raises(SystemExit, match="no prediction times"):
        prediction_time.record({**run, "benchmarks": run["benchmarks"][1:]})


# AUROCs


@pytest.mark.parametrize(
    ("variant", "system"),
    [
        ("AutoEncoder", "autoencoder"),
        ("AnoGAN", "anogan"),
        ("f-AnoGAN", "f_anogan"),
        ("f_anogan", "f_anogan"),
        ("EGBAD", "bigan_concat"),
        ("BiGAN (concatenation) + consistency", "bigan_concat_consistency"),
        ("concat + consistency", "bigan_concat_consistency"),
        ("projection", "bigan_projection"),
        ("projection + consistency", "bigan_projection_consistency"),
        ("BiGAN (projection), without consistency", "bigan_projection"),
        ("line", "algan_image"),
        ("sigma 4", None),
    ],
)
def test_systems_of_variants(variant: str, system: str | None) -> None:
    assert system_of(variant) == system
    if system is not None:
        steps = 10 if system == "anogan" else 0
        assert measured_system(Area(system, 0.9, 10, 10, steps)) is not None


def write_results(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("data", "variant", "changes", "area"))
        writer.writerows(rows)
    return path


def test_aurocs_are_means_over_digits_of_means_over_seeds(tmp_path: Path) -> None:
    algan = write_results(tmp_path / "mnist.csv", [("mnist:0", "line", "{}", "0.9"), ("mnist:0", "paper", "{}", "0.1")])
    others = write_results(
        tmp_path / "others.csv",
        [
            ("mnist:0", "EGBAD", "{}", "0.8"),
            ("mnist:0", "EGBAD", "{}", "1.0"),
            ("mnist:1", "EGBAD", "{}", "0.5"),
            ("mnist:1", "AnoGAN", '{"steps": 50}', "0.7"),
            ("mnist:1", "AutoEncoder", "{}", ""),  # not finished
            ("mnist:1", "line", "{}", "0.2"),  # ALGAN is taken from its own
        ],
    )
    found = areas([(algan, "area", ("line",)), (others, "area", None), (tmp_path / "missing.csv", "area", None)])
    assert [(area.system, round(area.auroc, 9), area.digits, area.runs, area.steps) for area in found] == [
        ("algan_image", 0.9, 1, 1, 0),
        ("bigan_concat", 0.7, 2, 3, 0),
        ("anogan", 0.7, 1, 1, 50),
    ]


def test_only_systems_with_both_numbers_are_drawn(tmp_path: Path) -> None:
    found = [
        Area("algan_image", 0.98, 10, 30),
        Area("bigan_concat", 0.93, 10, 16),
        Area("f_anogan", 0.9, 10, 16),  # no time
        Area("anogan", 0.9, 10, 16, steps=33),  # no time of so many steps
    ]
    drawn = {
        label: {name: row.p50 for name, row in held.items()} for label, _, held in prediction_time.points(ROWS, found)
    }
    assert drawn == {"ALGAN-image": {"torch": 20.0, "kizu": 4.0}, "EGBAD": {"torch": 50.0, "kizu": 5.0}}
    prediction_time.draw(ROWS, found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    prediction_time.draw(ROWS, [], tmp_path / "empty.png")


# Comparisons


def test_the_comparisons_of_each_system() -> None:
    limits = {c.name: c.limit for c in COMPARISONS}
    for system in systems():
        if system.name != ALGAN and not system.steps:
            assert limits[f"{system.name}_int8_vs_torch"] == 10
            assert limits[f"{system.name}_bf16_vs_torch"] == 5
    assert limits["bigan_projection_consistency_int8_vs_torch"] == 10
    assert ("anogan_f16_vs_torch" in limits) == any(system.method == "anogan" for system in systems())


def test_the_faster_of_bf16_and_fp16_counts() -> None:
    comparison = Comparison("x", "floor", 5, ("bf16", "torch"), instead=("fp16",), amx_only=True)
    assert comparison.value({"bf16": 4.0, "torch": 20.0}) == 5.0
    assert comparison.value({"bf16": 4.0, "fp16": 2.0, "torch": 20.0}) == 10.0
    assert comparison.value({"fp16": 2.0, "torch": 20.0}) == 10.0
    assert comparison.value({"torch": 20.0}) is None
    assert comparison.value({"bf16": 4.0}) is None
    assert comparison.verdict(None, instructions="avx2", device=None) == "UNBOUND avx2"
    assert comparison.verdict(None, instructions="amx_int8", device=None) == "FAIL"
    assert comparison.verdict(4.9, instructions="amx_int8", device=None) == "FAIL"


def test_names_of_systems_are_different() -> None:
    assert len({system.name for system in SYSTEMS}) == len({system.label for system in SYSTEMS}) == len(SYSTEMS)
