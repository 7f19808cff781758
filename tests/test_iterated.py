"""A program of two graphs that is iterated: in the bundle, in the cache, on the processor and on a CUDA device."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import kizu
from helpers import installed, make_parts, part, python_output, read_bundle, rewrite_bundle
from kizu import Bundle, BundleError, EngineError, KizuError, bundle
from kizu.bundle import Iteration
from kizu.cli import main
from kizu.compiled import compiled, load_program
from kizu.cpu_pipeline import CpuPipeline
from kizu.cuda_pipeline import CudaPipeline
from kizu.engine import (
    BuildOptions,
    CpuEngine,
    CpuProgram,
    CudaProgram,
    DeviceTensor,
    ExecutionContext,
    Runner,
    TensorSpec,
    engines,
)
from kizu.iterated import iterated
from kizu.prepare import PrepareSpec
from rows import ENGINES, EngineRow

Arrays = Mapping[str, NDArray[np.float32]]
pytestmark = pytest.mark.usefixtures("one_thread")

EACH_ENGINE = pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)
CONFIG = {"width": 4, "latent_dim": 6, "steps": 12, "lr_g": 1e-3, "lr_d": 1e-3}


def make(folder: Path, **changes: Any) -> Path:
    """A bundle of AnoGAN, briefly trained."""
    pytest.importorskip("torch")
    from kizu.export import export
    from kizu.settings import TrainingSettings
    from kizu.training import train

    settings = TrainingSettings(
        data=str(make_parts(folder / "parts", color=True, good=60, bad=4)),
        method="anogan",
        config={**CONFIG, **changes},
        size=32,
        epochs=3,
        validate_every=3,
        autocast="off",
        threads=1,
    )
    train(settings, folder / "run")
    export(folder / "run", folder / "part.kizu", false_reject=0.2)
    return folder / "part.kizu"


@pytest.fixture(scope="module")
def iterated_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("iterated"))


@pytest.fixture(scope="module")
def stopping_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose search stops early."""
    return make(tmp_path_factory.mktemp("stopping"), steps=60, early_stop=0.05)


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    return [part(rng, color=True, scratched=i % 2 == 1) for i in range(6)]


# The bundle


def test_info_says_how_the_bundle_scores(iterated_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(iterated_path)]) == 0
    assert "residual_feature, lambda 0.1, after a search of 12 steps" in " ".join(capsys.readouterr().out.split())


def test_the_bundle_holds_both_graphs_and_says_how_they_are_iterated(iterated_path: Path) -> None:
    opened = Bundle.open(iterated_path)
    manifest = opened.manifest
    assert set(manifest.graphs) == {"fp32", "fp16"}
    assert manifest.iteration == Iteration(
        {"fp32": "graphs/fp32-start.onnx", "fp16": "graphs/fp16-start.onnx"}, 12, 0.0, 10, ("f", "z", "m", "v", "t")
    )
    for variant in manifest.graphs:
        start = onnx.load_from_string(opened.start_graph(variant)).graph
        step = onnx.load_from_string(opened.graph(variant)).graph
        assert [value.name for value in start.output] == list(manifest.iteration.state)
        assert [value.name for value in step.input] == ["x", *manifest.iteration.state]
    for precision in ("int8", "int8+fp16"):
        assert "int8 is too coarse" in manifest.training["left_out"][precision]
    with pytest.raises(BundleError, match="no iteration in int8"):
        opened.start_graph("int8")


def test_export_says_why_there_is_no_int8(
    iterated_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(iterated_path.parent / "run")
    assert main(["export", run, "--output", str(tmp_path / "part.kizu"), "--false-reject", "0.2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "int8 is left out: the steps of an iteration need gradients" in said
    assert "fp32 is left out" not in said


def test_other_bundles_have_no_iteration(bundle_path: Path) -> None:
    opened = Bundle.open(bundle_path)
    assert opened.manifest.iteration is None
    with pytest.raises(BundleError, match="no iteration in fp32"):
        opened.start_graph("fp32")


def test_a_bundle_from_before_there_were_iterations_opens(bundle_path: Path, tmp_path: Path) -> None:
    old = rewrite_bundle(bundle_path, tmp_path / "old.kizu", edit=lambda m: m.pop("iteration"))
    assert Bundle.open(old).manifest.iteration is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "0 steps"),
        ({"steps": 1.5}, "must be int"),
        ({"patience": 0}, "patience of 0"),
        ({"tolerance": -0.1}, "at least 0"),
        ({"tolerance": "0"}, "must be float"),
        ({"state": []}, "different names"),
        ({"state": ["z", "z"]}, "different names"),
        ({"start": {"fp32": "graphs/fp32-start.onnx"}}, "starts in fp32, but steps in fp32, fp16"),
        ({"start": {}}, "starts in no precision"),
        ({"start": {"fp32": "graphs/gone.onnx", "fp16": "graphs/fp16-start.onnx"}}, "names graphs/gone.onnx"),
        ({"speed": 1}, "unknown fields speed"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_iteration_that_cannot_be_run_is_refused(
    iterated_path: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    edited = rewrite_bundle(iterated_path, tmp_path / "b.kizu", edit=lambda m: m["iteration"].update(change))
    with pytest.raises(BundleError, match=re.escape(says)):
        Bundle.open(edited)


@pytest.mark.parametrize("value", [3, [], {}, {"steps": 3}])
def test_what_is_no_iteration_is_refused(iterated_path: Path, tmp_path: Path, value: Any) -> None:
    edited = rewrite_bundle(iterated_path, tmp_path / "b.kizu", edit=lambda m: m.update(iteration=value))
    with pytest.raises(BundleError, match=r"iteration (is|lacks)"):
        Bundle.open(edited)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 0.02), ("fp16", 0.1), ("bf16", 0.25)])
def test_an_iterations_tolerances_have_limits_of_their_own(
    iterated_path: Path, tmp_path: Path, precision: str, most: float
) -> None:
    assert Bundle.open(iterated_path).manifest.golden.tolerances[precision] == most
    edited = rewrite_bundle(
        iterated_path, tmp_path / "b.kizu", edit=lambda m: m["golden"]["tolerances"].update({precision: most * 1.01})
    )
    with pytest.raises(BundleError, match="proves nothing beyond"):
        Bundle.open(edited)


def test_a_threshold_can_be_set_and_keeps_the_iteration(iterated_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.kizu"
    path.write_bytes(iterated_path.read_bytes())
    before = Bundle.open(path).manifest
    after = bundle.set_threshold(path, replace(before.threshold, rule="manual"))
    assert after.iteration == before.iteration
    assert Bundle.open(path).start_graph("fp32") == Bundle.open(iterated_path).start_graph("fp32")


# Frame to score


def references(path: Path, frames: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Scores by torch: the exported epoch's search, prepare and the rule's NumPy twin."""
    import torch

    from kizu.prepare_reference import prepare_reference
    from kizu.run_folder import load_file
    from kizu.scoring_reference import score_reference
    from kizu.settings import epoch_file, read_settings

    settings = read_settings(path.parent / "run")
    spec = settings.prepare(settings.dataset())
    manifest = Bundle.open(path).manifest
    module = settings.create(spec).export_module()
    rule = manifest.training["epoch_rule"]
    module.load_state_dict(load_file(epoch_file(path.parent / "run", rule))["module"])
    x = np.concatenate([prepare_reference(frame, spec)[None] for frame in frames])
    found = module.eval()(torch.from_numpy(x))
    tensors = {name: value.numpy() for name, value in found.items()}
    return score_reference("residual_feature", {**tensors, "x": x}, weight=manifest.weight).astype(np.float64)


@EACH_ENGINE
@pytest.mark.parametrize("stops", [False, True], ids=["to the end", "early stop"])
def test_scores_are_those_of_the_search_in_torch(
    row: EngineRow,
    stops: bool,
    iterated_path: Path,
    stopping_path: Path,
    engine_cache: Path,
    frames: list[NDArray[np.uint8]],
) -> None:
    path = stopping_path if stops else iterated_path
    expected = references(path, frames)
    with kizu.load(path, engine=row.name, precision="fp32", threads=1, max_batch=4, cache=engine_cache) as detector:
        unit = detector.bundle.manifest.calibration.deviation()
        together = np.array([result.score for result in detector.score_batch(frames)])
        alone = np.array([detector.score(frame).score for frame in frames])
        again = np.array([detector.score(frame, map=True).score for frame in frames])
    np.testing.assert_allclose(alone, expected, rtol=0, atol=0.02 * unit)
    np.testing.assert_allclose(together, expected, rtol=0, atol=0.02 * unit)
    np.testing.assert_array_equal(again, alone)


@EACH_ENGINE
def test_each_precision_that_loads_is_the_searchs(
    row: EngineRow, iterated_path: Path, engine_cache: Path, frames: list[NDArray[np.uint8]]
) -> None:
    expected, loaded = references(iterated_path, frames), 0
    for precision in ("fp16", "bf16"):
        try:
            detector = kizu.load(iterated_path, engine=row.name, precision=precision, threads=1, cache=engine_cache)
        except KizuError:  # the processor or the engine has no such arithmetic, or it is too coarse
            continue
        with detector:
            loaded += 1
            scores = np.array([detector.score(frame).score for frame in frames])
            unit = detector.bundle.manifest.calibration.deviation()
        assert np.abs(scores - expected).max() <= 2 * bundle.ITERATED_TOLERANCES[precision] * unit
    assert loaded or row.name == "openvino"  # whose processor may have neither


def test_contexts_do_not_share_a_state(
    iterated_path: Path, engine_cache: Path, frames: list[NDArray[np.uint8]]
) -> None:
    with kizu.load(iterated_path, precision="fp32", threads=1, contexts=2, cache=engine_cache) as detector:
        alone = [detector.score(frame).score for frame in frames]
        assert [result.score for result in detector.stream(frames)] == alone


def test_the_line_needs_no_torch(iterated_path: Path, engine_cache: Path) -> None:
    script = """
import sys
import numpy as np
import kizu
for engine in ("openvino", "onnxruntime"):
    with kizu.load(sys.argv[1], engine=engine, precision="fp32", threads=1, cache=sys.argv[2]) as detector:
        detector.score(np.zeros((60, 72, 3), np.uint8))
print(*{name.partition('.')[0] for name in sys.modules})
"""
    loaded = set(python_output(script, iterated_path, engine_cache).split())
    assert not loaded & {"torch", "onnx"}


# The cache


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that OpenVINO compiles from now on, by their number of inputs."""
    calls: list[str] = []
    engine = engines()["openvino"]
    build = engine.build

    def call(graph: Path, out: Path, options: BuildOptions) -> None:
        calls.append("start" if len(onnx.load(graph).graph.input) == 1 else "step")
        build(graph, out, options)

    monkeypatch.setattr(engine, "build", staticmethod(call))
    return calls


@pytest.mark.parametrize("damage", ["none", "start flipped", "start gone", "engine truncated"])
def test_both_graphs_are_kept_and_guarded(iterated_path: Path, tmp_path: Path, builds: list[str], damage: str) -> None:
    def load() -> None:
        kizu.load(iterated_path, engine="openvino", precision="fp32", threads=1, cache=tmp_path).close()

    load()
    assert sorted(builds) == ["start", "step"]
    (folder,) = (tmp_path / "engines" / "openvino").iterdir()
    assert {path.name for path in folder.iterdir()} == {"engine", "start", "proof.json"}
    if damage == "start flipped":
        data = bytearray((folder / "start").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "start").write_bytes(data)
    elif damage == "start gone":
        (folder / "start").unlink()
    elif damage == "engine truncated":
        (folder / "engine").write_bytes((folder / "engine").read_bytes()[:-9])
    load()
    assert len(builds) == (2 if damage == "none" else 4)


@pytest.mark.parametrize("change", ["steps", "tolerance", "start"])
def test_an_engine_depends_on_all_of_the_iteration(
    iterated_path: Path, tmp_path: Path, builds: list[str], change: str
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        if change != "start":
            manifest["iteration"][change] += 1e-9 if change == "tolerance" else 1

    members: dict[str, bytes | None] = {}
    if change == "start":
        model = onnx.load_from_string(read_bundle(iterated_path)[1]["graphs/fp32-start.onnx"])
        model.doc_string = "the same graph in other bytes"
        members["graphs/fp32-start.onnx"] = model.SerializeToString()
    other = rewrite_bundle(iterated_path, tmp_path / "other.kizu", edit=edit, members=members)
    for path in (iterated_path, other):
        with suppress(EngineError):  # another number of steps gives other scores than the golden ones
            kizu.load(path, engine="openvino", precision="fp32", threads=1, cache=tmp_path / "c").close()
    assert len(builds) == 4


def test_engine_files_are_refused(iterated_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(iterated_path), "--engine", "tensorrt-rtx", "--precision", "fp32"]
    assert main([*arguments, "--output", str(tmp_path / "part.engine"), "--compute-capability", "8.6"]) == 1
    assert "iterates two graphs, and an engine file holds one" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "part.engine").exists()


# The program itself, of graphs that are written here


STATE = (TensorSpec("c", (None, 2)), TensorSpec("z", (None, 3)))
ITERATION = Iteration({"fp32": "start"}, 3, 0.0, 2, ("c", "z"))
X = TensorSpec("x", (None, 3))


class Graph(CpuProgram):
    """Calls a function on its arrays; remembers what it was bound to."""

    def __init__(self, inputs: Any, outputs: Any, function: Callable[[Arrays, Arrays], None]) -> None:
        self.inputs, self.outputs, self._function = tuple(inputs), tuple(outputs), function
        self.bound: list[tuple[Arrays, Arrays]] = []
        self.closed = 0

    def bind(self, inputs: Arrays, outputs: Arrays) -> Runner:
        assert set(inputs) == {tensor.name for tensor in self.inputs}
        assert set(outputs) == {tensor.name for tensor in self.outputs}
        self.bound.append((inputs, outputs))
        function = self._function

        class Bound:
            def run(self) -> None:
                function(inputs, outputs)

        return Bound()

    def close(self) -> None:
        self.closed += 1


def start_of(inputs: Arrays, outputs: Arrays) -> None:
    outputs["c"][:] = inputs["x"][:, :2]
    outputs["z"][:] = 0


def stepped(inputs: Arrays, outputs: Arrays) -> None:
    """Counts in z; y is z where it was read. The loss of image i halves i times and then stays."""
    k = inputs["z"][:, 0]
    outputs["next_z"][:] = inputs["z"] + 1
    outputs["y"][:] = inputs["z"] + 100 * inputs["x"]
    outputs["loss"][:] = 0.5 ** np.minimum(k, inputs["c"][:, 0])


STEP_OUTPUTS = (TensorSpec("next_z", (None, 3)), TensorSpec("y", (None, 3)), TensorSpec("loss", (None,)))


def pair() -> tuple[Graph, Graph]:
    return Graph([X], STATE, start_of), Graph([X, *STATE], STEP_OUTPUTS, stepped)


def test_the_outputs_are_those_after_the_last_step() -> None:
    start, step = pair()
    program = iterated(start, step, ITERATION, 4)
    assert isinstance(program, CpuProgram)
    assert program.inputs == (X,)
    assert {tensor.name for tensor in program.outputs} == {"c", "y"}
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = {"c": np.zeros((2, 2), np.float32), "y": np.zeros((2, 3), np.float32)}
    runner = program.bind({"x": x}, outputs)
    for _ in range(2):  # a second run begins anew
        runner.run()
        np.testing.assert_array_equal(outputs["y"], 3 + 100 * x)
        np.testing.assert_array_equal(outputs["c"], x[:, :2])
    program.close()
    assert (start.closed, step.closed) == (1, 1)


def test_two_sets_of_buffers_take_turns() -> None:
    start, step = pair()
    program = iterated(start, step, ITERATION, 4)
    assert isinstance(program, CpuProgram)
    x, c, y = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32)
    program.bind({"x": x}, {"c": c, "y": y})
    ((_, started),) = start.bound
    (read, written), (read_next, written_next) = step.bound
    assert started["z"] is read["z"] is written_next["next_z"]
    assert written["next_z"] is read_next["z"]
    assert not np.shares_memory(read["z"], read_next["z"])
    for arrays in (started, read, read_next):
        assert arrays["c"] is c
    for arrays in (read, read_next):
        assert arrays["x"] is x
    for arrays in (written, written_next):
        assert arrays["y"] is y


@pytest.mark.parametrize(
    ("patience", "tolerance", "steps"), [(2, 0.1, 50), (1, 0.1, 50), (3, 0.6, 50), (2, 0.1, 4), (60, 0.1, 50)]
)
def test_early_stop_is_each_images_own(patience: int, tolerance: float, steps: int) -> None:
    halvings = [0, 6, 2, 2]
    start, step = pair()
    program = iterated(start, step, replace(ITERATION, steps=steps, tolerance=tolerance, patience=patience), 4)
    assert isinstance(program, CpuProgram)
    x = np.zeros((4, 3), np.float32)
    x[:, 0] = halvings
    outputs = {"c": np.zeros((4, 2), np.float32), "y": np.zeros((4, 3), np.float32)}
    runner = program.bind({"x": x}, outputs)
    expected = []
    for most in halvings:
        losses = [0.5 ** min(k, most) for k in range(steps + 1)]
        stalled = (
            k
            for k in range(patience, steps + 1)
            if losses[k - patience] - losses[k] <= tolerance * losses[k - patience]
        )
        expected.append(next(stalled, steps))
    for _ in range(2):
        runner.run()
        np.testing.assert_array_equal(outputs["y"] - 100 * x, np.repeat(expected, 3).reshape(4, 3))


def test_a_loss_that_is_not_finite_ends_the_search() -> None:
    calls = []

    def step(inputs: Arrays, outputs: Arrays) -> None:
        calls.append(1)
        stepped(inputs, outputs)
        outputs["loss"][:] = np.nan

    program = iterated(
        pair()[0], Graph([X, *STATE], STEP_OUTPUTS, step), replace(ITERATION, steps=50, tolerance=0.1), 4
    )
    assert isinstance(program, CpuProgram)
    outputs = {"c": np.zeros((1, 2), np.float32), "y": np.zeros((1, 3), np.float32)}
    program.bind({"x": np.zeros((1, 3), np.float32)}, outputs).run()
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("inputs", "outputs", "state"),
    [
        ([X], STEP_OUTPUTS, ("c", "z")),
        ([X, *STATE, TensorSpec("w", (None, 1))], STEP_OUTPUTS, ("c", "z")),
        ([X, STATE[0], TensorSpec("z", (None, 4))], STEP_OUTPUTS, ("c", "z")),
        ([X, *STATE], STEP_OUTPUTS[:2], ("c", "z")),
        ([X, *STATE], (*STEP_OUTPUTS[:2], TensorSpec("loss", (None, 1))), ("c", "z")),
        ([X, *STATE], (TensorSpec("next_z", (None, 4)), *STEP_OUTPUTS[1:]), ("c", "z")),
        ([X, *STATE], (TensorSpec("next_w", (None, 3)), *STEP_OUTPUTS), ("c", "z")),
        ([X, *STATE], STEP_OUTPUTS, ("z",)),
    ],
)
def test_graphs_that_do_not_fit_are_refused(inputs: Any, outputs: Any, state: tuple[str, ...]) -> None:
    start, _ = pair()
    with pytest.raises(EngineError, match="do not fit one another"):
        iterated(start, Graph(inputs, outputs, stepped), replace(ITERATION, state=state), 4)


def test_an_engine_whose_graphs_do_not_fit_is_closed(
    iterated_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = installed(ENGINES[0])
    options, opened = BuildOptions("fp32", threads=1), Bundle.open(iterated_path)
    for name in ("engine", "start"):  # twice the step
        (tmp_path / "g.onnx").write_bytes(opened.graph("fp32"))
        engine.build(tmp_path / "g.onnx", tmp_path / name, options)
    closed: list[CpuEngine] = []
    monkeypatch.setattr(engine, "close", lambda self: closed.append(self))
    with pytest.raises(EngineError, match="do not fit one another"):
        load_program(engine, options, tmp_path / "engine", opened.manifest.iteration)
    assert len(closed) == 2


@EACH_ENGINE
def test_a_run_allocates_no_arrays(row: EngineRow, iterated_path: Path, tmp_path: Path) -> None:
    engine, opened = installed(row), Bundle.open(iterated_path)
    assert opened.manifest.iteration is not None
    options = BuildOptions("fp32", threads=1, max_batch=2)
    for name, graph in (("engine", opened.graph("fp32")), ("start", opened.start_graph("fp32"))):
        (tmp_path / "g.onnx").write_bytes(graph)
        engine.build(tmp_path / "g.onnx", tmp_path / name, options)
    iteration = replace(opened.manifest.iteration, steps=100)
    with load_program(engine, options, tmp_path / "engine", iteration) as program:
        assert isinstance(program, CpuProgram)
        outputs = {t.name: np.zeros((2, *(n or 1 for n in t.shape[1:])), np.float32) for t in program.outputs}
        runner = program.bind({"x": np.zeros((2, 3, 32, 32), np.float32)}, outputs)
        runner.run()
        tracemalloc.start()
        try:
            runner.run()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 << 10 < outputs["x_hat"].nbytes  # Python's own objects; NumPy's arrays would be counted


# On a CUDA device


class DeviceGraph(CudaProgram):
    """Remembers its contexts and the order in which they are enqueued."""

    def __init__(self, name: str, inputs: Any, outputs: Any, workspace: int, log: list[tuple[str, int]]) -> None:
        self.name, self.inputs, self.outputs, self.workspace = name, tuple(inputs), tuple(outputs), workspace
        self.contexts: list[tuple[Mapping[str, DeviceTensor], int]] = []
        self.can, self.log = True, log

    def context(self, tensors: Mapping[str, DeviceTensor], workspace: int) -> ExecutionContext:
        assert set(tensors) == {tensor.name for tensor in (*self.inputs, *self.outputs)}
        self.contexts.append((tensors, workspace))
        graph, number = self, len(self.contexts) - 1

        class Context:
            def enqueue(self, stream: int) -> None:
                graph.log.append((graph.name, number))

            def capturable(self, stream: int) -> bool:
                return graph.can

        return Context()

    def close(self) -> None:
        pass


def test_on_a_device_the_state_lies_in_the_workspace() -> None:
    log: list[tuple[str, int]] = []
    start = DeviceGraph("start", [X], STATE, 1000, log)
    step = DeviceGraph("step", [X, *STATE], STEP_OUTPUTS, 700, log)
    program = iterated(start, step, ITERATION, 4)
    assert isinstance(program, CudaProgram)
    base, n = 1 << 20, 3
    given = {
        "x": DeviceTensor(256, (n, 3), "float32"),
        "c": DeviceTensor(512, (n, 2), "float32"),
        "y": DeviceTensor(768, (n, 3), "float32"),
    }
    context = program.context(given, base)
    ((started, at),) = start.contexts
    (first, at_first), (second, at_second) = step.contexts
    assert at == at_first == at_second == base
    for bound in (started, first, second):
        assert all(bound[name] == tensor for name, tensor in given.items() if name in bound)
    assert started["z"] == first["z"] == second["next_z"]
    assert first["next_z"] == second["z"]
    spans = sorted(
        {
            (tensor.address, 4 * 4 * (3 if name.endswith("z") else 1))  # of max_batch images
            for bound in (first, second)
            for name, tensor in bound.items()
            if tensor.address >= base
        }
    )
    assert len(spans) == 4
    assert spans[0][0] >= base + 1000
    for (address, size), (following, _) in itertools.pairwise(spans):
        assert address % 256 == 0
        assert address + size <= following
    assert spans[-1][0] + spans[-1][1] <= base + program.workspace
    context.enqueue(7)
    assert log == [("start", 0), ("step", 0), ("step", 1), ("step", 0), ("step", 1)]
    assert context.capturable(7)
    start.can = False
    assert not context.capturable(7)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_early_stop_on_a_device_is_refused_before_anything_is_compiled(
    stopping_path: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(EngineError, match=r"cannot.*openvino"):
        compiled(Bundle.open(stopping_path), engines()[name], "auto", BuildOptions("fp32"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def programs(iterated_path: Path, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """The bundle's on the processor and, by the stand-in, on the device."""
    from stand_in import StandIn

    opened, made = Bundle.open(iterated_path), []
    options = BuildOptions("fp32", threads=1, max_batch=4)
    for engine in (engines()["openvino"], StandIn):
        folder = tmp_path / engine.name
        folder.mkdir()
        for name, graph in (("engine", opened.graph("fp32")), ("start", opened.start_graph("fp32"))):
            (folder / f"{name}.onnx").write_bytes(graph)
            engine.build(folder / f"{name}.onnx", folder / name, options)
        made.append(load_program(engine, options, folder / "engine", opened.manifest.iteration))
    yield made[0], made[1]
    for program in made:
        program.close()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_on_a_device_the_scores_are_the_processors(
    programs: tuple[Any, Any], iterated_path: Path, frames: list[NDArray[np.uint8]]
) -> None:
    spec: PrepareSpec = Bundle.open(iterated_path).manifest.prepare
    on_cpu, on_cuda = programs
    with (
        CpuPipeline(on_cpu, spec, "residual_feature", threads=1, max_batch=4, weight=0.1) as cpu,
        CudaPipeline(on_cuda, spec, "residual_feature", threads=1, max_batch=4, weight=0.1) as cuda,
    ):
        for n in (1, 1, 3, 1, 3):
            expected, _ = cpu.run(frames[:n], map=True)
            found, _ = cuda.run(frames[:n], map=True)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(cuda.maps(n), cpu.maps(n))
        captures = cuda.captures
        for n in (1, 3):
            cuda.run(frames[:n], map=True)
        assert cuda.captures == captures > 0  # all of the search is one graph
