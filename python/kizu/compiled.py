"""Compiled engines, cached on this machine, each proved against the bundle's golden scores before it is used.

An entry of the cache is a folder named by a digest of all that the compiled engine depends on: graph, golden scores,
engine and version, processor or GPU, precision, threads, batch. It holds the compiled engine, of an iteration both of
its graphs, and ``proof.json``: the largest deviation from the golden scores, the verdict and the measured time. A
refusal is kept too, so that it costs once. An engine that another machine compiled is proved and kept like one that was
compiled here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import kizu
from kizu import engine_file
from kizu.bundle import TOLERANCES
from kizu.engine import BuildOptions, CudaEngine, Engine
from kizu.errors import EngineError
from kizu.iterated import iterated
from kizu.pipeline import engine_batch, open_pipeline
from kizu.user_cache import user_cache

if TYPE_CHECKING:
    from kizu.bundle import Bundle, Iteration
    from kizu.engine import Program
    from kizu.prepare import PrepareSpec

_BUILT = "engine"
_START = "start"  # beside it: the graph that starts an iteration
_PROOF = "proof.json"
NO_ENGINE_FILE = (
    "the bundle's method iterates two graphs, and an engine file holds one; leave the engine file out: kizu.load "
    "compiles both on the machine that they run on"
)


@dataclass(frozen=True)
class Proof:
    """What a compiled engine showed on this machine.

    Attributes:
        precision: its arithmetic.
        deviation: largest difference from a golden score, in standard deviations of the good calibration scores.
        tolerance: what is allowed, in the same unit.
        seconds: shortest time of a golden frame, frame to score: what other work on the machine disturbs least.
        built_sha256: digest of the compiled engine's file, or of an iteration's two, one after the other.
        refusal: why it must not be used, or None.
    """

    precision: str
    deviation: float
    tolerance: float
    seconds: float
    built_sha256: str
    refusal: str | None


@dataclass(frozen=True)
class Compiled:
    """A proved engine in the cache."""

    engine: type[Engine]
    options: BuildOptions
    built: Path
    proof: Proof
    iteration: Iteration | None = None

    def load(self) -> Program:
        """Load it."""
        return load_program(self.engine, self.options, self.built, self.iteration)


def load_program(engine: type[Engine], options: BuildOptions, built: Path, iteration: Iteration | None) -> Program:
    """Load a compiled engine; that of an iteration has the graph that starts it beside it. Raises EngineError."""
    if iteration is None:
        return engine(built, options)
    with ExitStack() as loaded:
        step = loaded.enter_context(engine(built, options))
        start = loaded.enter_context(engine(built.with_name(_START), options))
        program = iterated(start, step, iteration, options.max_batch)
        loaded.pop_all()  # the program closes them
    return program


def default_cache() -> Path:
    """``$KIZU_CACHE``, or the user's cache of kizu."""
    return Path(os.environ["KIZU_CACHE"]) if os.environ.get("KIZU_CACHE") else user_cache()


def options_for(
    engine: type[Engine],
    spec: PrepareSpec,
    *,
    threads: int,
    batch: tuple[int, int, int],
    compute_capability: str | None = None,
    workspace: int | None = None,
    timing_cache: str | None = None,
) -> BuildOptions:
    """Options for ``batch`` frames (smallest, the one to be fastest at, largest); their precision is still to be set.

    A frame is as many inputs of the engine as ``prepare`` makes of it.
    """
    low, best, high = batch
    if "min_batch" in engine.takes:  # the others compile for any batch
        low, best = engine_batch(spec, low), engine_batch(spec, best)
    return BuildOptions(
        "fp32", threads, engine_batch(spec, high), low, best, compute_capability, workspace, timing_cache
    )


def compiled(
    bundle: Bundle,
    engine: type[Engine],
    precision: str,
    options: BuildOptions,
    cache: Path,
    *,
    among: Collection[str] = tuple(TOLERANCES),
    built: Path | None = None,
) -> Compiled:
    """Return the bundle's engine in the cache, compiled and proved now if it is not there.

    Args:
        bundle: what to run.
        engine: with what.
        precision: "auto" for the fastest precision that passes its proof, or one by name, which is used or refused.
        options: threads and batch; its precision is not read.
        cache: the cache's folder.
        among: the precisions that "auto" may choose from.
        built: an engine file to use in place of compiling; its precision and batches are taken.

    Raises:
        EngineError: the precision is unknown, unsupported here or refused (with the figures); with "auto", no
            precision passed; the engine file is not for this bundle, engine or machine; an iteration stops early on
            a GPU.
    """
    iteration = bundle.manifest.iteration
    if iteration is not None and iteration.tolerance and issubclass(engine, CudaEngine):
        raise EngineError(
            "the iteration stops early, which an engine on a GPU cannot: its frames are one captured graph. Export "
            "without early stop, or load with engine='openvino' or engine='onnxruntime'"
        )
    if built is not None:
        options = _given(bundle, engine, precision, options, built)
        return _passed(bundle, engine, options.precision, options, cache, built)
    can = precisions(bundle, engine)
    if precision != "auto":
        if precision not in can:
            raise EngineError(
                f"precision {precision!r} is not to be had from {engine.name} and this bundle; choose from: "
                f"auto, {', '.join(can)}"
            )
        reason = engine.unsupported(precision)
        if reason is not None:
            raise EngineError(f"precision {precision!r} cannot be used here: {reason}")
        return _passed(bundle, engine, precision, options, cache)
    passed, refusals = [], []
    for name in can:
        if name in among and engine.unsupported(name) is None:
            try:
                passed.append(_passed(bundle, engine, name, options, cache))
            except EngineError as error:
                refusals.append(str(error))
    if not passed:
        reasons = "; ".join(refusals) or f"none of {', '.join(among)} is supported on this machine"
        raise EngineError(f"no precision of {engine.name} can be used with this bundle: {reasons}")
    return min(passed, key=lambda entry: entry.proof.seconds)


def precisions(bundle: Bundle, engine: type[Engine]) -> list[str]:
    """The precisions that an engine can run of a bundle, by its graphs and tolerances."""
    manifest = bundle.manifest
    return [
        p
        for p in engine.variants
        if engine.variant(p, manifest.graphs) in manifest.graphs and p in manifest.golden.tolerances
    ]


def _given(bundle: Bundle, engine: type[Engine], precision: str, options: BuildOptions, built: Path) -> BuildOptions:
    """The options of an engine file; raises EngineError unless it is for this bundle, engine, machine and use."""
    failure = f"could not load the compiled engine {built}"
    if not issubclass(engine, CudaEngine):
        raise EngineError(
            f"{failure}: {engine.name} takes no engine files, since it compiles on the machine that it runs on; leave "
            "the engine file out"
        )
    if bundle.manifest.iteration is not None:
        raise EngineError(f"{failure}: {NO_ENGINE_FILE}")
    header, _ = engine_file.read(built)
    manifest = bundle.manifest
    low, best, high = header.batch
    one, most = engine_batch(manifest.prepare, 1), options.max_batch
    reason = engine.cannot_load(header)
    if reason is None and precision not in ("auto", header.precision):
        reason = f"it computes in {header.precision}, but {precision} is asked for"
    if reason is None and header.precision not in precisions(bundle, engine):
        reason = f"it computes in {header.precision}, but the bundle has {', '.join(precisions(bundle, engine))}"
    if reason is None:
        graph = manifest.members[manifest.graphs[engine.variant(header.precision, manifest.graphs)]]
        if header.graph != graph.sha256:
            reason = "it was compiled from another graph than this bundle's; build it from this bundle"
    if reason is None and not low <= one <= most <= high:
        reason = (
            f"it takes {low} to {high} inputs at once, but {one} to {most} are needed; load with a smaller max_batch, "
            "or build it for more"
        )
    if reason is not None:
        raise EngineError(f"{failure}: {reason}")
    return replace(options, precision=header.precision, min_batch=low, opt_batch=best, max_batch=high)


def _passed(
    bundle: Bundle,
    engine: type[Engine],
    precision: str,
    options: BuildOptions,
    cache: Path,
    given: Path | None = None,
) -> Compiled:
    """An engine that has proved itself; raises EngineError with the reason if it cannot."""
    entry = _prove(bundle, engine, replace(options, precision=precision), cache, given)
    if entry.proof.refusal is not None:
        raise EngineError(entry.proof.refusal)
    return entry


def _key(bundle: Bundle, engine: type[Engine], options: BuildOptions) -> str:
    manifest = bundle.manifest
    # Neither decides what a GPU's engine computes: threads compile it, and a timing cache makes that quick.
    without = {"threads", "timing_cache"} if issubclass(engine, CudaEngine) else set()
    depends = {
        "kizu": kizu.__version__,
        "engine": [engine.name, engine.version()],
        "machine": engine.machine(),
        "options": {name: value for name, value in asdict(options).items() if name not in without},
        "graph": manifest.members[manifest.graphs[engine.variant(options.precision, manifest.graphs)]].sha256,
        "prepare": manifest.prepare.as_dict(),
        "scoring": [manifest.scoring, manifest.weight],
        "golden": [
            [manifest.members[m].sha256 for m in manifest.golden.members],
            manifest.golden.scores,
            manifest.golden.tolerances,
            manifest.calibration.deviation(),
        ],
    }
    if manifest.iteration is not None:
        variant = engine.variant(options.precision, manifest.graphs)
        start = manifest.members[manifest.iteration.start[variant]].sha256
        depends["iteration"] = asdict(replace(manifest.iteration, start={"": start}))
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def _read(folder: Path, iteration: Iteration | None) -> Proof | None:
    """The proof of a whole entry; None if there is none, or if the compiled file is not the one that was proved."""
    try:
        proof = Proof(**json.loads((folder / _PROOF).read_text(encoding="utf-8")))
        if proof.refusal is None and _sha256(*_files(folder, iteration)) != proof.built_sha256:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return proof


def _sha256(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _files(folder: Path, iteration: Iteration | None) -> tuple[Path, ...]:
    """The files of a compiled engine."""
    return (folder / _BUILT,) if iteration is None else (folder / _BUILT, folder / _START)


def _prove(bundle: Bundle, engine: type[Engine], options: BuildOptions, cache: Path, given: Path | None) -> Compiled:
    folder = cache / "engines" / engine.name / _key(bundle, engine, options)
    iteration = bundle.manifest.iteration
    proof = _read(folder, iteration)
    if proof is not None and given is not None and proof.built_sha256 != _sha256(given):
        proof = None
    if proof is None:
        reason = engine.cannot_build(options) if given is None else None
        if reason is not None:
            raise EngineError(f"{engine.name} cannot compile here: {reason}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        except OSError as error:
            raise EngineError(
                f"the cache of compiled engines {cache} cannot be written: {error}; set KIZU_CACHE to a folder that can"
            ) from error
        try:
            proof = _compile(bundle, engine, options, work, given)
            if given is not None and proof.refusal is not None:
                raise EngineError(f"{given}: {proof.refusal}")  # says nothing of one that is compiled here
            (work / _PROOF).write_text(json.dumps(asdict(proof), indent=1), encoding="utf-8")
            try:
                work.rename(folder)
            except OSError:
                found = _read(folder, iteration)
                if found is not None and given is None:  # another process was faster; its entry is as good
                    proof = found
                else:  # an entry that is not whole, or another engine than the one given
                    shutil.rmtree(folder, ignore_errors=True)
                    work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Compiled(engine, options, folder / _BUILT, proof, iteration)


def _compile(bundle: Bundle, engine: type[Engine], options: BuildOptions, work: Path, given: Path | None) -> Proof:
    """Compile into ``work``, or take what is given, and score the golden frames."""
    manifest = bundle.manifest
    variant = engine.variant(options.precision, manifest.graphs)
    files = _files(work, manifest.iteration)
    if given is None:
        graph, graphs = work / "graph.onnx", (bundle.graph, bundle.start_graph)
        for built, read in zip(files, graphs, strict=False):
            graph.write_bytes(read(variant))
            engine.build(graph, built, options)
        graph.unlink()
    else:
        shutil.copyfile(given, work / _BUILT)
    scores, seconds = [], []
    with (
        load_program(engine, options, work / _BUILT, manifest.iteration) as loaded,
        open_pipeline(
            loaded, manifest.prepare, manifest.scoring, threads=options.threads, weight=manifest.weight
        ) as pipeline,
    ):
        for frame in bundle.golden_frames():
            whole = [(0, 0, frame.shape[1], frame.shape[0])] if manifest.prepare.boxes else None
            # A frame of a new size pays for its weights; the second run is the line's. An iteration's is long.
            for _ in range(2 if manifest.iteration is None else 1):
                score, timing = pipeline.run([frame], boxes=whole)
            scores.append(float(score[0]))
            seconds.append(sum(timing))
    golden, unit = manifest.golden, manifest.calibration.deviation()
    difference = float(np.max(np.abs(np.array(scores) - np.array(golden.scores))))  # NaN stays NaN
    deviation, tolerance = difference / unit if unit > 0 else np.inf, golden.tolerances[options.precision]
    refusal = None
    if not deviation <= tolerance:
        refusal = (
            f"{engine.name} {engine.version()} in {options.precision} does not reproduce the golden scores on this "
            f"machine: it is off by up to {difference:.3g}, {deviation:.3g} standard deviations of the good scores, "
            f"and {tolerance:g} are allowed"
        )
        for file in files:
            file.unlink()
    return Proof(
        options.precision,
        float(deviation),
        tolerance,
        min(seconds),
        _sha256(*files) if refusal is None else "",
        refusal,
    )
