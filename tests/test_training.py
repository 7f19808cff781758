"""Training: the same bits for a seed and after any interruption, run folders, what it reads, the epoch's rules."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

import kizu.training
from helpers import PYTHON, make_parts
from kizu import run_folder
from kizu.data import Augmentation, open_dataset
from kizu.data.prepared import PreparedImages, augment, cut_paste
from kizu.errors import TrainingError
from kizu.method import get
from kizu.methods.algan_image import AlganImage
from kizu.prepare import PrepareSpec, prepare
from kizu.run_folder import load_file
from kizu.settings import CHECKPOINT, LOG, RULES, SETTINGS, TrainingSettings, epoch_file, read_settings
from kizu.training import Outcome, Picked, train
from kizu.validation import Validation
from rows import METHODS, MethodRow
from training_helpers import TINY, Watch, differences, read_log, run_differences, tiny

Image8 = NDArray[np.uint8]
PLAIN = Augmentation()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour parts: 40 good, 6 scratched."""
    return make_parts(tmp_path_factory.mktemp("parts") / "data", color=True, good=40, bad=6)


@pytest.fixture(scope="module")
def mono_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey parts, all good."""
    return make_parts(tmp_path_factory.mktemp("mono") / "data", color=False, good=30, bad=0)


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs without interruption."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    outcome = train(tiny(data), run)
    assert outcome.finished
    return run


# --- The same bits ---


def test_a_seed_decides_every_bit(data: Path, unbroken: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # the caller's generators have no part in it
    np.random.seed(12345)
    train(tiny(data), tmp_path / "again")
    assert run_differences(unbroken, tmp_path / "again") == []
    train(tiny(data, seed=1), tmp_path / "other")
    found = run_differences(unbroken, tmp_path / "other")
    for part in (
        "/method/generator",
        "/method/discriminator",
        "/method/z_d",
        "/method/buffer",
        "/optimizers",
        "log.csv",
    ):
        assert any(part in difference for difference in found), part


def test_training_leaves_the_callers_torch_as_it_was(data: Path, tmp_path: Path) -> None:
    generators = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # type: ignore[index]
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), signal.getsignal(signal.SIGINT)
    train(tiny(data, epochs=1, validate_every=2, threads=2), tmp_path / "run")
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), signal.getsignal(signal.SIGINT)
    assert after == before
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tobytes() == generators[1]  # type: ignore[index]


def interrupt_after(epoch: int, batch: int | None) -> Watch:
    """Send SIGINT after a batch, or with None after the epoch."""

    def see(at_epoch: int, at_batch: int, values: Any) -> None:
        if at_epoch == epoch and (values is not None if batch is None else values is None and at_batch == batch):
            signal.raise_signal(signal.SIGINT)

    return Watch(see)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resume_after_a_stop_between_epochs(data: Path, unbroken: Path, tmp_path: Path, epoch: int) -> None:
    outcome = train(tiny(data), tmp_path / "run", progress=interrupt_after(epoch, None))
    assert (outcome.epochs, outcome.finished) == (epoch, False)
    outcome = train(tiny(data), tmp_path / "run", resume=True)
    assert (outcome.epochs, outcome.finished) == (4, True)
    assert run_differences(unbroken, tmp_path / "run") == []


def test_resume_after_a_stop_at_each_batch(data: Path, unbroken: Path, tmp_path: Path) -> None:
    stops, resume = 0, False

    def see(epoch: int, batch: int, values: Any) -> None:
        if values is None:
            signal.raise_signal(signal.SIGINT)

    while not train(tiny(data), tmp_path / "run", resume=resume, progress=Watch(see)).finished:
        stops, resume = stops + 1, True
    assert stops >= 12
    assert run_differences(unbroken, tmp_path / "run") == []


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.id)
def test_every_method_resumes_after_a_stop_at_each_batch(data: Path, tmp_path: Path, row: MethodRow) -> None:
    chosen = tiny(data, method=row.name, config={**row.config, "width": 4}, batch_size=7)

    def see(epoch: int, batch: int, values: Any) -> None:
        if values is None:
            signal.raise_signal(signal.SIGINT)

    train(chosen, tmp_path / "unbroken")
    resume = False
    while not train(chosen, tmp_path / "run", resume=resume, progress=Watch(see)).finished:
        resume = True
    assert run_differences(tmp_path / "unbroken", tmp_path / "run") == []


@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_a_methods_input_has_pooled_channels_if_it_pools(data: Path, mono_data: Path, color: str) -> None:
    for row in METHODS:
        chosen = tiny(data if color == "rgb" else mono_data, method=row.name, config=row.config)
        own = 3 if color == "rgb" else 1
        spec = chosen.prepare(chosen.dataset())
        assert spec.pool == (row.name == "algan_image" and color == "rgb")
        assert (spec.own_channels, spec.channels) == (own, own + 2 * spec.pool)
        with torch.no_grad():
            assert chosen.create(spec).eval()(torch.zeros(2, spec.channels, 32, 32))


def test_more_epochs_later_are_the_same_as_at_once(data: Path, unbroken: Path, tmp_path: Path) -> None:
    train(tiny(data, epochs=2), tmp_path / "run")
    outcome = train(tiny(data, epochs=4), tmp_path / "run", resume=True)
    assert outcome.epochs == 4
    assert run_differences(unbroken, tmp_path / "run") == []
    assert read_settings(tmp_path / "run").epochs == 4


def test_resuming_a_finished_run_changes_nothing(data: Path, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    outcome = train(tiny(data), tmp_path / "run", resume=True)
    assert outcome.finished
    assert run_differences(unbroken, tmp_path / "run") == []


SCRIPT = """
import json, sys
import kizu.training
from kizu.settings import TrainingSettings
from training_helpers import Watch

settings, run, resume, hold, save_every = json.loads(sys.argv[1])
kizu.training._SAVE_EVERY = save_every

def see(epoch, batch, values):
    if hold is not None and [epoch, batch] == hold and values is None:
        print("held", flush=True)
        sys.stdin.readline()

outcome = kizu.training.train(TrainingSettings.from_dict(settings), run, resume=resume, progress=Watch(see))
print(outcome.finished)
"""


def start(
    data: Path,
    run: Path,
    *,
    resume: bool = False,
    hold: list[int] | None = None,
    save_every: float = 300.0,
    epochs: int = 4,
) -> subprocess.Popen[str]:
    paths = [str(PYTHON), str(Path(__file__).parent)]
    arguments = [tiny(data, epochs=epochs).as_dict(), str(run), resume, hold, save_every]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_resume_after_ctrl_c_in_the_middle_of_an_epoch(data: Path, unbroken: Path, tmp_path: Path) -> None:
    process = start(data, tmp_path / "run", hold=[3, 2])
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    out, error = process.communicate("\n", timeout=60)
    assert (process.returncode, out) == (0, "False\n"), error
    values = load_file(tmp_path / "run" / CHECKPOINT)
    assert (values["epoch"], values["batch_index"]) == (3, 2)
    train(tiny(data), tmp_path / "run", resume=True)
    assert run_differences(unbroken, tmp_path / "run") == []


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_to_resume_from(data: Path, tmp_path: Path) -> None:
    epochs, run, moment = 40, tmp_path / "run", random.Random(0)
    places = []
    for _ in range(4):
        process = start(data, run, resume=(run / CHECKPOINT).exists(), save_every=0.0, epochs=epochs)
        seen = (run / CHECKPOINT).stat().st_mtime_ns if (run / CHECKPOINT).exists() else 0
        while process.poll() is None and not (
            (run / CHECKPOINT).exists() and (run / CHECKPOINT).stat().st_mtime_ns > seen
        ):
            time.sleep(0.001)
        time.sleep(moment.uniform(0, 0.2))
        process.kill()
        _, error = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 0), error
        values = load_file(run / CHECKPOINT)
        places.append((values["epoch"], values["batch_index"]))
    assert places == sorted(places)
    train(tiny(data, epochs=epochs), run, resume=True)
    for partial in run.glob(".*.partial"):  # what a killed process was writing
        partial.unlink()
    train(tiny(data, epochs=epochs), tmp_path / "unbroken")
    assert run_differences(tmp_path / "unbroken", run) == []


def test_a_second_ctrl_c_stops_at_once_and_a_checkpoint_stays(data: Path, tmp_path: Path) -> None:
    def see(epoch: int, batch: int, values: Any) -> None:
        if epoch == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # of a background job it is to ignore it
    with pytest.raises(KeyboardInterrupt):
        train(tiny(data), tmp_path / "run", progress=Watch(see))
    assert signal.getsignal(signal.SIGINT) is before
    assert load_file(tmp_path / "run" / CHECKPOINT)["epoch"] == 3


# --- Files of a run ---


@pytest.mark.parametrize("fault", ["fsync", "replace", "write"])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / CHECKPOINT
    run_folder.save_file({"epoch": 1, "weights": torch.arange(1000)}, path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fault == "fsync":
            patch.setattr(os, "fsync", fail)
        elif fault == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space"):
            run_folder.save_file({"epoch": 2, "weights": torch.arange(9)}, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT]
    assert load_file(path)["epoch"] == 1
    run_folder.save_file({"epoch": 3}, path)
    assert load_file(path) == {"epoch": 3}


def test_the_folder_of_a_run(data: Path, unbroken: Path) -> None:
    files = {SETTINGS, CHECKPOINT, LOG, "epoch-labelled.pt", "epoch-good.pt", "epoch-last.pt"}
    assert {path.name for path in unbroken.iterdir()} == files
    assert read_settings(unbroken) == TrainingSettings.from_dict(tiny(data).as_dict()) == tiny(data)
    assert load_file(epoch_file(unbroken, "last"))["epoch"] == 4
    for rule in ("labelled", "good"):
        values = load_file(epoch_file(unbroken, rule))
        assert values["epoch"] in (2, 4)
        best = max(load_file(unbroken / CHECKPOINT)["history"], key=lambda row: row.get(f"val_auroc_{rule}", -1))
        assert (values["epoch"], values["value"]) == (best["epoch"], best[f"val_auroc_{rule}"])
    last = load_file(unbroken / CHECKPOINT)
    for rule in RULES:
        found = load_file(epoch_file(unbroken, rule))
        if found["epoch"] == 4:  # the folded network is that of the epoch
            bias = last["method"]["discriminator.layers.0.bias"]
            assert torch.equal(found["module"]["discriminator.layers.0.bias"], bias)


def test_the_log(unbroken: Path) -> None:
    rows = read_log(unbroken)
    assert set(rows[0]) == {
        "epoch",
        "loss_D",
        "loss_G",
        "logit_real",
        "val_auroc_labelled",
        "val_auroc_good",
        "seconds",
    }
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        assert all(np.isfinite(float(row[name])) for name in ("loss_D", "loss_G", "logit_real", "seconds"))
        assert float(row["loss_D"]) > 0 > float(row["loss_G"])
        for name in ("val_auroc_labelled", "val_auroc_good"):
            assert (row[name] == "") == (row["epoch"] in ("1", "3"))
            assert row[name] == "" or 0 <= float(row[name]) <= 1


def test_the_log_holds_means_over_the_epoch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = AlganImage.training_step

    def watched(self: AlganImage, batch: Tensor, state: Any) -> dict[str, Tensor]:
        losses = step(self, batch, state)
        seen.append(float(losses["loss_D"]))
        return losses

    monkeypatch.setattr(AlganImage, "training_step", watched)
    train(tiny(data, epochs=1), tmp_path / "run")
    assert len(seen) == 19 // 4  # 19 training images; what is left over of an epoch is not used
    assert float(read_log(tmp_path / "run")[0]["loss_D"]) == pytest.approx(np.mean(seen), rel=1e-12)


def test_the_last_epoch_is_validated_in_any_case(data: Path, tmp_path: Path) -> None:
    outcome = train(tiny(data, epochs=3, validate_every=5), tmp_path / "run")
    assert [row["val_auroc_good"] != "" for row in read_log(tmp_path / "run")] == [False, False, True]
    assert outcome.picked["good"].epoch == 3


def test_resume_with_other_settings_is_refused_and_names_them(data: Path, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    changed = tiny(data, seed=3, config={**TINY, "sigma": 2.0}, epochs=9, threads=2)
    with pytest.raises(TrainingError, match=r"other settings \(config, seed\)"):
        train(changed, tmp_path / "run", resume=True)
    assert read_settings(tmp_path / "run") == tiny(data)
    assert run_differences(unbroken, tmp_path / "run") == []


def test_a_folder_that_holds_a_run_is_refused(data: Path, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"holds a training run already.*--resume"):
        train(tiny(data, seed=5), tmp_path / "run")
    assert read_settings(tmp_path / "run").seed == 0
    assert run_differences(unbroken, tmp_path / "run") == []


def test_nothing_to_resume_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training run here"):
        train(tiny(data), tmp_path / "none", resume=True)
    run_folder.claim(tmp_path / "begun", tiny(data), resume=False)
    with pytest.raises(TrainingError, match=r"no checkpoint\.pt to resume from"):
        train(tiny(data), tmp_path / "begun", resume=True)
    train(tiny(data, epochs=1), tmp_path / "begun")  # but it is free for a new run


def test_resume_on_other_images_is_refused(tmp_path: Path) -> None:
    data = make_parts(tmp_path / "data", color=False, good=20, bad=2)
    train(tiny(data, epochs=1), tmp_path / "run")
    split = tiny(data).divide(open_dataset(data))
    for part in (split.train, split.validation):
        path = part[0].path
        assert path is not None
        kept = path.read_bytes()
        Image.fromarray(np.full((60, 72), 9, np.uint8)).save(path)
        with pytest.raises(TrainingError, match="images are not those that the run began with"):
            train(tiny(data), tmp_path / "run", resume=True)
        path.write_bytes(kept)
    assert train(tiny(data, epochs=2), tmp_path / "run", resume=True).epochs == 2


def test_a_damaged_checkpoint_is_named(unbroken: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be loaded"):
        train(tiny(data), tmp_path / "run", resume=True)
    (tmp_path / "run" / SETTINGS).write_text("{}")
    with pytest.raises(TrainingError, match=r"settings\.json is not readable"):
        read_settings(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, "48x48"),
        ({"config": {"depth": 3}}, "no setting 'depth'.*sigma"),
        ({"config": {"alpha": 2.0}}, "alpha is 2.0"),
        ({"method": "no_such"}, "no_such.*algan_image"),
        ({"batch_size": 1}, "batch of 1 image"),
        *(
            ({"method": name, "config": {**TINY, **config}, "batch_size": 1}, f"{name} trains on batches of at least 2")
            for name, config in (("autoencoder", {}), ("bigan", {}), ("f_anogan", {"gan_epochs": 2}))
        ),
        ({"crop": (5, 5, 4, 9)}, "crop"),
    ],
)
def test_bad_settings_are_refused_before_work_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(PreparedImages, "read", read)
    with pytest.raises(TrainingError, match=message):
        train(tiny(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"autocast": "fp16"}, "autocast is 'fp16'.*auto, bf16 or off"),
        ({"augmentation": ("blur",)}, "'blur'.*horizontal_flip, vertical_flip, rotation"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        tiny(Path("data"), **changes)


def test_unknown_settings_in_a_file_are_refused() -> None:
    with pytest.raises(TrainingError, match="unknown training settings: colour"):
        TrainingSettings.from_dict({"data": "x", "colour": "rgb"})


# --- Divergence and arithmetic ---


def test_diverged_training_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite in epoch 1.*diverged.*learning rates"):
        train(tiny(data, config={**TINY, "lr_d": 1e38, "lr_g": 1e38}), tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


@pytest.mark.parametrize("what", ["loss", "scores"])
def test_divergence_keeps_the_checkpoint_from_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    step = AlganImage.training_step

    def poisoned(self: AlganImage, batch: Tensor, state: Any) -> dict[str, Tensor]:
        losses = step(self, batch, state)
        if state.epoch == 4 and state.batch_index == 3:
            if what == "loss":
                losses["loss_G"] = torch.tensor(float("nan"))
            else:  # the step in hand broke the network; its loss was computed before
                with torch.no_grad():
                    next(self.discriminator.parameters()).fill_(float("nan"))
        return losses

    monkeypatch.setattr(AlganImage, "training_step", poisoned)
    message = "loss_G is not finite in epoch 4, batch 4" if what == "loss" else "scores.*not finite in epoch 4"
    with pytest.raises(TrainingError, match=f"{message}.*the last checkpoint in .* is from before it"):
        train(tiny(data), tmp_path / "run")
    values = load_file(tmp_path / "run" / CHECKPOINT)
    assert values["epoch"] == 3
    assert all(torch.isfinite(value).all() for value in values["method"].values())


def test_bf16_is_used_when_asked_for_and_resumes(data: Path, unbroken: Path, tmp_path: Path) -> None:
    bf16 = tiny(data, autocast="bf16")
    train(bf16, tmp_path / "run")
    values = load_file(tmp_path / "run" / CHECKPOINT)
    assert values["autocast"] is True
    exact = load_file(unbroken / CHECKPOINT)
    rows = values["history"][0], exact["history"][0]
    assert rows[0]["loss_D"] != rows[1]["loss_D"]
    assert rows[0]["loss_D"] == pytest.approx(rows[1]["loss_D"], abs=0.1)
    assert all(v.dtype == e.dtype for v, e in zip(values["method"].values(), exact["method"].values(), strict=True))
    train(bf16, tmp_path / "broken", progress=interrupt_after(3, 1))
    train(bf16, tmp_path / "broken", resume=True)
    assert run_differences(tmp_path / "run", tmp_path / "broken") == []


def test_a_run_does_not_change_its_arithmetic_on_another_machine(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kizu.training, "has_bf16", lambda: False)
    train(tiny(data, autocast="auto", epochs=1), tmp_path / "run")
    assert load_file(tmp_path / "run" / CHECKPOINT)["autocast"] is False
    monkeypatch.setattr(kizu.training, "has_bf16", lambda: True)
    with pytest.raises(TrainingError, match="trained with autocast off"):
        train(tiny(data, autocast="auto"), tmp_path / "run", resume=True)


# --- What training reads is what the line computes ---


@pytest.mark.parametrize("crop", [None, (7, 3, 61, 50)])
@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_training_inputs_have_the_bits_of_prepare(
    data: Path, mono_data: Path, color: Any, crop: tuple[int, int, int, int] | None
) -> None:
    samples = open_dataset(data if color == "rgb" else mono_data).samples[:12]
    spec = PrepareSpec(size=(32, 48), color=color, crop=crop)
    expected = np.stack([prepare(sample.read(), spec) for sample in samples])
    images = PreparedImages.read(samples, spec, threads=2)
    assert images.inputs().tobytes() == expected.tobytes()
    indices = np.array([5, 0, 11, 5])
    assert images.batch(indices, PLAIN, np.random.default_rng(0)).tobytes() == expected[indices].tobytes()
    if color == "rgb":  # a camera that delivers BGR
        other = np.stack(
            [prepare(np.ascontiguousarray(s.read()[:, :, ::-1]), spec, pixel_format="BGR8") for s in samples]
        )
        assert images.inputs().tobytes() == other.tobytes()


@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_flips_are_flips_of_the_input(data: Path, mono_data: Path, color: Any) -> None:
    samples = open_dataset(data if color == "rgb" else mono_data).samples[:8]
    spec = PrepareSpec(size=(32, 32), color=color)
    inputs = np.stack([prepare(sample.read(), spec) for sample in samples])
    images = PreparedImages.read(samples, spec)
    axes: dict[str, list[tuple[int, ...]]] = {"horizontal_flip": [(), (2,)], "vertical_flip": [(), (1,)]}
    cases = [(Augmentation(**{name: True}), allowed) for name, allowed in axes.items()]
    cases.append((Augmentation(horizontal_flip=True, vertical_flip=True), [(), (1,), (2,), (1, 2)]))
    for augmentation, allowed in cases:
        batch = images.batch(np.repeat(np.arange(8), 8), augmentation, np.random.default_rng(1))
        seen = set()
        for i, got in enumerate(batch):
            matches = [axis for axis in allowed if np.flip(inputs[i // 8], axis).tobytes() == got.tobytes()]
            assert len(matches) == 1
            seen.add(matches[0])
        assert seen == set(allowed)


def test_the_batches_of_a_run_are_prepared_frames(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Tensor] = []
    step = AlganImage.training_step

    def watched(self: AlganImage, batch: Tensor, state: Any) -> dict[str, Tensor]:
        batches.append(batch.clone())
        return step(self, batch, state)

    monkeypatch.setattr(AlganImage, "training_step", watched)
    chosen = tiny(data, epochs=2, augmentation=())
    train(chosen, tmp_path / "run")
    dataset = chosen.dataset()
    spec = chosen.prepare(dataset)
    names = {prepare(s.read(), spec).tobytes(): s.name for s in chosen.divide(dataset).train}
    epochs = [
        [names[image.numpy().tobytes()] for batch in part for image in batch] for part in (batches[:4], batches[4:])
    ]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 16
    assert epochs[0] != epochs[1]  # each epoch has an order of its own


def test_augmentation_comes_before_pooling(data: Path) -> None:
    spec = PrepareSpec(size=(32, 32))
    images = PreparedImages.read(open_dataset(data).samples[:6], spec)
    everything = Augmentation(horizontal_flip=True, vertical_flip=True, rotation=True)
    batch = images.batch(np.arange(6), everything, np.random.default_rng(2))
    own = np.rint((batch[:, :3] + 1) * 127.5).astype(np.uint8)
    remade = np.stack([prepare(np.ascontiguousarray(np.moveaxis(image, 0, 2)), spec) for image in own])
    assert batch.tobytes() == remade.tobytes()
    pooled_first = images.inputs()[:, 3]
    assert not np.isin(batch[:, 3].sum((1, 2)), pooled_first.sum((1, 2))).any()  # it was augmented at all


def test_rotation_turns_about_the_centre_and_fills_with_the_border() -> None:
    rotation = Augmentation(rotation=True)
    for colour in ((10, 200, 90), (7,)):
        flat = np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (len(colour), 32, 32)).copy()
        assert np.array_equal(augment(flat, rotation, np.random.default_rng(0)), flat)
    y, x = np.mgrid[:64, :64] - 31.5
    ring = np.where(np.hypot(x, y) < 20, 128 + 100 * np.cos(np.hypot(x, y) / 4), 30)
    wedge = np.where((np.arctan2(y, x) > 0) & (np.arctan2(y, x) < 0.8) & (np.hypot(x, y) < 20), 200, 30)
    angles = set()
    for seed in range(8):
        turned = augment(ring.astype(np.uint8)[None], rotation, np.random.default_rng(seed))
        assert turned.shape == (1, 64, 64)
        assert turned.dtype == np.uint8
        assert np.abs(turned[0] - ring).mean() < 2
        moved = augment(wedge.astype(np.uint8)[None], rotation, np.random.default_rng(seed))[0] > 115
        area = (wedge > 115).sum()
        assert moved.sum() == pytest.approx(area, rel=0.08)
        angles.add(round(float(np.degrees(np.arctan2((y * moved).sum(), (x * moved).sum()))) / 5))
    assert len(angles) >= 6  # any angle, not quarter turns


@settings(deadline=None, max_examples=80)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 48),
    width=st.integers(8, 48),
    seed=st.integers(0, 2**32 - 1),
)
def test_cut_paste_changes_one_rectangle(channels: int, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(1, 255, (channels, height, width), np.uint8)
    source = image.copy()
    pasted = cut_paste(image, np.random.default_rng(seed))
    assert np.array_equal(image, source)
    assert pasted.shape == image.shape
    assert pasted.dtype == np.uint8
    assert not np.shares_memory(pasted, image)
    changed = (pasted != image).any(0)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if rows.size:
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        # up to 15 % of the area, rounded to whole pixels, 3:1 to 1:3
        assert h * w <= 0.15 * height * width + 0.5 * (h + w) + 0.25
        assert h <= (0.15 * height * width * 3) ** 0.5 + 0.5
        assert w <= (0.15 * height * width * 3) ** 0.5 + 0.5
    assert np.array_equal(pasted, cut_paste(image, np.random.default_rng(seed)))


def test_cut_paste_pastes_a_jittered_patch_of_the_image() -> None:
    y, x = np.mgrid[:64, :64]
    image = np.stack([x * 2 + 40, y * 2 + 40, x + y + 20]).astype(np.uint8)  # colour tells the place
    shares, jitters = [], []
    for seed in range(60):
        pasted = cut_paste(image, np.random.default_rng(seed))
        changed = (pasted != image).any(0)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        inside = pasted[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        shares.append(changed.mean())
        # Within the patch neighbouring columns differ by twice the jitter, as they do in the image by two.
        jitters.append(np.diff(inside[0], axis=1).mean() / 2)
    assert 0.01 < min(shares) < 0.05
    assert 0.1 < max(shares) <= 0.17
    assert 0.7 < min(jitters) < 0.85
    assert 1.15 < max(jitters) < 1.3


# --- The rules that pick the epoch ---


class Spread(torch.nn.Module):
    """A stand-in for a method: the wider an image's range, the more anomalous."""

    scoring = "logit"
    weight = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logit": -(x.amax((1, 2, 3)) - x.amin((1, 2, 3)))}


def noise(levels: list[int], seed: int = 0) -> Image8:
    rng = np.random.default_rng(seed)
    return np.stack([128 + rng.integers(-level, level + 1, (1, 32, 32)) for level in levels]).astype(np.uint8)


def test_the_values_of_the_rules() -> None:
    spec = PrepareSpec(size=(32, 32), color="mono")
    good, bad = noise([2, 10, 20, 30]), noise([5, 25, 60, 70, 80])
    validation = Validation(PreparedImages(good, spec), PreparedImages(bad, spec), np.random.default_rng(0))
    values = validation.values(Spread())  # type: ignore[arg-type]
    ranges = [np.ptp(images.reshape(len(images), -1).astype(int), axis=1) for images in (good, bad)]
    expected = roc_auc_score([0] * 4 + [1] * 5, np.concatenate(ranges))
    assert values["labelled"] == pytest.approx(expected)
    assert expected == 16 / 20
    # A patch of another brightness widens the range: better than chance, and four defects of each good image.
    assert 0.6 < values["good"] < 1
    assert len(validation.images) == 4 + 5 + 16
    assert validation.images.inputs(0, 4).tobytes() == PreparedImages(good, spec).inputs().tobytes()
    alone = Validation(PreparedImages(good, spec), PreparedImages(bad[:0], spec), np.random.default_rng(0))
    assert alone.values(Spread()) == {"good": values["good"]}  # type: ignore[arg-type]


def test_without_a_good_validation_image_training_does_not_start(data: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    (few / "good").mkdir(parents=True)
    dataset = open_dataset(data)
    for sample in [s for s in dataset.samples if s.good][:1]:
        assert sample.path is not None
        shutil.copy(sample.path, few / "good")
    chosen = tiny(few, config={**TINY, "alpha": 1.0})
    assert not chosen.divide(open_dataset(few)).validation
    with pytest.raises(TrainingError, match="no good image for validation"):
        train(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_good_images_alone_are_enough(mono_data: Path, tmp_path: Path) -> None:
    outcome = train(tiny(mono_data), tmp_path / "run")
    assert set(outcome.picked) == {"good", "last"}
    assert outcome.picked["last"].value == float(read_log(tmp_path / "run")[-1]["val_auroc_good"])
    assert not epoch_file(tmp_path / "run", "labelled").exists()
    assert load_file(epoch_file(tmp_path / "run", "good"))["epoch"] == outcome.picked["good"].epoch
    assert "val_auroc_labelled" not in read_log(tmp_path / "run")[0]


def test_a_rule_keeps_its_first_best_epoch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = iter([{"labelled": a, "good": b} for a, b in ((0.5, 0.9), (0.8, 0.7), (0.8, 0.9), (0.6, 0.95))])
    monkeypatch.setattr(Validation, "values", lambda self, method: next(series))
    outcome = train(tiny(data, validate_every=1), tmp_path / "run")
    picked = {"labelled": Picked(2, 0.8), "good": Picked(4, 0.95), "last": Picked(4, 0.6)}
    assert outcome == Outcome(tmp_path / "run", 4, True, picked)
    assert load_file(epoch_file(tmp_path / "run", "labelled"))["epoch"] == 2
    networks = {rule: load_file(epoch_file(tmp_path / "run", rule))["module"] for rule in RULES}
    assert differences(networks["labelled"], networks["good"])  # each rule keeps the network of its own epoch
    assert not differences(networks["good"], networks["last"])


def test_fewer_images_than_a_batch_make_one_batch(mono_data: Path, tmp_path: Path) -> None:
    outcome = train(tiny(mono_data, batch_size=500, epochs=2), tmp_path / "run")
    assert outcome.finished
    images = len(tiny(mono_data).divide(open_dataset(mono_data)).train)
    assert load_file(tmp_path / "run" / CHECKPOINT)["method"]["z_d"].shape == (1, images, 8)


def test_what_a_run_without_a_checkpoint_left_is_removed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for rule in RULES:
        epoch_file(run, rule).write_bytes(b"of another run")
    train(tiny(data, epochs=1, validate_every=2), run)  # its last epoch is validated and picked anew
    assert {rule for rule in RULES if load_file(epoch_file(run, rule))["epoch"] == 1} == set(RULES)
    (run / CHECKPOINT).unlink()
    run_folder.claim(run, tiny(data), resume=False)
    assert not [rule for rule in RULES if epoch_file(run, rule).exists()]


def test_resuming_to_fewer_epochs_is_refused(data: Path, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    with pytest.raises(TrainingError, match="has 4 epochs already"):
        train(tiny(data, epochs=2), tmp_path / "run", resume=True)
    assert run_differences(unbroken, tmp_path / "run") == []


def test_a_checkpoint_is_written_between_validations(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[tuple[int, int]] = []

    def see(epoch: int, batch: int, values: Any) -> None:
        path = tmp_path / "run" / CHECKPOINT
        if path.exists():
            held = load_file(path)
            places.append((held["epoch"], held["batch_index"]))

    # A batch takes so long that one epoch stays below the 300 s between checkpoints and two do not.
    settings = tiny(data, epochs=4, validate_every=100)
    batches = len(settings.divide(settings.dataset()).train) // settings.batch_size
    clock = itertools.count(0.0, 250 / (batches + 2))
    monkeypatch.setattr("kizu.training.time", SimpleNamespace(monotonic=lambda: next(clock)))
    train(settings, tmp_path / "run", progress=Watch(see))
    assert places
    assert places[0][0] in (2, 3)


@pytest.mark.parametrize("name", ["autoencoder", "anogan", "bigan", "f_anogan"])
def test_a_method_that_reconstructs_refuses_pooled_channels(name: str) -> None:
    method = get(name)
    with pytest.raises(TrainingError, match="pool=False"):
        method.create(PrepareSpec(size=(32, 32)), method.config_type())
