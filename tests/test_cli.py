"""The command line as a user calls it: output, files, exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import BLOCK_IMPORTS, python_output, rewrite_bundle, without
from kizu import Bundle, bundle, engine_file
from kizu.cli import main
from kizu.engine import engines
from kizu.method import get
from kizu.settings import TrainingSettings, preset, read_settings
from kizu.training import Outcome
from rows import CUDA_ENGINES


def kizu(*arguments: object, stdin: str | None = None, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KIZU_CACHE": str(cache), "COLUMNS": "200"}
    command = [sys.executable, "-m", "kizu.cli", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)


def save(path: Path, shape: Sequence[int], seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def test_score_table_and_json_agree_with_the_detector(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    import kizu as package

    files = [save(tmp_path / f"{i}.png", (50, 40, 3), i) for i in range(3)]
    table = kizu("score", bundle_path, *files, "--precision", "fp32", cache=engine_cache)
    lines = kizu("score", bundle_path, tmp_path, "--json", "--precision", "fp32", cache=engine_cache)
    assert (table.returncode, lines.returncode) == (0, 0), table.stderr + lines.stderr
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    with package.load(bundle_path, precision="fp32", cache=engine_cache) as detector:
        for file, row in zip(files, rows, strict=True):
            result = detector.score(np.asarray(Image.open(file)))
            assert (row["score"], row["anomalous"]) == (result.score, result.anomalous)
            (line,) = (line for line in table.stdout.splitlines() if line.endswith(str(file)))
            assert f"{result.score:.4f}" in line
            assert ("anomalous" if result.anomalous else "good") in line


def test_score_goes_on_after_a_bad_file_and_says_so(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", (50, 40, 3), 0)
    grey = save(tmp_path / "grey.png", (50, 40), 0)
    torn = tmp_path / "torn.png"
    torn.write_bytes(good.read_bytes()[:200])
    listing = f"{torn}\n\n{grey}\n{tmp_path / 'absent.png'}\n{good}\n"
    done = kizu("score", bundle_path, "-", "--json", stdin=listing, cache=engine_cache)
    rows = {Path(row["file"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 3
    assert list(rows) == ["torn.png", "grey.png", "absent.png", "good.png"]
    assert all("error" in rows[name] for name in ("torn.png", "grey.png", "absent.png"))
    assert np.isfinite(rows["good.png"]["score"])
    assert str(grey) in rows["grey.png"]["error"]


def test_score_stops_with_one_line_on_what_is_no_bundle(engine_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "part.kizu"
    file.write_text("hello")
    done = kizu("score", file, file, cache=engine_cache)
    assert done.returncode == 1
    assert done.stderr.startswith("kizu: ")
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_threshold_by_rate_and_by_hand(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.kizu"
    path.write_bytes(bundle_path.read_bytes())
    graph = Bundle.open(path).graph("int8")
    scores = Bundle.open(path).manifest.calibration.scores
    n = len(scores["fp32"])
    rate = 2.5 / (n + 1)  # the conformal rank is then ceil(n + 1 - 2.5) = n - 1
    assert kizu("threshold", path, "--false-reject", rate, cache=engine_cache).returncode == 0
    manifest = Bundle.open(path).manifest
    assert manifest.threshold.values == {name: values[n - 2] for name, values in scores.items()}
    assert Bundle.open(path).graph("int8") == graph
    done = kizu("threshold", path, "--false-reject", 0.5 / (n + 1), cache=engine_cache)
    assert done.returncode == 1
    assert f"{n}" in done.stderr  # too few images: says how many there are, and changes nothing
    assert Bundle.open(path).manifest.threshold == manifest.threshold
    assert kizu("threshold", path, "--value", "1.25", cache=engine_cache).returncode == 0
    assert set(Bundle.open(path).manifest.threshold.values.values()) == {1.25}
    assert "1.25" in kizu("threshold", path, cache=engine_cache).stdout


def test_threshold_from_labelled_images(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    import kizu as package

    path = tmp_path / "part.kizu"
    path.write_bytes(bundle_path.read_bytes())
    for kind in ("good", "bad"):
        (tmp_path / "parts" / kind).mkdir(parents=True)
    found: dict[str, list[float]] = {}
    with package.load(path, engine="openvino", precision="fp32", threshold=0.0, cache=engine_cache) as detector:
        images = {i: save(tmp_path / f"{i}.png", (50, 40, 3), i) for i in range(12)}
        scored = {i: detector.score(np.asarray(Image.open(file))).score for i, file in images.items()}
    ranked = sorted(scored, key=lambda i: scored[i])
    for place, i in enumerate(ranked):  # the upper half is called bad, so that one threshold parts the two
        kind = "good" if place < 6 else "bad"
        images[i].rename(tmp_path / "parts" / kind / images[i].name)
        found.setdefault(kind, []).append(scored[i])
    arguments = ("--labelled", tmp_path / "parts", "--best-f1", "--engine", "openvino")
    done = kizu("threshold", path, *arguments, cache=engine_cache)
    assert done.returncode == 0, done.stderr
    threshold = Bundle.open(path).manifest.threshold
    assert threshold.rule == "best-f1"
    assert max(found["good"]) <= threshold.values["fp32"] < min(found["bad"])


def test_evaluate_writes_a_page(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = kizu("evaluate", bundle_path, "--report", page, "--json", cache=engine_cache)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    images = Bundle.open(bundle_path).manifest.training["images"]["test"]
    assert found["images"] == images
    text = page.read_text(encoding="utf-8")
    assert f"{found['auroc']:.3f}" in text
    assert "<script" not in text


def test_info_and_engines_say_what_is_there(bundle_path: Path, engine_cache: Path) -> None:
    about = kizu("info", bundle_path, cache=engine_cache)
    assert about.returncode == 0
    assert "algan_image" in about.stdout
    assert re.search(r"^ *score +logit *$", about.stdout, re.MULTILINE)
    listed = kizu("engines", cache=engine_cache)
    assert listed.returncode == 0
    assert "openvino" in listed.stdout
    assert "onnxruntime" in listed.stdout


def test_data_info_counts_and_names_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good").mkdir()
    for i in range(4):
        save(tmp_path / "good" / f"{i}.png", (20, 30), i)
    assert main(["data", "info", str(tmp_path)]) == 0
    assert "30 to 30 pixels" in capsys.readouterr().out
    (tmp_path / "good" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["data", "info", str(tmp_path)]) == 3
    assert "torn.png" in capsys.readouterr().out


def test_data_list_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    for name in ("mvtec", "magnetic_tile", "mnist", "coil100"):
        assert name in shown


def test_train_export_resume_from_the_command_line(tmp_path: Path, engine_cache: Path) -> None:
    for i in range(40):
        (tmp_path / "parts" / "good").mkdir(parents=True, exist_ok=True)
        save(tmp_path / "parts" / "good" / f"{i:02}.png", (36, 36), i)
    run, path = tmp_path / "run", tmp_path / "part.kizu"
    common = ("--size", 32, "--set", "width=4", "sigma=3", "--batch-size", 4, "--validate-every", 1, "--threads", 1)
    first = kizu("train", tmp_path / "parts", "--output", run, "--epochs", 1, *common, cache=engine_cache)
    assert first.returncode == 0, first.stderr
    again = kizu("train", tmp_path / "parts", "--output", run, "--epochs", 2, *common, cache=engine_cache)
    assert again.returncode == 1
    assert "--resume" in again.stderr
    line = get("algan_image").presets["line"]["config"]  # what the command line takes unless told otherwise
    assert read_settings(run).config == {**line, "width": 4, "sigma": 3}
    named = ("train", "--resume", "--output", run, "--epochs", 1, *common)
    for more in ((), ("--preset", "line"), (tmp_path / "parts",)):  # the same settings, named again
        assert kizu(*named, *more, cache=engine_cache).returncode == 0
    other = kizu(*named, "--preset", "paper", cache=engine_cache)
    assert other.returncode == 1
    assert "trained with other settings (config)" in other.stderr
    on = kizu("train", "--resume", "--output", run, "--epochs", 2, cache=engine_cache)
    assert on.returncode == 0, on.stderr
    done = kizu("export", run, "--output", path, "--false-reject", 0.2, cache=engine_cache)
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(path).manifest
    assert manifest.method.config["sigma"] == 3
    assert manifest.training["epoch_rule"] == "good"
    assert [row["epoch"] for row in manifest.training["history"]] == [1, 2]
    assert manifest.prepare.channels == 1
    few = kizu("export", run, "--output", tmp_path / "few.kizu", "--false-reject", 0.01, cache=engine_cache)
    assert few.returncode == 1
    assert "99" in few.stderr
    assert not (tmp_path / "few.kizu").exists()


def test_the_papers_preset_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainingSettings] = []

    def watched(settings: TrainingSettings, *_: object, **__: object) -> Outcome:
        seen.append(settings)
        return Outcome(tmp_path, 1, True, {})

    monkeypatch.setattr("kizu.training.train", watched)
    for more in ([], ["--preset", "paper"], ["--preset", "line", "--epochs", "7", "--set", "ema_decay=0.5"]):
        assert main(["train", "mnist:8", "--output", str(tmp_path / "run"), *more]) == 0
    line = preset("algan_image", "line")
    assert seen == [
        TrainingSettings(**line, data="mnist:8"),
        TrainingSettings(data="mnist:8"),
        TrainingSettings(**{**line, "epochs": 7, "config": {**line["config"], "ema_decay": 0.5}}, data="mnist:8"),
    ]


def test_usage_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train"])
    assert raised.value.code == 2
    assert main(["train", "--output", str(tmp_path / "run")]) == 1
    assert "name the data" in capsys.readouterr().err
    assert main(["train", "mnist:8", "--output", str(tmp_path / "run"), "--set", "sgima=4"]) == 1
    assert "sigma" in capsys.readouterr().err
    assert main(["train", "mnist:8", "--output", str(tmp_path / "run"), "--preset", "fast"]) == 1
    assert "it has paper, line, surface" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "absent.kizu")]) == 1
    assert "no such file" in capsys.readouterr().err


# Compiling


def need_rtx() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        without("tensorrt_rtx is not installed: pip install -c tools/constraints.txt tensorrt-rtx")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_build_compiles_for_this_machine_and_says_what_was_proved(
    engine: str, bundle_path: Path, tmp_path: Path
) -> None:
    import kizu as package

    arguments = ("--engine", engine, "--precision", "int8", "--threads", 1, "--batch", 4)
    done = kizu("build", bundle_path, *arguments, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    (proof,) = tmp_path.glob(f"engines/{engine}/*/proof.json")
    found = json.loads(proof.read_text())
    assert found["precision"] == "int8"
    assert f"off by at most {found['deviation']:.2g} sd, 0.25 sd are allowed" in done.stdout
    assert str(proof.with_name("engine")) in done.stdout
    before = proof.stat().st_mtime_ns
    with package.load(bundle_path, engine=engine, precision="int8", threads=1, max_batch=4, cache=tmp_path):
        assert [*tmp_path.glob("engines/*/*/proof.json")] == [proof]  # what it built is what is loaded
        assert proof.stat().st_mtime_ns == before


def test_build_writes_an_engine_file_for_another_machine(bundle_path: Path, tmp_path: Path) -> None:
    need_rtx()
    bundle = tmp_path / "part.kizu"
    bundle.write_bytes(bundle_path.read_bytes())
    arguments = ("--engine", "tensorrt-rtx", "--precision", "int8+fp16", "--batch", "1:2:16")
    done = kizu("build", bundle, *arguments, "--compute-capability", "8.6", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "part.int8+fp16.sm86.engine"
    header, plan = engine_file.read(path)
    assert (header.precision, header.batch, header.compute_capability) == ("int8+fp16", (1, 2, 16), "8.6")
    opened = Bundle.open(bundle)
    assert header.graph == opened.manifest.members[opened.manifest.graphs["int8+fp16"]].sha256
    assert len(plan) > 1000
    for said in (
        "1 to 16, fastest at 2",
        "x float32 (N, 5, 32, 32)",
        "logit float32 (N)",
        f"--engine-file {path.name}",
    ):
        assert said in done.stdout
    assert not (tmp_path / "cache").exists()
    named = kizu(
        "build", bundle, *arguments, "--compute-capability", "12.0", "--output", tmp_path / "named", cache=tmp_path
    )
    assert named.returncode == 0, named.stderr
    assert engine_file.read(tmp_path / "named")[0].compute_capability == "12.0"
    # What it is for is asked before it is used: there is no such GPU here, or it is another one.
    image = save(tmp_path / "a.png", (50, 40, 3), 0)
    for command in (("score", bundle, image), ("evaluate", bundle)):
        used = kizu(*command, "--engine-file", tmp_path / "named", cache=tmp_path / "cache")
        assert used.returncode == 1
        assert used.stderr.startswith("kizu: ")
        assert "tensorrt-rtx" in used.stderr or str(tmp_path / "named") in used.stderr


def test_the_views_of_a_frame_are_inputs_of_the_engine(bundle_path: Path, tmp_path: Path) -> None:
    need_rtx()

    def tiled(manifest: dict[str, Any]) -> None:
        manifest["prepare"].update(rotations=4)

    bundle = rewrite_bundle(bundle_path, tmp_path / "part.kizu", edit=tiled)
    assert Bundle.open(bundle).manifest.prepare.views == 4
    arguments = ("--engine", "tensorrt-rtx", "--precision", "fp16", "--batch", "1:1:3", "--compute-capability", "8.9")
    done = kizu("build", bundle, *arguments, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert engine_file.read(tmp_path / "part.fp16.sm89.engine")[0].batch == (4, 4, 12)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--batch", "2:2:4"), "--batch is 2:2:4, but must be 1:OPT:MAX"),
        (("--batch", "1:8:4"), "but must be 1:OPT:MAX"),
        (("--batch", "2000"), "MAX <= 1024"),
        (("--engine", "openvino", "--batch", "1:2:4"), "openvino has no option opt_batch (given: 2); leave it out"),
        (("--engine", "openvino", "--workspace", "5"), "openvino has no option workspace (given: 5); leave it out"),
        (("--engine", "onnxruntime", "--timing-cache", "t"), "onnxruntime has no option timing_cache (given: t)"),
        (("--engine", "onnxruntime", "--output", "part.engine"), "onnxruntime compiles on the machine that it runs on"),
        (("--compute-capability", "8.6"), "name the engine to compile with for another machine"),
        (("--engine", "tensorrt-rtx", "--compute-capability", "8.6"), "--precision is 'auto', but an engine for"),
        (
            ("--engine", "tensorrt-rtx", "--compute-capability", "8.6", "--precision", "bf16"),
            "has one of fp32, fp16, int8, int8+fp16",
        ),
        (
            ("--engine", "tensorrt", "--compute-capability", "8.7", "--precision", "fp16"),
            "tensorrt has no option compute_capability (given: 8.7); leave it out",
        ),
        (("--engine", "onyx", "--compute-capability", "8.6"), "no engine is called 'onyx'"),
    ],
)
def test_what_build_does_not_take_is_said(
    arguments: tuple[str, ...], reason: str, bundle_path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["build", str(bundle_path), *arguments]) == 1
    said = capsys.readouterr()
    assert reason in said.err
    assert said.out == ""


@pytest.mark.parametrize("arguments", [("--batch", "1:2"), ("--batch", "x"), ("--threads", "0"), ("--workspace", "-1")])
def test_build_takes_whole_numbers(
    arguments: tuple[str, ...], bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["build", str(bundle_path), *arguments])
    assert raised.value.code == 2
    assert repr(arguments[1]) in capsys.readouterr().err


def test_build_for_another_machine_needs_no_torch(bundle_path: Path, tmp_path: Path) -> None:
    need_rtx()
    script = """
from kizu.cli import main
arguments = ["--engine", "tensorrt-rtx", "--precision", "fp16", "--compute-capability", "8.6", "--output", sys.argv[3]]
assert main(["build", sys.argv[2], *arguments]) == 0
print("torch" in sys.modules, "onnx" in sys.modules, "onnxruntime" in sys.modules)
"""
    blocked = "torch,onnx,onnxruntime,openvino,matplotlib"
    said = python_output(BLOCK_IMPORTS + script, blocked, bundle_path, tmp_path / "part.engine")
    assert said.splitlines()[-1] == "False False False"
    assert engine_file.read(tmp_path / "part.engine")[0].precision == "fp16"


def test_an_engine_file_that_is_none_is_said_in_one_line(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", (50, 40, 3), 0)
    done = kizu("score", bundle_path, image, "--engine-file", image, cache=engine_cache)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"kizu: could not load the compiled engine {image}: it is no engine file of kizu; kizu build writes one\n"
    )


def test_both_tensorrts_are_listed_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for row in CUDA_ENGINES:
        reason = engines()[row.name].unavailable()
        assert reason is None or reason[:40] in shown[row.name]


def test_tolerances_are_the_documented_ones() -> None:
    assert bundle.TOLERANCES == {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25, "int8+fp16": 0.25}


def test_evaluation_leaves_out_what_training_saw(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    from kizu.prepare import frame_digest

    manifest = Bundle.open(bundle_path).manifest
    data = Path(manifest.training["settings"]["data"])
    images = sorted(path for path in data.rglob("*.png"))
    seen = sum(frame_digest(np.asarray(Image.open(path))) in manifest.seen for path in images)
    counts = manifest.training["images"]
    assert seen == counts["train"] + counts["validation"] + counts["calibration"]
    done = kizu("evaluate", bundle_path, "--data", data, "--json", cache=engine_cache)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == counts["test"] == len(images) - seen
    assert f"{seen} of {len(images)} images are left out" in done.stderr
    folder = tmp_path / "only" / "good"
    folder.mkdir(parents=True)
    for path in images:
        if frame_digest(np.asarray(Image.open(path))) in manifest.seen:
            (folder / path.name).write_bytes(path.read_bytes())
    none = kizu("evaluate", bundle_path, "--data", tmp_path / "only", cache=engine_cache)
    assert none.returncode == 1
    assert "no images are left" in none.stderr


def test_score_goes_on_after_an_empty_folder_and_takes_windows_lists(
    bundle_path: Path, engine_cache: Path, tmp_path: Path
) -> None:
    good = save(tmp_path / "good.png", (50, 40, 3), 0)
    (tmp_path / "empty").mkdir()
    done = kizu("score", bundle_path, tmp_path / "empty", good, "--json", cache=engine_cache)
    assert done.returncode == 3
    assert "error" in json.loads(done.stdout.splitlines()[0])
    assert json.loads(done.stdout.splitlines()[1])["file"] == str(good)
    listed = kizu("score", bundle_path, "-", "--json", stdin=f"{good}\r\n", cache=engine_cache)
    assert (listed.returncode, json.loads(listed.stdout)["file"]) == (0, str(good))


def test_options_may_be_given_in_parts(tmp_path: Path, engine_cache: Path) -> None:
    (tmp_path / "parts" / "good").mkdir(parents=True)
    for i in range(24):
        save(tmp_path / "parts" / "good" / f"{i:02}.png", (36, 36, 3), i)
    environment = {**os.environ, "KIZU_CACHE": str(engine_cache)}
    command = [sys.executable, "-m", "kizu.cli", "train", "parts", "--output", "run", "--preset", "paper"]
    command += [
        "--size",
        "32",
        "--epochs",
        "1",
        "--set",
        "width=4",
        "--set",
        "latent_dim=8",
        "--threads",
        "1",
        "--autocast",
        "off",
    ]
    command += ["--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.3", "0.4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "calibration parts allow a false-reject rate of" in done.stdout
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]
    assert settings["config"] == {"width": 4, "latent_dim": 8}
    assert settings["data"] == str(tmp_path / "parts")  # so that an export from another folder takes these images
    made = kizu("export", tmp_path / "run", "-o", tmp_path / "part.kizu", "--value", "0", cache=engine_cache)
    assert made.returncode == 0, made.stderr
    assert Bundle.open(tmp_path / "part.kizu").manifest.prepare.mean == (0.4, 0.5, 0.6)


def test_mistakes_are_said_in_one_line(bundle_path: Path, tmp_path: Path, engine_cache: Path) -> None:
    (tmp_path / "file").write_text("x")
    for arguments in (
        ("export", bundle_path),
        ("train", "mnist:8", "--output", tmp_path / "file"),
        ("threshold", bundle_path, "--labelled", tmp_path),
        ("score", bundle_path, tmp_path / "file", "--threshold", "nan"),
    ):
        done = kizu(*arguments, cache=engine_cache)
        assert done.returncode == 1, arguments
        assert done.stderr.startswith("kizu: "), done.stderr
        assert "Traceback" not in done.stderr
