"""tools/reproduce.py komoto-…: the same search for all systems, lambda chosen after training, by validation images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import reproduce
from helpers import make_parts
from kizu.data import Sample
from kizu.data.prepared import PreparedImages
from kizu.prepare_reference import prepare_reference
from kizu.run_folder import load_file
from kizu.settings import epoch_file
from kizu.validation import score_images
from reproduction import reconstructions, results, search, weights
from reproduction.experiments import EXPERIMENTS, Experiment, Search
from reproduction.runs import SCORES, Run, Workers, plan
from test_reproduce import can_be_trained, work
from training_helpers import TINY

CONFIG = {**TINY, "size": 32, "batch_size": 4, "validate_every": 1, "autocast": "off", "epochs": 3}
SYSTEMS: Mapping[str, Any] = {
    "EGBAD": {"method": "bigan", "preset": "egbad"},
    "f-AnoGAN": {"method": "f_anogan", "gan_epochs": 1, "n_critic": 2},
}
CANDIDATES = {f"latent_dim {z}": {"latent_dim": z} for z in (4, 8)}
KOMOTO = ("komoto-mnist", "komoto-mvtec")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sets of grey parts: 40 good, 12 scratched."""
    folder = tmp_path_factory.mktemp("parts")
    return [
        str(make_parts(folder / name, color=False, good=40, bad=12, seed=seed)) for seed, name in enumerate(("a", "b"))
    ]


def experiment(data: Iterable[str], *, of: tuple[str, ...] = ()) -> Experiment:
    found = Search(dict.fromkeys(SYSTEMS, CANDIDATES), data=of)
    return Experiment(
        "try", "A try", variants=SYSTEMS, data=tuple(data), seeds=(0, 1), changes=CONFIG, present="komoto", search=found
    )


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Let the command train here, without a new interpreter for each run; the runs that it trains."""
    trained: list[Run] = []

    def bring(self: Workers, runs: Iterable[Run], done: Any) -> None:
        for run in runs:
            trained.append(run)
            work(run, self.output)
            done(run, None)

    monkeypatch.setattr(Workers, "bring", bring)
    return trained


def command(output: Path, *more: str) -> int:
    return reproduce.main(["try", "--output", str(output), "--results", str(output / "results"), *more])


@pytest.fixture(scope="module")
def output(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs and results of the whole experiment lie."""
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "EXPERIMENTS", {"try": experiment(data)})
        trained = in_this_process(patch)
        assert command(folder) == 0
    # 2 systems x 2 candidates x 2 data sets with seed 0; of seed 1 the best, whose seed 0 is there.
    assert len(trained) == len(set(trained)) == 8 + 4
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def found_in(output: Path, data: str) -> dict[str, str]:
    """By system the candidate with the best validation AUROC, as the CSV file has it."""
    rows = [row for row in read(output / "results" / "try-search.csv") if row["data"] == data]
    best: dict[str, dict[str, str]] = {}
    for row in rows:
        system = row["variant"].partition(": ")[0]
        if system not in best or float(row["validation_chosen"]) > float(best[system]["validation_chosen"]):
            best[system] = row
    return {system: row["variant"].partition(": ")[2] for system, row in best.items()}


# --- The search ---


@pytest.mark.parametrize("name", KOMOTO)
def test_all_systems_have_as_many_candidates(name: str) -> None:
    made = EXPERIMENTS[name]
    assert made.search is not None
    systems = made.labelled_variants()
    assert list(made.search.candidates) == list(systems)
    assert len(systems) == 7
    assert len({tuple(each) for each in made.search.candidates.values()}) == 1, "they differ in their candidates"
    known = can_be_trained(made)
    planned = search.plan_search(made, variants=known)
    where = made.search.data or made.data
    of_each = len(next(iter(made.search.candidates.values()))) * len(where) * len(made.search.seeds)
    for system in known:
        runs = {row.run for row in planned if row.variant.startswith(f"{system}: ")}
        assert len(runs) == of_each > len(where), "two candidates are the same"
    # They differ from the system that is reported in what was searched for alone, at the same budget.
    budgets = {(row.data, row.run.settings.epochs, row.run.settings.limit, row.run.settings.size) for row in planned}
    assert len(budgets) == len(where)
    for row in planned:
        assert row.experiment == f"{name}-search"
        system, _, label = row.variant.partition(": ")
        of_system = plan(made, seeds=[row.seed], data=[row.data], variants=[system])[0]
        changed = {key for key, value in row.changes.items() if of_system.changes.get(key) != value}
        assert changed <= set(made.search.candidates[system][label])
        assert row.run.settings.method == of_system.run.settings.method


def test_a_search_of_unequal_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"as many candidates for each, not \{'x': 2, 'y': 1\}"):
        Search({"x": {"1": {}, "2": {}}, "y": {"1": {}}})


def a_row(variant: str, data: str, validation: float, test: float) -> results.Row:
    return {"data": data, "variant": variant, "seed": 0, "validation_chosen": validation, "test_chosen": test}


def test_validation_images_choose_the_candidate() -> None:
    """Where validation and test images disagree, whatever the mean over the search's data is."""
    rows = [
        a_row("EGBAD: latent_dim 4", "a", 0.9, 0.5),
        a_row("EGBAD: latent_dim 4", "b", 0.7, 0.5),
        a_row("EGBAD: latent_dim 8", "a", 0.6, 0.99),
        a_row("EGBAD: latent_dim 8", "b", 0.8, 0.99),
    ]
    both = experiment(["c"], of=("a", "b"))
    assert search.best(both, rows) == {("c", "EGBAD"): "latent_dim 4"}
    each = search.best(experiment(["a", "b"]), rows)
    assert each == {("a", "EGBAD"): "latent_dim 4", ("b", "EGBAD"): "latent_dim 8"}
    # A candidate of which a training has failed does not count.
    assert search.best(both, rows[:1] + rows[2:]) == {("c", "EGBAD"): "latent_dim 8"}
    planned = search.plan_found(both, search.best(both, rows), seeds=[0, 1])
    assert [(row.variant, row.seed) for row in planned] == [("EGBAD", 0), ("EGBAD", 1)]
    assert planned[0].run.settings.config["latent_dim"] == planned[0].changes["latent_dim"] == 4


def test_runs_have_what_the_search_found(output: Path, data: list[str]) -> None:
    held = read(output / "results" / "try.csv")
    assert [(row["data"], row["variant"], row["seed"]) for row in held] == [
        (each, system, seed) for each in data for system in SYSTEMS for seed in "01"
    ]
    for row in held:
        assert f"latent_dim {json.loads(row['changes'])['latent_dim']}" == found_in(output, row["data"])[row["variant"]]
        assert json.loads(row["changes"])["method"] == SYSTEMS[row["variant"]]["method"]
        assert row["revision"]
        assert row["torch"] == str(torch.__version__)
    # The candidate that was found is the run of the search's seed, not another.
    digests = {row["digest"] for row in read(output / "results" / "try-search.csv")}
    assert all(row["digest"] in digests for row in held if row["seed"] == "0")


def test_the_command_goes_on_where_it_stopped(
    output: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the search or after it; a row of another search that lies in the CSV file does not count."""
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"try": experiment(data[:1])})
    whole = read(output / "results" / "try.csv")
    trained = in_this_process(monkeypatch)

    def stop(self: Workers, runs: Iterable[Run], done: Any) -> None:
        runs = list(runs)
        for run in runs[:3]:
            work(run, self.output)
            done(run, None)
        if runs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "bring", stop)
        assert command(tmp_path) == 130
        assert command(tmp_path) == 130
    assert not (tmp_path / "results" / "try.md").exists()
    search_file = tmp_path / "results" / "try-search.csv"
    rows = results.read_rows(search_file)
    assert len(rows) == 4
    other = "latent_dim 8" if found_in(output, data[0])["EGBAD"] == "latent_dim 4" else "latent_dim 4"
    better = {**next(row for row in rows if row["variant"].endswith(other)), "seed": 7, "validation_chosen": 1.0}
    results.write_rows(search_file, [*rows, {**better, "digest": "another"}])
    assert command(tmp_path) == 0
    assert len(trained) == 4 + 4 - 3 - 3
    held = [row for row in whole if row["data"] == data[0]]
    again = read(tmp_path / "results" / "try.csv")
    for row in (*held, *again):
        del row["seconds"], row["date"]
    assert held == again


def test_a_system_that_cannot_be_trained_leaves_the_others(
    data: list[str], output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = replace(
        experiment(data[:1]),
        variants={**SYSTEMS, "f-AnoGAN": {**SYSTEMS["f-AnoGAN"], "calibration": 0.999}},
        seeds=(0,),
    )
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"try": made})

    def bring(self: Workers, runs: Iterable[Run], done: Any) -> None:
        for run in runs:
            assert run.settings.method == "f_anogan"
            done(run, "it has failed")

    monkeypatch.setattr(Workers, "bring", bring)
    arguments = ["try", "--output", str(output), "--results", str(tmp_path)]
    assert reproduce.main(arguments) == 1
    assert capsys.readouterr().out.count("FAILED") == 2
    assert [row["variant"] for row in read(tmp_path / "try.csv")] == ["EGBAD"]
    assert "| EGBAD |" in (tmp_path / "try.md").read_text(encoding="utf-8")


# --- Lambda ---


def test_validation_images_choose_lambda() -> None:
    """Planted: the residual parts the test images, the logit the validation images."""
    labels = np.array([False, False, True, True])
    apart, mixed = np.array([0.0, 0.1, 0.9, 1.0], np.float32), np.array([0.9, 0.0, 1.0, 0.1], np.float32)
    feature = np.stack([mixed, mixed])
    arrays = {
        "labels": labels,
        "validation_labels": labels,
        "test_residual_feature": np.stack([apart, apart]),
        "test_residual_logit": np.stack([apart, -apart]),
        "validation_residual_feature": feature,
        "validation_residual_logit": np.stack([mixed, apart]),
    }
    found = weights.choose(arrays)
    assert found is not None
    values = [roc_auc_score(labels, (1 - w) * mixed + w * apart) for w in weights.LAMBDAS]
    first = weights.LAMBDAS[int(np.argmax(values))]
    assert 0 < first < 1
    at_first = roc_auc_score(labels, (1 - first) * apart - first * apart)
    assert found == weights.Choice("residual_logit", first, 1.0, at_first)
    assert found.test < 1 == roc_auc_score(labels, apart)
    assert weights.choose({"labels": labels}) is None
    residual = {"labels": labels, "validation_labels": labels}
    alone = weights.choose({**residual, "test_residual": apart[None], "validation_residual": mixed[None]})
    assert alone == weights.Choice("residual", 0.0, 0.75, 1.0)


def direct(run: Run, folder: Path, samples: Iterable[Sample]) -> dict[str, np.ndarray[Any, Any]]:
    """Both parts of the scores of images, by rule, written out: equations 7 to 9."""
    settings = run.settings
    spec = settings.prepare(settings.dataset())
    x = torch.from_numpy(np.stack([prepare_reference(sample.read(), spec) for sample in samples]))
    module: Any = settings.create(spec).export_module().eval()
    module.load_state_dict(load_file(epoch_file(folder, "labelled"))["module"])
    with torch.no_grad():
        outputs = module(x)
        residual = (x - outputs["x_hat"]).abs().flatten(1).mean(1)
        feature = (outputs["f"] - outputs["f_hat"]).abs().flatten(1).mean(1)
        found = {"residual_feature": np.stack([residual.numpy(), feature.numpy()])}
        if settings.method == "bigan":
            logit, _ = module.discriminator(x, module.encoder(x))
            entropy = -torch.log(torch.sigmoid(logit.double()))
            found["residual_logit"] = np.stack([residual.numpy(), entropy.numpy()])
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_lambda_and_rule_are_those_of_a_direct_computation(system: str, output: Path, data: list[str]) -> None:
    made = experiment(data)
    row = next(
        each
        for each in results.read_rows(output / "results" / "try.csv")
        if (each["data"], each["variant"], each["seed"]) == (data[0], system, 1)
    )
    rows = results.read_rows(output / "results" / "try-search.csv")
    planned = search.plan_found(made, search.best(made, rows), seeds=[1], data=data[:1], variants=[system])[0]
    assert planned.run.digest == row["digest"]
    folder = planned.run.folder(output)
    settings = planned.run.settings
    split = settings.divide(settings.dataset())
    sets = {"validation": split.validation, "test": split.test}
    assert not {sample.name for sample in split.validation} & {sample.name for sample in split.test}
    parts = {name: direct(planned.run, folder, samples) for name, samples in sets.items()}
    labels = {name: np.array([not sample.good for sample in samples]) for name, samples in sets.items()}
    held = np.load(folder / SCORES)
    assert set(parts["test"]) == {name.removeprefix("test_") for name in held if name.startswith("test_")}
    areas: dict[str, dict[tuple[str, float], float]] = {"validation": {}, "test": {}}
    for name in sets:
        for rule in parts[name]:
            np.testing.assert_allclose(held[f"{name}_{rule}"], parts[name][rule], rtol=1e-4, atol=1e-6)
            residual, other = held[f"{name}_{rule}"].astype(np.float64)
            for weight in np.arange(11) / 10:
                scores = (1 - weight) * residual + weight * other
                areas[name][rule, round(weight, 1)] = float(roc_auc_score(labels[name], scores))
    key = max(areas["validation"], key=areas["validation"].__getitem__)  # the first of equals
    assert key == (row["scoring"], row["weight"])
    assert areas["validation"][key] == pytest.approx(row["validation_chosen"], abs=1e-6)
    assert areas["test"][key] == pytest.approx(row["test_chosen"], abs=1e-6)
    # At the method's own lambda it is the score of the other columns.
    weight = {"EGBAD": 0.1, "f-AnoGAN": 0.5}[system]
    own = weights.at(held["test_residual_feature"], weight)
    np.testing.assert_allclose(held["score_labelled"], own, rtol=1e-6)
    assert areas["test"]["residual_feature", weight] == pytest.approx(row["test_labelled"], abs=1e-6)


def test_scores_for_several_lambdas_have_the_bits_of_scores_for_one(output: Path, data: list[str]) -> None:
    run = search.plan_search(experiment(data), data=data[:1], variants=["EGBAD"])[0].run
    settings = run.settings
    dataset = settings.dataset()
    spec = settings.prepare(dataset)
    method = settings.create(spec)
    images = PreparedImages.read(settings.divide(dataset).test, spec)
    lambdas = (0.3, 0.0, 1.0)
    found = weights.score_by_weight(
        method.export_module(), images, scoring_rule="residual_feature", weights=lambdas, batch=5
    )
    for row, weight in zip(found, lambdas, strict=True):
        one = score_images(method.export_module(), images, scoring="residual_feature", weight=weight)
        np.testing.assert_allclose(row, one, rtol=1e-5)


def test_methods_without_a_residual_keep_no_parts(tmp_path: Path, data: list[str]) -> None:
    made = Experiment("try", "", variants={"x": {}}, data=(data[0],), changes={**CONFIG, "epochs": 1})
    planned = plan(made, seeds=[0])[0]
    folder = work(planned.run, tmp_path)
    evaluation = planned.run.evaluation(tmp_path)
    assert evaluation is not None
    assert not {"scoring", "weight", "test_chosen"} & set(evaluation)
    assert set(np.load(folder / SCORES)) == {"labels", "seen", "kinds", "score_last", "score_labelled", "score_good"}
    path = tmp_path / "rows.csv"
    results.merge_rows(path, [results.row_of(planned, evaluation)], lock=tmp_path / "lock")
    assert not set(results.CHOSEN) & set(read(path)[0]), "a column of what is never chosen"


# --- The page ---


def table(page: str, first: str) -> dict[str, list[str]]:
    """The rows of the markdown table that begins with a heading, by their first cell."""
    lines = page[page.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in (cells[0], *cells[2:])}


def test_the_table_is_that_of_the_csv_file(output: Path, data: list[str]) -> None:
    page = (output / "results" / "try.md").read_text(encoding="utf-8")
    rows = read(output / "results" / "try.csv")
    held = table(page, "system")
    assert held.pop("system") == [*data, "mean", "mean, preset lambda"]
    alone = held.pop("brightness alone")
    means = {}
    for system, cells in held.items():
        by_data = [
            [float(row["test_chosen"]) for row in rows if (row["data"], row["variant"]) == (each, system)]
            for each in data
        ]
        assert cells[:2] == [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in by_data]
        means[system] = mean(map(mean, by_data))
        assert cells[2] == f"{means[system]:.3f}"
        preset = [float(row["test_labelled"]) for row in rows if row["variant"] == system]
        assert cells[3] == f"{mean(preset):.3f}"
    assert list(held) == sorted(means, key=lambda name: -means[name])
    for cell, each in zip(alone, data, strict=False):
        settings = plan(experiment([each]), seeds=[0])[0].run.settings
        split = settings.divide(settings.dataset())
        areas = [
            roc_auc_score([not sample.good for sample in part], [np.mean(sample.read()) for sample in part])
            for part in (split.validation, split.test)
        ]
        assert float(cell) == pytest.approx(areas[1] if areas[0] >= 0.5 else 1 - areas[1], abs=0.02)  # it was resized
    assert alone[2] == f"{mean(map(float, alone[:2])):.3f}"
    chosen = table(page, "lambda")
    for system, cells in list(chosen.items())[1:]:
        for cell, each in zip(cells, data, strict=True):
            of = [row for row in rows if (row["data"], row["variant"]) == (each, system)]
            expected = [f"{float(row['weight']):g}{' c' * (row['scoring'] == 'residual_logit')}" for row in of]
            assert cell == ", ".join(expected)


def test_the_page_shows_the_search(output: Path, data: list[str]) -> None:
    page = (output / "results" / "try.md").read_text(encoding="utf-8")
    searched = {(row["data"], row["variant"]): row for row in read(output / "results" / "try-search.csv")}
    for each in data:
        for system, best in found_in(output, each).items():
            cells = [f"{float(searched[each, f'{system}: {label}']['validation_chosen']):.3f}" for label in CANDIDATES]
            cells[list(CANDIDATES).index(best)] = f"**{cells[list(CANDIDATES).index(best)]}**"
            assert f"| {each} | {system} | {' | '.join(cells)} |" in page


def test_the_figures(output: Path) -> None:
    page = (output / "results" / "try.md").read_text(encoding="utf-8")
    names = [part.partition(")")[0] for part in page.split("](")[1:]]
    assert len(names) == 3, "bars, and images of two data sets"
    for name in names:
        with Image.open(output / "results" / name) as picture:
            assert min(picture.size) > 300


def test_images_shown_are_of_many_kinds() -> None:
    def sample(kind: str, number: int) -> Sample:
        return Sample(name=f"{kind}{number}", good=kind == "good", kind=kind, group=f"{kind}{number}")

    few = [sample(kind, i) for kind in ("b", "good", "a") for i in range(9)]
    assert [few[i].kind for i in reconstructions.choose(few)] == ["good"] * 4 + ["a"] * 3 + ["b"] * 3
    many = [sample(f"digit {digit}", i) for digit in range(9) for i in range(3)] + [sample("good", 0)]
    shown = [many[i].kind for i in reconstructions.choose(many)]
    assert shown[0] == "good"
    assert len(set(shown[1:])) == len(shown[1:]) == 6


def test_an_outline_lies_around_the_mask() -> None:
    mask = np.zeros((reconstructions.CELL,) * 2, np.float32)
    mask[40:60, 30:50] = 1
    line = reconstructions._outline(mask)
    expected = np.zeros(mask.shape, bool)
    expected[38:62, 28:52] = True
    expected[40:60, 30:50] = False
    np.testing.assert_array_equal(line, expected)
