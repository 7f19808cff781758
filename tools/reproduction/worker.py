"""Trains one run to its end and evaluates it: ``python -m reproduction.worker FOLDER REQUEST``, REQUEST being JSON."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from kizu import run_folder
from kizu.data import Split
from kizu.data.prepared import PreparedImages
from kizu.errors import KizuError
from kizu.method import Method
from kizu.metrics import auroc
from kizu.progress import RichProgress
from kizu.settings import CHECKPOINT, RULES, TrainingSettings, epoch_file
from kizu.training import train
from reproduction import provenance, weights
from reproduction.runs import EVALUATION, INTERRUPTED, SCORES, stop_file

PROVENANCE = "provenance.json"


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    folder, request = Path(arguments[0]), json.loads(arguments[1])
    # A terminated training writes its checkpoint, as an interrupted one does. Programs that a shell starts in the
    # background ignore interrupts, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    settings = TrainingSettings.from_dict(request["settings"])
    with (folder / "lock").open("w") as lock:
        # Another command may be at the same run, or have left its worker behind: then that one's work counts.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not _train(settings, folder, request["stops"]):
                return INTERRUPTED
            torch.set_num_threads(settings.threads or 1)
            evaluation = {"digest": request["digest"], **evaluate(settings, folder), **_provenance(folder)}
        except KizuError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return INTERRUPTED
        run_folder.replace_file(folder / EVALUATION, json.dumps(evaluation, indent=1).encode())
    return 0


def _train(settings: TrainingSettings, folder: Path, stops: Sequence[int]) -> bool:
    """Train, keeping checkpoints; whether it came to its end."""
    _record_provenance(folder)
    progress = RichProgress(Console(width=200))
    for epochs in (*sorted(stops), settings.epochs):
        kept = stop_file(folder, epochs)
        if epochs in stops and kept.exists():
            continue
        resume = run_folder.holds_run(folder)
        if not train(replace(settings, epochs=epochs), folder, resume=resume, progress=progress).finished:
            return False
        if epochs in stops:
            run_folder.replace_file(kept, (folder / CHECKPOINT).read_bytes())
    return True


def evaluate(settings: TrainingSettings, folder: Path) -> dict[str, Any]:
    """The figures of a finished run; the scores of the test images are kept beside them.

    So are the parts of the scores of methods that weigh them, as ``weights.choose`` takes them.
    """
    dataset = settings.dataset()
    split, spec = settings.divide(dataset), settings.prepare(dataset)
    method, *others = weights.methods(settings, spec)
    images = PreparedImages.read(split.test, spec)
    ends = weights.ends(method.scoring)
    labels = np.array([not sample.good for sample in split.test])
    seen = seen_in_training(split)
    values: dict[str, Any] = {}
    scores: dict[str, NDArray[np.float32]] = {}
    parts: dict[str, NDArray[Any]] = {}
    of_epoch: dict[int, NDArray[np.float32]] = {}
    for rule in RULES:
        if not epoch_file(folder, rule).exists():
            continue
        picked = run_folder.load_file(epoch_file(folder, rule))
        if picked["epoch"] not in of_epoch:
            of_epoch[picked["epoch"]] = _scores(method, picked, images, (method.weight, *ends))
        scores[rule], *of_parts = of_epoch[picked["epoch"]]
        if rule == "labelled" and ends:
            validation = PreparedImages.read(split.validation, spec)
            parts["validation_labels"] = np.array([not sample.good for sample in split.validation])
            parts[f"test_{method.scoring}"] = np.array(of_parts)
            parts |= {f"test_{each.scoring}": _scores(each, picked, images) for each in others}
            parts |= {f"validation_{each.scoring}": _scores(each, picked, validation) for each in (method, *others)}
        values[f"epoch_{rule}"] = picked["epoch"]
        values[f"test_{rule}"] = auroc(scores[rule], labels)
        # Of tiles and the like that were photographed more than once: with the good images of seen parts, of others.
        for name, kept in (("seen", seen | labels), ("unseen", ~seen)):
            if seen.any() and kept[~labels].any():
                values[f"test_{rule}_{name}"] = auroc(scores[rule][kept], labels[kept])
    kinds = np.array([sample.kind for sample in split.test])
    arrays: dict[str, Any] = {**{f"score_{rule}": of_rule for rule, of_rule in scores.items()}, **parts}
    np.savez_compressed(folder / SCORES, labels=labels, seen=seen, kinds=kinds, **arrays)
    return {**values, **_of_log(folder), **_counts(split, seen)}


def _scores(
    method: Method, picked: Mapping[str, Any], images: PreparedImages, of_weights: Sequence[float] = ()
) -> NDArray[np.float32]:
    """Scores (weights, N) of the networks of an epoch; without lambdas the parts of the method's rule."""
    module = method.export_module()
    module.load_state_dict(picked["module"])
    of_weights = of_weights or weights.ends(method.scoring)
    return weights.score_by_weight(module, images, scoring_rule=method.scoring, weights=of_weights)


def seen_in_training(split: Split) -> NDArray[np.bool_]:
    """Which of the test images are good ones of a part that other training images show."""
    trained = {sample.group for sample in split.train}
    return np.array([sample.good and sample.group in trained for sample in split.test])


def _of_log(folder: Path) -> dict[str, float]:
    """The validation curve's best and last value, and the seconds of all epochs."""
    rows = run_folder.load_file(folder / CHECKPOINT)["history"]
    curve = [row["val_auroc_labelled"] for row in rows if "val_auroc_labelled" in row]
    found = {"validation_best": max(curve), "validation_last": curve[-1]} if curve else {}
    return {"epochs": len(rows), "seconds": round(sum(row["seconds"] for row in rows), 1), **found}


def _counts(split: Split, seen: NDArray[np.bool_]) -> dict[str, int]:
    good = Counter(sample.good for sample in split.test)
    return {
        "train_images": len(split.train),
        "test_good_images": good[True],
        "test_anomalous_images": good[False],
        "test_seen_images": int(seen.sum()),
    }


def _record_provenance(folder: Path) -> None:
    """Note which sources train this run; those that only found it finished do not count."""
    path = folder / PROVENANCE
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if held and (folder / EVALUATION).exists():
        return
    stamp = provenance.stamp()
    again = run_folder.holds_run(folder)  # so that the run goes on from what earlier sources trained
    values = {
        **stamp,
        "revisions": list(dict.fromkeys([*(held.get("revisions", ()) if again else ()), stamp.pop("revision")])),
        "dirty": stamp["dirty"] or (again and held.get("dirty", False)),
    }
    run_folder.replace_file(path, json.dumps(values).encode())


def _provenance(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    values["revision"] = "+".join(values.pop("revisions"))
    return {**values, "date": provenance.now()}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
