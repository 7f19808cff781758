"""Reproduces the experiments of the papers at a size that two processor cores can do; see docs/reproduction.

    .venv/bin/python tools/reproduce.py EXPERIMENT...

Each training is a run of its own below --output and goes on where it stopped, also after a kill. Results go to
--results: a CSV file with a row a run, a summary and figures for each experiment. --list names the experiments.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kizu.errors import KizuError
from reproduction import present, results, search
from reproduction.experiments import EXPERIMENTS, Experiment
from reproduction.page import Context
from reproduction.runs import Planned, Run, Workers, check_folder, plan

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--list", action="store_true", help="name the experiments and leave")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds (an experiment's own: 0 1 2)")
    parser.add_argument("--data", nargs="+", default=(), metavar="DATA", help="instead of the experiment's own data")
    parser.add_argument("--variants", nargs="+", default=(), metavar="LABEL", help="only these variants")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="trainings at a time (2)")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "reproduce", help="the runs (runs/reproduce)")
    parser.add_argument("--results", type=Path, help="the results (docs/reproduction; with --set: OUTPUT/results)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=(),
        type=_assignment,
        metavar="NAME=VALUE",
        help="settings of all trainings, for quick tries: epochs=2 limit=100",
    )
    options = parser.parse_args(arguments)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    if options.list:
        for experiment in EXPERIMENTS.values():
            console.print(f"{experiment.name:16} {experiment.title}", soft_wrap=True)
        return 0
    unknown = [name for name in options.experiments if name not in EXPERIMENTS]
    if unknown or not options.experiments:
        what = f"no experiment is called {', '.join(unknown)}" if unknown else "name at least one experiment"
        parser.error(f"{what}; there are: {', '.join(EXPERIMENTS)}")
    fixed = [name for name in options.experiments if not EXPERIMENTS[name].data]
    if fixed and (options.set or options.data or options.variants):
        parser.error(f"{', '.join(fixed)} has no trainings that --set, --data or --variants could change")
    if options.jobs < 1 or any(seed < 0 for seed in options.seeds or ()):
        parser.error("--jobs must be at least 1 and --seeds at least 0")
    # Tries do not count as results of the experiments.
    folder = options.results or (options.output / "results" if options.set else ROOT / "docs" / "reproduction")
    chosen = [EXPERIMENTS[name] for name in dict.fromkeys(options.experiments)]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _reproduce(chosen, options, folder, console)
    except KizuError as error:
        console.print(f"tools/reproduce.py: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _reproduce(chosen: Sequence[Experiment], options: argparse.Namespace, folder: Path, console: Console) -> int:
    asked: dict[str, Any] = {"data": options.data, "variants": options.variants, "given": dict(options.set)}

    def seeds(experiment: Experiment) -> Sequence[int]:
        return experiment.seeds if options.seeds is None else options.seeds

    # Also of experiments with a search, whose plan is another after it, so that mistakes are found before any work.
    plans = {each.name: plan(each, seeds=seeds(each), **asked) for each in chosen}
    searches = {each.name: search.plan_search(each, **asked) for each in chosen if each.search}
    first = [row for each in chosen for row in searches.get(each.name, plans[each.name])]
    failed = _bring(first, options, folder, console)
    for experiment in chosen:
        if experiment.search:
            digests = {row.run.digest for row in searches[experiment.name]}
            rows = results.read_rows(folder / f"{experiment.name}-search.csv")
            found = search.best(experiment, [row for row in rows if row["digest"] in digests], options.data)
            plans[experiment.name] = search.plan_found(experiment, found, seeds=seeds(experiment), **asked)
    failed |= _bring([row for name in searches for row in plans[name]], options, folder, console)
    torch.set_num_threads(1)
    for experiment in chosen:
        whole = [row for row in plans[experiment.name] if row.run not in failed]
        if experiment.data and not whole:
            continue  # all have failed: what earlier calls have written stays
        _present(Context(experiment, whole, seeds(experiment), options.output, folder), console)
    return 1 if failed else 0


def _bring(wanted: Sequence[Planned], options: argparse.Namespace, folder: Path, console: Console) -> set[Run]:
    """Finish the runs of rows and put the rows into their CSV files; returns the runs that have failed."""
    rows: dict[Run, list[Planned]] = {}
    for planned in sorted(wanted, key=lambda row: row.seed):
        rows.setdefault(planned.run, []).append(planned)
    for run in rows:
        check_folder(run, options.output)
    failed: set[Run] = set()
    left = len(rows)

    def done(run: Run, error: str | None) -> None:
        nonlocal left
        left -= 1
        evaluation = run.evaluation(options.output)
        if error is not None or evaluation is None:
            failed.add(run)
            first = rows[run][0]
            console.print(f"FAILED {first.data}, {first.variant}, seed {first.seed}: {error}")
            return
        for planned in rows[run]:
            row = results.row_of(planned, evaluation)
            path = folder / f"{planned.experiment}.csv"
            results.merge_rows(path, [row], lock=options.output / f"{planned.experiment}.lock")
            console.print(f"{planned.experiment}: {_brief(row)}; {left} runs left", soft_wrap=True)

    finished = [run for run in rows if run.evaluation(options.output) is not None]
    for run in finished:
        done(run, None)
    Workers(options.output, options.jobs).bring([run for run in rows if run not in set(finished)], done)
    return failed


def _brief(row: results.Row) -> str:
    numbers = [f"{rule} {row[f'test_{rule}']:.3f}" for rule in results.RULES if f"test_{rule}" in row]
    if "test_chosen" in row:
        numbers.append(f"with lambda {row['weight']} {row['test_chosen']:.3f}")
    drop = f", validation drop {row['validation_drop']:.3f}" if "validation_drop" in row else ""
    return f"{row['data']}, {row['variant']}, seed {row['seed']}: {' '.join(numbers)}{drop}, {row['seconds']:.0f} s"


def _present(context: Context, console: Console) -> None:
    """Write and show the page of an experiment."""
    experiment = context.experiment
    tables, files = present.write_page(context)
    for shown in tables:
        table = Table(title=f"{experiment.name}: {experiment.title}")
        for name in shown.head:
            table.add_column(name)
        for line in shown.body:
            table.add_row(*line)
        console.print(table)
    console.print(f"{experiment.name}: {', '.join(str(path) for path in files)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
