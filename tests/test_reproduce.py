"""tools/reproduce.py: runs that go on after a kill, rows with their keys, figures that hold, the toy's boundary."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import reproduce
from helpers import make_parts
from kizu.data import Sample, Split
from kizu.errors import TrainingError
from kizu.method import available
from kizu.prepare_reference import prepare_reference
from kizu.run_folder import holds_run, load_file
from kizu.settings import CHECKPOINT, SETTINGS, epoch_file
from reproduction import curve, experiments, histograms, images, neighbours, results, robustness, toy, worker
from reproduction.experiments import EXPERIMENTS, Experiment
from reproduction.networks import Networks
from reproduction.page import Context
from reproduction.runs import EVALUATION, SCORES, Planned, Run, flat_preset, plan
from training_helpers import TINY, differences, read_log, run_differences

CONFIG = {**TINY, "size": 32, "batch_size": 4, "validate_every": 1, "autocast": "off", "epochs": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Grey parts: 40 good, 8 scratched."""
    return str(make_parts(tmp_path_factory.mktemp("parts") / "data", color=False, good=40, bad=8))


def experiment(data: str, **changes: Any) -> Experiment:
    variants: Mapping[str, Any] = {"published": {}, "fresh": {"xi": 1.0}}
    return Experiment("try", "A try", variants=variants, data=(data,), seeds=(0,), changes={**CONFIG, **changes})


def work(run: Run, output: Path) -> Path:
    """Train and evaluate a run in this process."""
    folder = run.folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    signals = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = torch.get_num_threads()
    try:
        assert worker.main([str(folder), run.request()]) == 0
    finally:
        torch.set_num_threads(threads)
        for number, handler in signals:
            signal.signal(number, handler)
    return folder


@pytest.fixture(scope="module")
def rows(data: str) -> list[Planned]:
    return plan(experiment(data), seeds=[0])


@pytest.fixture(scope="module")
def output(rows: list[Planned], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of the first variant lies, unbroken."""
    folder = tmp_path_factory.mktemp("output")
    work(rows[0].run, folder)
    return folder


@pytest.fixture
def offered(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command knows the experiment "try"."""
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"try": experiment(data)})


def command(output: Path, *more: str) -> int:
    return reproduce.main(["try", "--output", str(output), "--results", str(output / "results"), "--jobs", "1", *more])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# --- Runs ---


def test_a_killed_run_goes_on_to_the_same_bits(rows: list[Planned], output: Path, tmp_path: Path) -> None:
    run = rows[0].run
    folder = run.folder(tmp_path)
    folder.mkdir()
    slow = "import time, kizu.validation as v; f = v.Validation.values; n = [0]\n"
    slow += "v.Validation.values = lambda *a: (n.append(0), time.sleep(60 if len(n) > 3 else 0), f(*a))[2]\n"
    slow += "import sys; from reproduction.worker import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, str(folder), run.request()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not (holds_run(folder) and load_file(folder / CHECKPOINT)["epoch"] == 3):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert run.evaluation(tmp_path) is None
    work(run, tmp_path)
    unbroken = run.folder(output)
    assert run_differences(unbroken, folder) == []
    values = [json.loads((each / EVALUATION).read_text()) for each in (unbroken, folder)]
    for each in values:
        del each["seconds"], each["date"]
    assert values[0] == values[1]


def test_the_command_trains_what_is_missing_and_only_that(
    rows: list[Planned],
    output: Path,
    offered: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (rows[0].run.folder(output) / CHECKPOINT).stat().st_mtime_ns
    assert rows[1].run.evaluation(output) is None
    assert command(output) == 0
    assert (rows[0].run.folder(output) / CHECKPOINT).stat().st_mtime_ns == before
    found = read_csv(output / "results" / "try.csv")
    assert [(row["variant"], row["seed"]) for row in found] == [("fresh", "0"), ("published", "0")]
    assert json.loads(found[0]["changes"])["xi"] == 1.0
    for row in found:
        assert row["revision"]
        assert row["torch"] == str(torch.__version__)
        assert row["processor"]
        assert row["date"]
    page = (output / "results" / "try.md").read_text(encoding="utf-8")
    assert "| fresh | 1 |" in page
    assert "try.png" in page
    assert (output / "results" / "try.png").read_bytes().startswith(b"\x89PNG")

    def never(self: Any, run: Run) -> str:
        raise AssertionError(f"{run} was trained again")

    monkeypatch.setattr("reproduction.runs.Workers._work", never)
    assert command(output) == 0
    assert read_csv(output / "results" / "try.csv") == found
    assert "published, seed 0" in capsys.readouterr().out


def test_the_row_is_what_the_networks_score(rows: list[Planned], output: Path) -> None:
    run = rows[0].run
    folder, settings = run.folder(output), run.settings
    dataset = settings.dataset()
    split, spec = settings.divide(dataset), settings.prepare(dataset)
    row = results.row_of(rows[0], run.evaluation(output) or {})
    labels = [not sample.good for sample in split.test]
    assert 0 < sum(labels) < len(labels)
    x = torch.from_numpy(np.stack([prepare_reference(sample.read(), spec) for sample in split.test]))
    for rule in results.RULES:
        picked = load_file(epoch_file(folder, rule))
        module = settings.create(spec).export_module().eval()
        module.load_state_dict(picked["module"])
        with torch.no_grad():
            scores = -module(x)["logit"].numpy()
        assert row[f"test_{rule}"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        assert row[f"epoch_{rule}"] == picked["epoch"]
        np.testing.assert_allclose(np.load(folder / SCORES)[f"score_{rule}"], scores, rtol=1e-4, atol=1e-5)
    curve = [float(line["val_auroc_labelled"]) for line in read_log(folder)]
    assert len(curve) == row["epochs"] == 6
    assert row["validation_drop"] == pytest.approx(max(curve) - curve[-1])
    assert row["test_drop"] == pytest.approx(row["test_labelled"] - row["test_last"])
    assert row["test_best"] == max(row[f"test_{rule}"] for rule in results.RULES)
    assert (row["train_images"], row["test_anomalous_images"]) == (len(split.train), sum(labels))


def test_good_test_images_of_parts_seen_in_training(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where half of the good test images show parts that were trained on, each half is judged by itself."""
    run = plan(experiment(data, epochs=1), seeds=[0])[0].run
    monkeypatch.setattr(worker, "seen_in_training", half_of_the_good)
    folder = work(run, tmp_path)
    values = run.evaluation(tmp_path)
    assert values is not None
    arrays = np.load(folder / SCORES)
    labels, seen, scores = arrays["labels"], arrays["seen"], arrays["score_last"]
    assert values["test_seen_images"] == seen.sum() > 0
    assert not (seen & labels).any()
    for name, left_out in (("seen", ~labels & ~seen), ("unseen", seen)):
        expected = roc_auc_score(labels[~left_out], scores[~left_out])
        assert values[f"test_last_{name}"] == pytest.approx(expected, abs=1e-9)


def half_of_the_good(split: Any) -> Any:
    good = np.array([sample.good for sample in split.test])
    return good & (np.cumsum(good) % 2 == 1)


def test_a_part_is_seen_if_a_training_image_shows_it() -> None:
    def sample(group: str, good: bool = True) -> Sample:
        return Sample(name=f"{group} {good}", good=good, kind="good" if good else "bad", group=group)

    split = Split(
        (sample("a"), sample("b")), (), (sample("c"),), (sample("a"), sample("b", False), sample("c")), "rule"
    )
    assert worker.seen_in_training(split).tolist() == [True, False, False]


def test_checkpoints_at_stops(data: str, output: Path, rows: list[Planned], tmp_path: Path) -> None:
    stopping = replace(experiment(data), stops=(2, 4, 9))
    run = plan(stopping, seeds=[0])[0].run
    assert run.stops == (2, 4)
    assert run.digest != rows[0].run.digest
    folder = work(run, tmp_path)
    assert [load_file(run.checkpoint(tmp_path, epoch))["epoch"] for epoch in run.stops] == [3, 5]
    unbroken = load_file(rows[0].run.folder(output) / CHECKPOINT)
    assert differences(unbroken["method"], load_file(folder / CHECKPOINT)["method"]) == []


# --- What a run is ---


def test_settings_decide_the_run(data: str, rows: list[Planned]) -> None:
    run = rows[0].run
    spelt = plan(replace(experiment(data), variants={"published": {"xi": 0.75, "sigma": 4.0}}), seeds=[0])
    assert spelt[0].run == run, "options that are the defaults make another run"
    others = [plan(experiment(data), seeds=[1]), plan(experiment(data, epochs=7), seeds=[0])]
    assert len({run, rows[1].run, others[0][0].run, others[1][0].run}) == 4
    assert others[0][0].run.recipe == run.recipe != others[1][0].run.recipe


def test_the_order_of_settings(data: str) -> None:
    made = replace(
        EXPERIMENTS["mnist"],
        changes={"epochs": 5, "sigma": 2.0},
        for_data={"mnist:1": {"epochs": 6}},
        data=("mnist:1",),
    )
    run = plan(made, seeds=[3], given={"sigma": 3.0})[0].run
    line = flat_preset("algan_image", "line")
    assert (run.settings.epochs, run.settings.size, run.settings.seed, run.settings.threads) == (6, 32, 3, 1)
    assert run.settings.config["sigma"] == 3.0
    assert run.settings.config["lr_d"] == line["lr_d"]
    assert run.settings.config["width"] == experiments.DATA["mnist:1"]["width"]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if EXPERIMENTS[name].data])
def test_every_entry_of_the_table_can_be_trained(name: str) -> None:
    made = EXPERIMENTS[name]
    variants = can_be_trained(made)
    planned = plan(made, seeds=made.seeds, variants=variants)
    assert len(planned) == len(made.seeds) * len(made.data) * len(variants) > 0
    assert len({row.run for row in planned}) == len(planned), "two variants are the same"
    assert all(data in experiments.DATA for data in made.data)
    for row in planned:
        wanted = made.labelled_variants()[row.variant].get("method", made.method)
        assert row.run.settings.method == wanted


def can_be_trained(made: Experiment) -> list[str]:
    """The variants whose methods this version has."""
    variants = made.labelled_variants()
    return [label for label in variants if variants[label].get("method", made.method) in available()]


def test_finished_runs_are_found_again() -> None:
    """Runs lie under the digest of their settings: another digest of the same settings would train all of them anew."""
    run = plan(EXPERIMENTS["mnist"], seeds=[0], data=["mnist:8"])[0].run
    assert run.folder(Path("runs")) == Path("runs/mnist-8-eebaca2436ac")


def test_a_variant_names_its_method(data: str) -> None:
    made = replace(experiment(data), variants={"one": {}, "other": {"method": "bigan", "preset": "egbad"}})
    one, other = plan(made, seeds=[0], given={"lr": 1e-3, "xi": 0.5, "latent_dim": 4})
    assert (one.run.settings.method, other.run.settings.method) == ("algan_image", "bigan")
    assert other.changes["method"] == "bigan"
    # Of what is given, each has what its method knows.
    assert one.run.settings.config == {"width": 4, "latent_dim": 4, "xi": 0.5}
    expected = {"width": 4, "latent_dim": 4, "lr": 1e-3, "conditioning": "concat", "consistency": 0.0}
    assert other.run.settings.config == expected
    with pytest.raises(TrainingError, match="there is no setting 'depth'"):
        plan(made, seeds=[0], given={"depth": 2})


def test_what_is_not_known_is_refused(
    data: str, offered: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["nothing"])
    assert "no experiment is called nothing; there are: try" in capsys.readouterr().err
    assert command(tmp_path, "--variants", "other") == 1
    assert "no variant 'other'; it has 'published', 'fresh'" in capsys.readouterr().out
    assert command(tmp_path, "--set", "depth=2") == 1
    assert "no setting 'depth'" in capsys.readouterr().out
    assert command(tmp_path, "--set", "alpha=2") == 1
    assert "alpha is 2" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_other_settings_is_not_taken(
    rows: list[Planned], output: Path, offered: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rows[0].run.folder(tmp_path)
    shutil.copytree(rows[0].run.folder(output), folder)
    settings = json.loads((folder / SETTINGS).read_text())
    settings["settings"]["batch_size"] = 5
    (folder / SETTINGS).write_text(json.dumps(settings))
    assert command(tmp_path) == 1
    said = capsys.readouterr().out
    assert str(folder) in said
    assert "batch_size" in said
    assert "remove that folder" in said


def test_a_training_that_fails_does_not_stop_the_others(
    data: str, output: Path, rows: list[Planned], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants: Mapping[str, Any] = {"too large": {"calibration": 0.999}, "published": {}}
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"try": replace(experiment(data), variants=variants)})
    assert reproduce.main(["try", "--output", str(output), "--results", str(output / "others")]) == 1
    assert "FAILED" in (said := capsys.readouterr().out)
    assert "calibration" in said
    assert [row["variant"] for row in read_csv(output / "others" / "try.csv")] == ["published"]


# --- Rows ---


def row(variant: str, seed: int, value: float, recipe: str = "a") -> dict[str, Any]:
    return {"experiment": "try", "data": "d", "variant": variant, "seed": seed, "test_last": value, "recipe": recipe}


def test_rows_are_replaced_by_their_key(tmp_path: Path) -> None:
    path, lock = tmp_path / "rows.csv", tmp_path / "lock"
    for new in (row("x", 1, 0.5), row("x", 0, 0.25), row("y", 0, 0.75), row("x", 1, 1.0)):
        held = results.merge_rows(path, [new], lock=lock)
    assert results.read_rows(path) == held == [row("x", 0, 0.25), row("x", 1, 1.0), row("y", 0, 0.75)]
    results.merge_rows(path, [row("x", 2, 0.125, recipe="b")], lock=lock)
    assert results.read_rows(path) == [row("x", 2, 0.125, recipe="b"), row("y", 0, 0.75)], "two recipes in one mean"


def test_the_summary_is_mean_and_deviation() -> None:
    lines = results.lines_of([row("x", 0, 0.5), row("x", 1, 0.7), {**row("x", 0, 0.9), "data": "e"}], ["x", "y"], ["e"])
    table = results.table_of(lines)
    assert [line[:5] for line in table.body] == [
        ["e", "x", "1", "0.900", "0.900"],
        ["d", "x", "2", "0.600 ± 0.141", "0.500"],
        ["all", "x", "3", "0.700 ± 0.200", "0.500"],
    ]


# --- Figure 3 ---


def test_the_toys_boundary_encloses_the_normal_data() -> None:
    """It did for each of seeds 0 to 7; without anomalous latents for none of seeds 0 to 2."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = toy.margins(toy.train_toy(1, epochs=20, **toy.LINE), 1)
        without = toy.margins(toy.train_toy(1, epochs=20, **{**toy.LINE, "alpha": 1.0}), 1)
    finally:
        torch.set_num_threads(threads)
    assert found["accepted"] > 0.9
    assert found["ring_6"] == found["ring_8"] == 1.0
    assert without["ring_8"] < 0.9


# --- Figures 1, 5, 7 and 8 ---


def test_the_figures_of_a_run(
    rows: list[Planned], output: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "FALSE_REJECT", 0.3)  # which so few calibration images can promise
    monkeypatch.setattr(robustness, "FAKES", 8)
    run = rows[0].run
    files = []
    for module in (curve, histograms, images, robustness):
        made = replace(experiment(data), name=module.__name__.split(".")[-1])
        context = Context(made, rows[:1], [0], output, tmp_path)
        files += [path for section in module.sections(context) for path in section.figures]
    assert len(files) == len(set(files)) == 5
    for path in files:
        with Image.open(path) as picture:
            assert min(picture.size) > 100

    networks = Networks.load(run, output)
    arrays = np.load(run.folder(output) / SCORES)
    good = arrays["score_last"][~arrays["labels"]]
    np.testing.assert_array_equal(networks.score(networks.images("test", good=True)), good)
    calibration = np.sort(networks.score(networks.images("calibration")))
    limit = calibration[int(np.ceil(0.7 * (len(calibration) + 1))) - 1]  # 70 % of good parts score no more
    held = {row["images"]: row for row in results.read_rows(tmp_path / "robustness-shares.csv")}
    assert list(held) == sorted(robustness.KINDS)
    assert held["good"]["rejected"] == pytest.approx(np.mean(good > limit))
    assert 0 <= held["cut and pasted"]["unchanged"] < 0.5


def test_fakes_are_as_d_sees_them_in_training(rows: list[Planned], output: Path) -> None:
    """G in training mode on a batch of both latents, whose statistics a batch of one kind would not give."""
    networks = Networks.load(rows[0].run, output)
    normal, anomalous = networks.fakes(6, seed=5)
    again = networks.fakes(6, seed=5)
    assert all(torch.equal(a, b) for a, b in zip((normal, anomalous), again, strict=True))
    assert normal.shape == anomalous.shape == (6, 1, 32, 32)
    method = networks.method
    z = torch.randn(4, method.config.latent_dim, generator=torch.Generator().manual_seed(5))
    z[3:] *= 4
    generator = method.generator.train()
    with torch.no_grad():
        assert torch.equal(generator(z)[:3], normal[:3])
    assert not torch.equal(networks.fakes(6, sigma=8.0, seed=5)[1], anomalous)


# --- Neighbours ---


def test_distances_are_those_to_the_nearest_training_image_whatever_the_exposure() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(40, 200, (n, 1, 9, 9), np.uint8) for n in (30, 12))
    for kind in neighbours.KINDS:
        a, b = neighbours.vectors(test, kind), neighbours.vectors(train, kind)
        expected = NearestNeighbors(n_neighbors=1).fit(b).kneighbors(a)[0][:, 0]
        np.testing.assert_allclose(neighbours.distances(a, b), expected, rtol=1e-9)
    darker = neighbours.vectors(train // 2, "standardised")
    assert neighbours.distances(darker, neighbours.vectors(train, "standardised")).max() < 0.6  # others lie at 10
    assert neighbours.distances(train.reshape(30, -1) / 510, train.reshape(30, -1) / 255).min() > 1


def test_what_an_experiment_would_ignore_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for more in (["--set", "epochs=2"], ["--data", "mnist:8"], ["--variants", "paper"]):
        with pytest.raises(SystemExit):
            reproduce.main(["toy", "--output", str(tmp_path), *more])
        assert "toy has no trainings that --set, --data or --variants could change" in capsys.readouterr().err
