"""Runs of trainings: which settings they have, where they lie, and how they are brought to their end."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kizu.errors import TrainingError
from kizu.method import get
from kizu.settings import SETTINGS, TrainingSettings, preset, read_settings
from reproduction import weights
from reproduction.experiments import Changes, Experiment, settings_of_data

TOOLS = Path(__file__).resolve().parents[1]
FIELDS = tuple(item.name for item in fields(TrainingSettings))
LOG_FILE, EVALUATION, SCORES = "training.log", "evaluation.json", "scores.npz"
INTERRUPTED = 130  # a worker's exit code


@dataclass(frozen=True, eq=False)
class Run:
    """One training. Runs of the same settings and stops are one run, whatever experiments want it.

    Attributes:
        settings: all that decides it.
        stops: epochs at which a checkpoint is kept.
    """

    settings: TrainingSettings
    stops: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """Of all that decides the run."""
        return _digest(self.settings, self.stops)

    @functools.cached_property
    def recipe(self) -> str:
        """Of all but the seed."""
        return _digest(self.settings, self.stops, "seed")

    def request(self) -> str:
        """What a worker is asked for."""
        return json.dumps({"settings": self.settings.as_dict(), "stops": self.stops, "digest": self.digest})

    def folder(self, output: Path) -> Path:
        """Where the run lies."""
        name = re.sub(r"[^A-Za-z0-9_]+", "-", Path(self.settings.data).name)
        return output / f"{name}-{self.digest}"

    def checkpoint(self, output: Path, epoch: int) -> Path:
        """The checkpoint that was kept at a stop."""
        return stop_file(self.folder(output), epoch)

    def evaluation(self, output: Path) -> dict[str, Any] | None:
        """What the finished run gave; None if it is not finished.

        With the scoring and lambda chosen on validation images, where its method has them.
        """
        try:
            values: dict[str, Any] = json.loads((self.folder(output) / EVALUATION).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if values.get("digest") != self.digest:
            return None
        with np.load(self.folder(output) / SCORES) as arrays:
            choice = weights.choose(arrays)
        if choice is not None:
            values |= {"scoring": choice.scoring, "weight": choice.weight}
            values |= {"validation_chosen": choice.validation, "test_chosen": choice.test}
        return values


def stop_file(folder: Path, epoch: int) -> Path:
    """The copy of a run's checkpoint at the end of an epoch."""
    return folder / f"checkpoint-{epoch:04}.pt"


def _digest(settings: TrainingSettings, stops: tuple[int, ...], *without: str) -> str:
    values = {name: value for name, value in settings.as_dict().items() if name not in ("threads", *without)}
    return hashlib.sha256(json.dumps([values, stops], sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Planned:
    """A row that an experiment wants, and the run that gives it."""

    experiment: str
    data: str
    variant: str
    seed: int
    changes: Mapping[str, Any]
    run: Run


def flat_preset(method: str, name: str) -> dict[str, Any]:
    """A method's preset as flat settings, all of the method's options among them."""
    values = preset(method, name)
    config = {item.name: item.default for item in fields(get(method).config_type)}
    flat = {name: value for name, value in values.items() if name not in ("method", "config")}
    return {**config, **flat, **values.get("config", {})}


def settings_for(experiment: Experiment, data: str, seed: int, changes: Changes) -> TrainingSettings:
    """Lay the settings over each other; raises TrainingError."""
    method = changes.get("method", experiment.method)
    config_type = get(method).config_type
    # A name that both know, like "seed", is meant as the training's.
    defaults = {item.name: item.default for item in fields(config_type) if item.name not in FIELDS}
    base = flat_preset(method, changes.get("preset", experiment.preset))
    values = {
        # The preset's options of the method that are the defaults do not count as the preset's.
        **settings_of_data(data),
        **{name: value for name, value in base.items() if name not in defaults or value != defaults[name]},
        **experiment.changes,
        **experiment.for_data.get(data, {}),
        **{name: value for name, value in changes.items() if name != "preset"},
        "method": method,
        "seed": seed,
        "threads": 1,
    }
    unknown = [name for name in values if name not in FIELDS and name not in defaults]
    if unknown:
        raise TrainingError(
            f"there is no setting {', '.join(map(repr, unknown))}; there are {', '.join((*FIELDS, *defaults))}"
        )
    # Options that are the defaults are left out: whoever spells them out trains the same.
    config = {name: values[name] for name in defaults if name in values and values[name] != defaults[name]}
    config_type(**config)  # raises what training would
    return TrainingSettings.from_dict(
        {**{name: value for name, value in values.items() if name in FIELDS}, "config": config}
    )


def plan(
    experiment: Experiment,
    *,
    seeds: Iterable[int],
    data: Iterable[str] = (),
    variants: Iterable[str] = (),
    given: Changes | None = None,
) -> list[Planned]:
    """All rows of an experiment, those of the first seed first; raises TrainingError.

    Args:
        experiment: the experiment.
        seeds: of the trainings.
        data: instead of the experiment's own.
        variants: only these.
        given: settings that override all others. An option that only some variants' methods have is for these.
    """
    known = experiment.labelled_variants()
    unknown = [label for label in variants if label not in known]
    if unknown:
        raise TrainingError(
            f"{experiment.name} has no variant {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, known))}"
        )
    chosen = {label: changes for label, changes in known.items() if not variants or label in set(variants)}
    given = given or {}
    options = {label: _options({"method": experiment.method, **own, **given}) for label, own in chosen.items()}
    of_some = set().union(*options.values())
    rows = []
    for seed in seeds:
        for name in tuple(data) or experiment.data:
            for label, own in chosen.items():
                meant = {key: value for key, value in given.items() if key in options[label] or key not in of_some}
                changes = {**own, **meant}
                settings = settings_for(experiment, name, seed, changes)
                changes = {
                    "preset": experiment.preset,
                    **experiment.changes,
                    **experiment.for_data.get(name, {}),
                    **changes,
                }
                run = Run(settings, tuple(stop for stop in experiment.stops if stop < settings.epochs))
                rows.append(Planned(experiment.name, name, label, seed, changes, run))
    return rows


def _options(changes: Changes) -> set[str]:
    """Names of the settings that a variant of this method can have."""
    return {*FIELDS, *(item.name for item in fields(get(changes["method"]).config_type))}


def check_folder(run: Run, output: Path) -> None:
    """Raise TrainingError if a run's folder holds something else."""
    folder = run.folder(output)
    if not (folder / SETTINGS).exists():
        return
    held = read_settings(folder)
    names = [name for name in FIELDS if name not in ("epochs", "threads")]
    changed = [name for name in names if getattr(held, name) != getattr(run.settings, name)]
    if changed or held.epochs > run.settings.epochs:
        raise TrainingError(
            f"{folder} holds a run of other settings ({', '.join(changed) or 'epochs'}); remove that folder, or name "
            "another --output"
        )


class Workers:
    """Trains runs in processes of their own, so many at a time."""

    def __init__(self, output: Path, jobs: int) -> None:
        self.output, self.jobs = output, jobs
        self._processes: dict[Run, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def bring(self, runs: Iterable[Run], done: Callable[[Run, str | None], None]) -> None:
        """Finish the runs; ``done(run, error)`` is called after each, in this thread.

        On KeyboardInterrupt the trainings stop first; they keep what they did.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._work, run): run for run in runs}
            try:
                waiting = set(futures)
                while waiting:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in sorted(finished, key=list(futures).index):
                        done(futures[future], future.result())
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes.values():
                if process.poll() is None:
                    process.terminate()

    def _work(self, run: Run) -> str | None:
        """Train one run; what went wrong, or None."""
        folder = run.folder(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "reproduction.worker", str(folder), run.request()]
        path = os.pathsep.join([str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        with (folder / LOG_FILE).open("ab") as log:
            with self._lock:
                if self._stopped:
                    return "interrupted"
                # A group of its own: Ctrl-C in the terminal reaches it once, through _stop.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
                self._processes[run] = process
            code = process.wait()
        if code == 0:
            return None
        if code == INTERRUPTED:
            return "interrupted"
        lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {code}: {lines[-1] if lines else 'it said nothing'}; see {folder / LOG_FILE}"
