"""The command line: ``kizu train | export | threshold | build | score | evaluate | engines | data | info``.

Exit codes: 0 done; 1 an error, said on stderr; 2 wrong usage; 3 some files could not be scored; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import kizu
import kizu.data
import kizu.engine
from kizu import _core, compiled, engine_file, scoring
from kizu import bundle as bundles
from kizu.errors import DataError, EngineError, KizuError, TrainingError
from kizu.settings import PRESET, RULES, TrainingSettings, read_settings

if TYPE_CHECKING:
    from kizu.bundle import Manifest, Threshold
    from kizu.data import Sample
    from kizu.detector import Detector

EXIT_ERROR, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 3, 130
_MOST_FRAMES = 1024
_PRECISION = "auto (fastest that proves itself), fp32, bf16, fp16, int8, int8+fp16"
# A pipe or file has no width to fit into.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        return code
    except KizuError as error:
        err.print(f"[bold red]kizu: [/]{escape(str(error))}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        err.print("kizu: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        return EXIT_ERROR
    except OSError as error:
        err.print(f"[bold red]kizu: [/]{escape(str(error))}")
        return EXIT_ERROR


def train(options: argparse.Namespace) -> int:
    """``kizu train``."""
    _require_training()
    # Threads of torch that wait by spinning stand in each other's way once anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from kizu.progress import RichProgress
    from kizu.training import train as run

    names = {item.name for item in fields(TrainingSettings)} - {"config"}
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.set:
        given["config"] = _settings(options.set)
    for name in ("crop", "augmentation", "mean", "std"):
        if name in given:
            given[name] = tuple(value for value in given[name] if value != "none")
    if "data" in given and Path(given["data"]).exists() and given["data"].partition(":")[0] not in _names():
        given["data"] = str(Path(given["data"]).resolve())  # the same images, wherever the run is exported from
    held = read_settings(options.output) if options.resume else None
    if held is not None and options.preset is None:
        given["config"] = {**held.config, **given.get("config", {})}
        settings = replace(held, **given)
    elif held is not None or "data" in given:
        settings = TrainingSettings.from_preset(options.preset, **{"data": held.data if held else "", **given})
    else:
        raise TrainingError("name the data: a folder of good images, or a data set that kizu data list shows")
    outcome = run(settings, options.output, resume=options.resume, progress=RichProgress(out))
    for rule, picked in outcome.picked.items():
        out.print(f"rule {rule}: epoch {picked.epoch}, validation AUROC {picked.value:.3f}")
    if not outcome.finished:
        err.print(
            f"interrupted after {outcome.epochs} epochs; go on with: kizu train --resume --output "
            f"{escape(str(options.output))}"
        )
        return EXIT_INTERRUPTED
    out.print(f"{outcome.epochs} epochs done; next: kizu export {escape(str(options.output))} --output part.kizu")
    return 0


def export(options: argparse.Namespace) -> int:
    """``kizu export``."""
    _require_training()
    from kizu.export import export as run

    done = run(
        options.run,
        options.output,
        rule=options.epoch_rule,
        false_reject=options.false_reject,
        manual=options.value,
        note=lambda text: err.print(text, style="dim"),
    )
    table = Table("precision", "off by at most", "allowed", "", box=None)
    for variant, deviation in done.deviations.items():
        table.add_row(
            variant,
            f"{deviation:.2g} sd",
            f"{done.tolerances[bundles.precision_of(variant)]:g} sd",
            "left out" if variant in done.left_out else "ok",
        )
    out.print(table)
    out.print("sd: standard deviation of the good calibration scores; compared with torch on golden frames")
    for variant, reason in done.left_out.items():
        out.print(f"{variant} is left out: {escape(reason)}")
    out.print(f"wrote {escape(str(done.path))} ({done.path.stat().st_size / 1e6:.1f} MB)")
    return 0


def threshold(options: argparse.Namespace) -> int:
    """``kizu threshold``."""
    from kizu import calibrate

    bundle = bundles.Bundle.open(options.bundle)
    left_out: dict[str, str] = {}
    if options.labelled is not None and not (options.best_f1 or options.recall is not None):
        raise DataError("say what the labelled images are for: --best-f1, or --recall SHARE")
    if options.false_reject is not None:
        new = calibrate.conformal(bundle.manifest.calibration.scores, options.false_reject)
    elif options.value is not None:
        new = calibrate.manual(list(bundle.manifest.calibration.scores), options.value)
    elif options.best_f1 or options.recall is not None:
        if options.labelled is None:
            raise DataError("name the labelled images: --labelled FOLDER, with good/ and bad/ inside")
        found = calibrate.labelled(
            options.bundle,
            _unseen(kizu.data.open_dataset(options.labelled, color=bundle.manifest.prepare.color).samples, bundle),
            rule="best-f1" if options.best_f1 else "recall",
            recall=options.recall,
            engine=options.engine,
            threads=options.threads,
        )
        new, left_out = found.threshold, dict(found.left_out)
    else:
        _print_threshold(bundle.manifest.threshold)
        return 0
    bundles.set_threshold(options.bundle, new)
    _print_threshold(new)
    for precision, reason in left_out.items():
        err.print(f"no threshold for {precision}: {escape(reason)}")
    return 0


def build(options: argparse.Namespace) -> int:
    """``kizu build``."""
    bundle = bundles.Bundle.open(options.bundle)
    low, best, high = options.batch
    if low != 1 or not low <= best <= high <= _MOST_FRAMES:
        raise EngineError(
            f"--batch is {low}:{best}:{high}, but must be 1:OPT:MAX with 1 <= OPT <= MAX <= {_MOST_FRAMES}: a detector "
            "scores single frames, too"
        )
    if options.compute_capability is None and options.output is None:
        return _build_here(bundle, options)
    return _build_elsewhere(bundle, options)


def _build_here(bundle: bundles.Bundle, options: argparse.Namespace) -> int:
    """Compile for this machine into the cache, and print what was proved."""
    engine = kizu.engine.choose(options.engine)
    manifest, cache = bundle.manifest, compiled.default_cache()
    entry = compiled.compiled(
        bundle,
        engine,
        options.precision,
        _build_options(bundle, engine, options),
        cache,
        among=manifest.threshold.values,
    )
    proof = entry.proof
    table = Table(show_header=False, box=None)
    table.add_row("[bold]engine[/]", f"{engine.name} {engine.version()}")
    table.add_row("[bold]machine[/]", escape(engine.machine()))
    table.add_row("[bold]precision[/]", proof.precision)
    table.add_row(
        "[bold]golden frames[/]",
        f"off by at most {proof.deviation:.2g} sd, {proof.tolerance:g} sd are allowed (sd: standard deviation of the "
        "good calibration scores)",
    )
    table.add_row("[bold]a frame takes[/]", f"{proof.seconds * 1e3:.2f} ms")
    table.add_row("[bold]kept in[/]", escape(str(entry.built)))
    out.print(table)
    return 0


def _build_elsewhere(bundle: bundles.Bundle, options: argparse.Namespace) -> int:
    """Write an engine file for another machine, and print what it says of itself."""
    if options.engine == "auto":
        raise EngineError("name the engine to compile with for another machine, e.g. --engine tensorrt-rtx")
    known = kizu.engine.engines()
    engine = known.get(options.engine) or kizu.engine.choose(options.engine)  # which raises
    if not issubclass(engine, kizu.engine.CudaEngine):
        raise EngineError(
            f"{engine.name} compiles on the machine that it runs on, and keeps what it compiled in the cache; leave "
            "--compute-capability and --output out"
        )
    if bundle.manifest.iteration is not None:
        raise EngineError(f"there is no engine to write for another machine: {compiled.NO_ENGINE_FILE}")
    can, precision = compiled.precisions(bundle, engine), options.precision
    if precision not in can:
        raise EngineError(
            f"--precision is {precision!r}, but an engine for another machine has one of {', '.join(can)}; which is "
            "fastest shows only there"
        )
    path = options.output
    if path is None:
        target = options.compute_capability.replace(".", "")
        path = bundle.path.with_name(f"{bundle.path.stem}.{precision}.sm{target}.engine")
    wanted = replace(_build_options(bundle, engine, options), precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        variant = engine.variant(precision, bundle.manifest.graphs)
        graph = Path(folder, f"{variant}.onnx")
        graph.write_bytes(bundle.graph(variant))
        engine.build(graph, path, wanted)
    header, _ = engine_file.read(path)
    table = Table(show_header=False, box=None)
    table.add_row("[bold]engine[/]", f"{header.engine} {header.version}")
    table.add_row("[bold]precision[/]", header.precision)
    table.add_row("[bold]compute capability[/]", header.compute_capability)
    table.add_row("[bold]inputs at once[/]", "{} to {}, fastest at {}".format(*(header.batch[i] for i in (0, 2, 1))))
    for title, tensors in (("reads", header.inputs), ("writes", header.outputs)):
        shapes = (f"{t.name} {t.dtype} ({', '.join('N' if n is None else str(n) for n in t.shape)})" for t in tensors)
        table.add_row(f"[bold]{title}[/]", escape("; ".join(shapes)))
    table.add_row("[bold]size[/]", f"{path.stat().st_size / 1e6:.1f} MB")
    out.print(table)
    out.print(
        f"wrote {escape(str(path))}; on a machine with such a GPU and {header.engine} {header.version}, where it is "
        f"proved when it is first loaded:\n  kizu score {escape(bundle.path.name)} FRAMES --engine-file "
        f"{escape(path.name)}"
    )
    return 0


def _build_options(
    bundle: bundles.Bundle, engine: type[kizu.engine.Engine], options: argparse.Namespace
) -> kizu.engine.BuildOptions:
    return compiled.options_for(
        engine,
        bundle.manifest.prepare,
        threads=options.threads or kizu.engine.default_threads(),
        batch=options.batch,
        compute_capability=options.compute_capability,
        workspace=options.workspace,
        timing_cache=None if options.timing_cache is None else str(options.timing_cache),
    )


def _batch(text: str) -> tuple[int, int, int]:
    """``MIN:OPT:MAX``, or the largest alone."""
    try:
        numbers = [int(n) for n in text.split(":")]
        low, best, high = (1, 1, *numbers) if len(numbers) == 1 else numbers
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:OPT:MAX, e.g. 1:1:16, or a number") from error
    return low, best, high


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def score(options: argparse.Namespace) -> int:
    """``kizu score``."""
    from kizu.data import read_image

    failed = anomalous = total = 0
    with _load(options) as detector:
        spec = detector.bundle.manifest.prepare
        if not options.json:
            out.print(f"{'score':>10}  {'threshold':>10}  {'verdict':<9}  {'ms':>7}  file", style="bold")
        started = perf_counter()
        for path in _files(options.paths):
            try:
                if isinstance(path, DataError):
                    raise path
                result = detector.score(read_image(path, spec.color, convert=options.convert))
            except (KizuError, OSError) as error:
                failed += 1
                if options.json:
                    print(json.dumps({"file": None if error is path else str(path), "error": str(error)}), flush=True)
                else:
                    err.print(f"[red]not scored:[/] {escape(str(error))}")
                continue
            total += 1
            anomalous += result.anomalous
            if options.json:
                row = {
                    "file": str(path),
                    "score": result.score,
                    "threshold": result.threshold,
                    "anomalous": result.anomalous,
                    "seconds": dict(zip(result.timing._fields, result.timing, strict=True)),
                }
                print(json.dumps(row), flush=True)
            else:
                verdict = "[bold red]anomalous[/]" if result.anomalous else "[green]good[/]     "
                out.print(
                    f"{result.score:10.4f}  {result.threshold:10.4f}  {verdict}  {sum(result.timing) * 1e3:7.2f}  "
                    f"{escape(str(path))}"
                )
        if not options.json:
            seconds = perf_counter() - started
            out.print(
                f"{total} scored, {anomalous} anomalous, {failed} not scored, in {seconds:.1f} s "
                f"({detector.engine} {detector.precision}, {detector.threads} threads)"
            )
    if failed:
        return EXIT_SOME_FAILED
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """``kizu evaluate``."""
    from kizu.evaluate import evaluate as run
    from kizu.report import render_report, require_matplotlib, write_report
    from kizu.settings import TrainingSettings

    if options.report is not None:
        require_matplotlib()  # before the images are scored, not after

    with _load(options) as detector:
        manifest = detector.bundle.manifest
        if options.data is None:
            settings = TrainingSettings.from_dict(manifest.training.get("settings", {}))
            samples: Sequence[Sample] = settings.divide(settings.dataset()).test
            data = f"test images of {settings.data}"
        else:
            dataset = kizu.data.open_dataset(options.data, color=manifest.prepare.color, convert=options.convert)
            samples, data = dataset.samples, f"images of {dataset.name}"
        samples = _unseen(samples, detector.bundle)
        found = run(detector, samples)
        if options.json:
            print(json.dumps(found.as_dict(), indent=1))
        else:
            _print_evaluation(found, data, detector)
        if options.report is not None:
            training = manifest.training
            page = render_report(
                found,
                bundle_info=_about(manifest) | {"evaluated_on": f"{data} ({len(samples)})"},
                runtime_info={
                    "machine": kizu.engine.processor(),
                    "engine": f"{detector.engine} {kizu.engine.choose(detector.engine).version()}",
                    "precision": detector.precision,
                    "threads": detector.threads,
                },
                history=training.get("history"),
                chosen_epoch=training.get("epoch"),
                samples=samples,
                title=Path(options.bundle).stem,
            )
            write_report(page, options.report)
            err.print(f"report: {escape(str(options.report))}")
    return 0


def engines(options: argparse.Namespace) -> int:
    """``kizu engines``."""
    table = Table("engine", "version", "precisions on this machine", "", box=None)
    for name, engine in kizu.engine.engines().items():
        reason = engine.unavailable()
        if reason is not None:
            table.add_row(name, "-", "-", escape(reason))
            continue
        can = [p for p in engine.variants if engine.unsupported(p) is None]
        cannot = [f"{p}: {engine.unsupported(p)}" for p in engine.variants if p not in can]
        table.add_row(name, engine.version(), ", ".join(can), escape("; ".join(cannot)))
    out.print(table)
    out.print(f"processor: {escape(kizu.engine.processor())}; prepare uses {_core.instruction_sets()[0]}")
    return 0


def info(options: argparse.Namespace) -> int:
    """``kizu info``."""
    manifest = bundles.Bundle.open(options.bundle).manifest
    table = Table(show_header=False, box=None)
    for name, value in _about(manifest).items():
        table.add_row(f"[bold]{name.replace('_', ' ')}[/]", escape(str(value)))
    out.print(table)
    _print_threshold(manifest.threshold)
    return 0


def data_list(options: argparse.Namespace) -> int:
    """``kizu data list``."""
    table = Table("name", "what", "use as", "here", box=None)
    for item in kizu.data.available():
        size = "" if item.download_bytes is None else f", {item.download_bytes / 1e6:.0f} MB"
        fetchable = f"no; kizu data fetch {item.name}{size}" if item.download_bytes != 0 else "no"
        table.add_row(item.name, item.title, item.example, escape(str(item.path or fetchable)))
    out.print(table)
    out.print("looked for in $KIZU_DATA, ../shared/data and", escape(str(kizu.data.cache_folder())))
    return 0


def data_fetch(options: argparse.Namespace) -> int:
    """``kizu data fetch``."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=done, total=total)

        folder = kizu.data.fetch(options.name, progress=report)
    out.print(escape(str(folder)))
    return 0


def data_info(options: argparse.Namespace) -> int:
    """``kizu data info``."""
    about = kizu.data.describe(options.data)
    out.print(f"[bold]{escape(about.name)}[/]  {escape(str(about.root))}")
    table = Table("kind", "", "images", "parts", "masks", "own test", box=None)
    for kind in about.kinds:
        counts = (str(n) for n in (kind.images, kind.groups, kind.masks, kind.own_test))
        table.add_row(escape(kind.kind), "good" if kind.good else "anomalous", *counts)
    out.print(table)
    for name, spread in (("width", about.width), ("height", about.height)):
        if spread is not None:
            out.print(f"{name}: {spread.smallest} to {spread.largest} pixels, median {spread.median}")
    out.print("modes:", ", ".join(f"{mode} ({count})" for mode, count in about.modes) or "none readable")
    for rule in about.rules:
        out.print(f"split {rule.name}: {escape(rule.text)}")
    for title, files in (("unreadable", about.unreadable), ("odd", about.odd)):
        for item in files:
            out.print(f"[red]{title}:[/] {escape(f'{item.path}: {item.reason}')}")
    return EXIT_SOME_FAILED if about.unreadable or about.odd else 0


def _require_training() -> None:
    import importlib.util

    missing = [name for name in ("torch", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(f'{", ".join(missing)} not installed; training and export need: pip install "kizu[train]"')


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise TrainingError(f"--set {pair!r} is not NAME=VALUE, e.g. --set sigma=4")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def _load(options: argparse.Namespace) -> Detector:
    return kizu.load(
        options.bundle,
        engine=options.engine,
        precision=options.precision,
        threads=options.threads,
        threshold=options.threshold,
        engine_file=options.engine_file,
    )


def _names() -> set[str]:
    return {item.name for item in kizu.data.available()}


def _unseen(samples: Sequence[Sample], bundle: bundles.Bundle) -> list[Sample]:
    """The samples that training, validation and calibration did not use; says how many were left out."""
    from kizu.evaluate import unseen

    kept = unseen(samples, bundle.manifest.seen)
    if len(kept) < len(samples):
        err.print(
            f"{len(samples) - len(kept)} of {len(samples)} images are left out: training, validation or calibration "
            "used them"
        )
    if not kept:
        raise DataError("no images are left that training, validation and calibration did not use; name others")
    return kept


def _files(paths: Sequence[str]) -> Iterator[Path | DataError]:
    """Files, folders' images, and for "-" the paths on standard input, one a line, as they come.

    A folder without images gives its error in place of a path.
    """
    for path in paths:
        if path == "-":
            yield from (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip())
        elif Path(path).is_dir():
            try:
                yield from kizu.data.find_images([path])
            except DataError as error:
                yield error
        else:
            yield Path(path)  # what is wrong with it is said when it is read


def _rule(threshold: Threshold) -> str:
    return threshold.rule if threshold.parameter is None else f"{threshold.rule} {threshold.parameter:g}"


def _print_threshold(threshold: Threshold) -> None:
    out.print(f"[bold]threshold[/] by {escape(_rule(threshold))}, from {threshold.images} scores:")
    for precision, value in threshold.values.items():
        out.print(f"  {precision:<10} {value:.6g}")


def _about(manifest: Manifest) -> dict[str, object]:
    prepare, training = manifest.prepare, manifest.training
    settings, images = training.get("settings", {}), training.get("images", {})
    return {
        "method": manifest.method.name,
        "input": f"{prepare.channels}x{prepare.size[0]}x{prepare.size[1]} from {prepare.color} frames",
        "crop": prepare.crop or "none",
        "precisions": ", ".join(manifest.calibration.scores),
        "score": _score(manifest),
        "threshold_rule": _rule(manifest.threshold),
        "calibrated_on": f"{len(manifest.calibration.scores['fp32'])} parts ({manifest.calibration.pictures} pictures)",
        "data": settings.get("data"),
        "split": training.get("split"),
        "images": ", ".join(f"{name} {count}" for name, count in images.items()),
        "seed": settings.get("seed"),
        "epoch": f"{training.get('epoch')} of {settings.get('epochs')}, by rule {training.get('epoch_rule')}",
        "settings": manifest.method.config,
        "exported": training.get("exported"),
        "versions": training.get("versions"),
    }


def _score(manifest: Manifest) -> str:
    parts = [manifest.scoring]
    if scoring.rule(manifest.scoring).weighs:
        parts.append(f"lambda {manifest.weight:g}")
    if manifest.iteration:
        parts.append(f"after a search of {manifest.iteration.steps} steps")
    return ", ".join(parts)


def _print_evaluation(found: Any, data: str, detector: Detector) -> None:
    def rate(value: float | None, interval: Any) -> str:
        return "-" if value is None else f"{value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"

    table = Table(show_header=False, box=None)
    table.add_row("images", f"{found.n_good} good, {found.n_anomalous} anomalous ({escape(data)})")
    if found.auroc is not None:
        intervals = found.area_intervals
        table.add_row("AUROC", f"{found.auroc:.3f} [{intervals.auroc.low:.3f}, {intervals.auroc.high:.3f}]")
        table.add_row("AUPR", f"{found.aupr:.3f} [{intervals.aupr.low:.3f}, {intervals.aupr.high:.3f}]")
        table.add_row("F1", f"{found.f1:.3f} at threshold {found.threshold:.4g}")
    table.add_row("false rejects", rate(found.false_reject_rate, found.false_reject_interval))
    table.add_row("misses", rate(found.miss_rate, found.miss_interval))
    latency = found.latency.percentiles("total")
    table.add_row(
        "latency",
        f"p50 {latency.p50 * 1e3:.2f} ms, p99 {latency.p99 * 1e3:.2f} ms ({detector.engine} {detector.precision}, "
        f"{detector.threads} threads)",
    )
    out.print(table)


def _engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="auto", help="auto, or a name that kizu engines lists")
    parser.add_argument("--precision", default="auto", help=_PRECISION)
    parser.add_argument("--engine-file", type=Path, metavar="FILE", help="what kizu build wrote for this machine's GPU")
    parser.add_argument("--threads", type=int, help="threads one frame may use (all processors)")
    parser.add_argument("--threshold", type=float, help="use this threshold instead of the bundle's")
    parser.add_argument("--convert", action="store_true", help="convert images of other modes (RGBA, CMYK ...)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kizu", description="Visual anomaly detection trained on good parts only.")
    parser.add_argument("--version", action="version", version=f"kizu {kizu.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str, group: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        made.set_defaults(command=command)
        return made

    p = add("train", train, "Train a method on good images.")
    p.add_argument("data", nargs="?", help="a folder (good/, optionally bad/; or MVTec's layout), or a data set's name")
    p.add_argument("--output", required=True, metavar="RUN", help="the run's folder")
    p.add_argument("--resume", action="store_true", help="go on where the run in --output stopped")
    p.add_argument("--method", help="a method's name (algan_image)")
    p.add_argument(
        "--preset",
        help="settings that go together: paper (as published), line (what was found to last), surface (the same for "
        f"changing light, at 64 pixels) ({PRESET})",
    )
    p.add_argument(
        "--set", nargs="+", action="extend", metavar="NAME=VALUE", help="settings of the method, e.g. sigma=4 width=64"
    )
    p.add_argument(
        "--size", type=int, help="side of the square model input: 32, 64, 128, 256 or 512 (256, surface: 64)"
    )
    p.add_argument("--epochs", type=int, help="passes over the training images (line: 100, surface: 80, paper: 512)")
    p.add_argument("--batch-size", type=int, help="images a step (16)")
    p.add_argument("--validate-every", type=int, metavar="N", help="epochs between validations (8)")
    p.add_argument("--seed", type=int, help="of split, weights, order and latents (0)")
    p.add_argument("--split", help="a split rule that kizu data info shows (the data set's first)")
    p.add_argument("--calibration", type=float, metavar="SHARE", help="good training images set aside (0.2)")
    p.add_argument(
        "--augmentation",
        nargs="+",
        action="extend",
        choices=["horizontal_flip", "vertical_flip", "rotation", "none"],
        help="of training images (what the data set's paper does; none for a folder)",
    )
    p.add_argument("--crop", nargs=4, type=int, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="region of each frame")
    p.add_argument("--mean", nargs="+", type=float, help="normalise by these, one a channel, of pixels in [0, 1] (0.5)")
    p.add_argument("--std", nargs="+", type=float, help="and these (0.5)")
    p.add_argument("--color", choices=["rgb", "mono"], help="read images as (their own mode)")
    p.add_argument("--convert", action="store_const", const=True, help="convert images of other modes")
    p.add_argument("--skip-unreadable", action="store_const", const=True, help="leave out files that cannot be read")
    p.add_argument("--limit", type=int, metavar="N", help="at most N good and N anomalous images")
    p.add_argument("--autocast", choices=["auto", "bf16", "off"], help="bfloat16 where the processor has it (auto)")
    p.add_argument("--threads", type=int, help="threads torch may use (all processors)")

    p = add("export", export, "Export a training run to a bundle that has proved itself.")
    p.add_argument("run", help="the run's folder")
    p.add_argument("--output", "-o", default="part.kizu", help="the bundle (part.kizu)")
    p.add_argument("--epoch-rule", choices=RULES, help="which rule's epoch (labelled, if there are labels)")
    p.add_argument("--false-reject", type=float, default=0.05, metavar="RATE", help="promised for the threshold (0.05)")
    p.add_argument("--value", type=float, help="set the threshold by hand instead")

    p = add("threshold", threshold, "Show or change a bundle's threshold; the graphs are not touched.")
    p.add_argument("bundle")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--false-reject", type=float, metavar="RATE", help="from the stored scores of good images")
    how.add_argument("--value", type=float, help="by hand")
    how.add_argument("--best-f1", action="store_true", help="from labelled images: the best F1")
    how.add_argument("--recall", type=float, metavar="SHARE", help="from labelled images: find this share of defects")
    p.add_argument("--labelled", metavar="DATA", help="folder with good/ and bad/, or a data set's name")
    p.add_argument("--engine", default="auto", help="engine that scores the labelled images")
    p.add_argument("--threads", type=int, help="its threads")

    p = add(
        "build",
        build,
        "Compile a bundle's engine and prove it on this machine; or write an engine file for another machine's GPU.",
    )
    p.add_argument("bundle")
    p.add_argument("--engine", default="auto", help="auto, or a name that kizu engines lists")
    p.add_argument("--precision", default="auto", help=_PRECISION)
    p.add_argument(
        "--batch", type=_batch, default="16", metavar="MIN:OPT:MAX", help="frames at once, or the most alone (1:1:16)"
    )
    p.add_argument(
        "--compute-capability", metavar="X.Y", help="the GPU to compile for, e.g. 8.6; writes an engine file"
    )
    p.add_argument("--output", type=Path, metavar="FILE", help="engine file (beside the bundle)")
    p.add_argument("--workspace", type=_count, metavar="MiB", help="device memory that a kernel may work in")
    p.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernels, read and extended")
    p.add_argument("--threads", type=_count, help="threads that compile, and that one frame may use (all processors)")

    p = add("score", score, "Score images.")
    p.add_argument("bundle")
    p.add_argument("paths", nargs="+", help="files, folders, or - for a list of files on standard input")
    _engine_options(p)

    p = add("evaluate", evaluate, "Score labelled images and report how well good and anomalous are told apart.")
    p.add_argument("bundle")
    p.add_argument("--data", help="images to evaluate on (the training run's held-out test images)")
    p.add_argument("--report", type=Path, metavar="HTML", help="write a self-contained page")
    _engine_options(p)

    add("engines", engines, "List the engines and why one cannot be used here.")
    p = add("info", info, "Show what is in a bundle.")
    p.add_argument("bundle")

    p = commands.add_parser("data", help="List, fetch or inspect data sets.")
    group = p.add_subparsers(required=True, metavar="COMMAND")
    add("list", data_list, "List the public data sets and where they lie.", group)
    p = add("fetch", data_fetch, "Download a public data set.", group)
    p.add_argument("name")
    p = add("info", data_info, "Count, measure and check the images of a data set or folder.", group)
    p.add_argument("data", metavar="PATH", help="a folder or a data set's name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
